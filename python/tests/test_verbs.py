"""Every verb, as a user calls it."""

from __future__ import annotations

import inspect
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest

import vdsmstore
from vdsmstore import Store

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def test_repositories(store: Store, tmp_path: Path) -> None:
    parameters = {"path": str(tmp_path / "a")}
    assert store.listStorageRepositories() == ["a", "b"]
    info = store.getStorageRepositoryInfo("a")
    assert (info["repoId"], info["format"], info["readOnly"]) == ("a", "localfs-1.0", False)
    assert (info["virtualDisks"], info["snapshots"]) == (0, 0)
    assert set(info["capabilities"]) == {"reflink", "thin", "discard", "multiHost", "serverCopy"}
    assert 0 <= info["available"] <= info["capacity"]
    assert {"location", "features"} <= set(info)
    with pytest.raises(vdsmstore.RepositoryIdInUse):
        store.connectStorageRepository("a", "localfs-1.0", parameters)
    with pytest.raises((vdsmstore.RepositoryExists, vdsmstore.NotEmpty)):
        store.formatStorageRepository("localfs-1.0", parameters)
    store.disconnectStorageRepository("a")
    assert store.listStorageRepositories() == ["b"]
    with pytest.raises(vdsmstore.RepositoryNotFound):
        store.disconnectStorageRepository("a")
    store.connectStorageRepository("again", "localfs-1.0", parameters)
    assert store.listStorageRepositories() == ["b", "again"]


def test_places_that_are_none(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(vdsmstore.NotARepository):
        store.connectStorageRepository("c", "localfs-1.0", {"path": str(tmp_path / "empty")})
    with pytest.raises(vdsmstore.ConnectionFailed) as caught:
        store.connectStorageRepository("c", "localfs-1.0", {"path": str(tmp_path / "missing")})
    assert isinstance(caught.value, OSError)
    with pytest.raises(vdsmstore.FormatUnsupported):
        store.connectStorageRepository("c", "zfs-1.0", {})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(vdsmstore.NotEmpty):
        store.formatStorageRepository("localfs-1.0", {"path": str(tmp_path / "full")})


def test_disk(store: Store) -> None:
    disk = store.createVirtualDisk("a", MIB, userData={"name": "x"})
    assert disk == str(uuid.UUID(disk))
    status = store.waitImage("a", disk, timeout=30)
    assert status["status"] == "optimized"
    assert set(status) == {"status", "hostID", "stage", "percent_complete", "last_error", "tasks"}
    assert store.getImageStatus("a", disk)["status"] == "optimized"
    info = store.getImageInfo("a", disk)
    assert (info["imageId"], info["mutable"], info["size"]) == (disk, True, MIB)
    assert (info["userData"], info["strategy"], info["prepared"]) == ({"name": "x"}, "space", None)
    assert {"allocated", "created", "depth"} <= set(info)
    assert store.listImages("a") == [disk]
    assert store.listImages("a", {"details": True}) == [info]
    store.removeImage("a", disk)
    assert store.listImages("a") == []
    with pytest.raises(vdsmstore.ImageNotFound):
        store.getImageStatus("a", disk)


def test_chosen_ids(store: Store) -> None:
    chosen = str(uuid.uuid4())
    options = {"imageId": chosen.upper()}
    assert store.createVirtualDisk("a", MIB, None, None, options) == chosen
    assert store.createVirtualDisk("a", MIB, None, {}, options) == chosen
    with pytest.raises(vdsmstore.ImageExists):
        store.createVirtualDisk("a", 2 * MIB, options=options)


def test_snapshot_and_disk_from_it(store: Store, disk: str) -> None:
    with store.openImage("a", disk, "rw") as image:
        image.write(0, b"before")
    snapshot = store.createSnapshot("a", disk, {"when": "now"})
    store.waitImage("a", snapshot, timeout=30)
    with store.openImage("a", disk, "rw") as image:
        image.write(0, b"after!")
    clone = store.createVirtualDisk("a", None, snapshot)
    store.waitImage("a", clone, timeout=30)
    for image_id, content in ((snapshot, b"before"), (disk, b"after!"), (clone, b"before")):
        with store.openImage("a", image_id) as image:
            assert image.read(0, 6) == content
    assert store.getImageInfo("a", snapshot)["mutable"] is False
    assert store.getImageInfo("a", clone)["size"] == MIB
    assert store.listImages("a", {"kind": "snapshot"}) == [snapshot]
    assert store.listImages("a", {"kind": "disk"}) == sorted([disk, clone])
    with pytest.raises(vdsmstore.ReadOnlyImage):
        store.openImage("a", snapshot, "rw")
    with pytest.raises(vdsmstore.NotADisk):
        store.createSnapshot("a", snapshot)


def test_copies(store: Store, disk: str) -> None:
    with store.openImage("a", disk, "rw") as image:
        image.write(4096, b"data")
    copy = store.copyImage("b", disk)
    assert copy != disk
    assert store.waitImage("b", copy, timeout=30)["status"] == "optimized"
    with store.openImage("b", copy) as image:
        assert image.read(4096, 4) == b"data"
    snapshot = store.createSnapshot("a", disk)
    store.waitImage("a", snapshot, timeout=30)
    assert store.copyImage("b", snapshot, options={"strategy": "space"}) == snapshot
    store.waitImage("b", snapshot, timeout=30)
    assert snapshot in store.listImages("b")


def test_removing_what_others_read(store: Store, disk: str, tmp_path: Path) -> None:
    """Whoever reads an image keeps it; whoever reads what is built on it is not disturbed."""
    with store.openImage("a", disk, "rw") as image:
        image.write(0, b"x" * MIB)
    snapshot = store.createSnapshot("a", disk)
    child = store.createVirtualDisk("a", None, snapshot)
    store.waitImage("a", child, 30)
    with Store() as other:
        other.connectStorageRepository("a", "localfs-1.0", {"path": str(tmp_path / "a")})
        with other.openImage("a", snapshot), pytest.raises(vdsmstore.ImageInUse):
            store.removeImage("a", snapshot)
        with store.openImage("a", snapshot), pytest.raises(vdsmstore.ImageInUse):
            store.removeImage("a", snapshot)
        with store.diffImages("a", child, snapshot), pytest.raises(vdsmstore.ImageInUse):
            store.removeImage("a", snapshot)
        with other.openImage("a", child) as image:
            store.removeImage("a", snapshot)
            assert snapshot not in store.listImages("a")
            assert image.read(0, MIB) == b"x" * MIB
    with store.openImage("a", child) as image:
        assert image.read(0, MIB) == b"x" * MIB


def test_import(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "file.raw"
    file.write_bytes(bytes(1024) + b"x" * 512)
    disk = store.importImage("a", file, "raw", {"from": "file"})
    assert store.waitImage("a", disk, timeout=30)["status"] == "optimized"
    with store.openImage("a", disk) as image:
        assert image.read(0, image.size) == file.read_bytes()
    with pytest.raises(vdsmstore.InvalidParameter):
        store.importImage("a", file, "vmdk")


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        None,
        True,
        0,
        -1.5e300,
        10**30,
        "text",
        "snow ☃ \U0001f600",
        "\ud800 alone",
        "nul \0 inside",
        {"deep": [{"er": [[]]}], "": None},
        {"b": 1, "a": 2},
    ],
)
def test_user_data(store: Store, disk: str, value: Any) -> None:
    store.setImageUserData("a", disk, value)
    assert store.getImageInfo("a", disk)["userData"] == value


def test_large_user_data(store: Store, disk: str) -> None:
    store.setImageUserData("a", disk, "x" * (MIB - 2))
    assert store.getImageInfo("a", disk)["userData"] == "x" * (MIB - 2)
    with pytest.raises(vdsmstore.InvalidParameter):
        store.setImageUserData("a", disk, "x" * (MIB - 1))


def test_prepare(store: Store, disk: str) -> None:
    prepared = store.prepareImage("a", disk)
    assert set(prepared) == {"path", "format", "readOnly", "blockdev", "libvirt"}
    assert prepared["format"] in ("raw", "qcow2")
    assert prepared["readOnly"] is False
    store.teardownImage("a", disk)
    snapshot = store.createSnapshot("a", disk)
    store.waitImage("a", snapshot, timeout=30)
    with pytest.raises(vdsmstore.ReadOnlyImage):
        store.prepareImage("a", snapshot)
    assert store.prepareImage("a", snapshot, {"readOnly": True})["readOnly"] is True
    store.teardownImage("a", snapshot, {"force": False})


def test_tasks(store: Store) -> None:
    assert store.listTasks() == []
    with pytest.raises(vdsmstore.TaskNotFound):
        store.waitTask("unknown", 0)
    disk = store.createVirtualDisk("a", MIB, options={"AutoFix": False})
    status = store.waitImage("a", disk, 5)
    assert status["tasks"] == []


def test_wait_times_out(store: Store, disk: str) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        store.waitImage(
            "a", store.createVirtualDisk("a", MIB, options={"AutoFix": False}), 0.3, {"status": "optimized"}
        )
    assert 0.25 < time.monotonic() - started < 3
    assert store.waitImage("a", disk, 0, {"status": "optimized"})["status"] == "optimized"


def test_signatures() -> None:
    for name in dir(Store):
        if name.startswith("_") or name == "close":
            continue
        function, method = getattr(vdsmstore, name), getattr(Store, name)
        names = list(inspect.signature(method).parameters)
        assert list(inspect.signature(function).parameters) == names[1:]
        assert names[-1].lstrip("_") == "options"


def test_many_threads(store: Store) -> None:
    made: list[str] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                disk = store.createVirtualDisk("a", MIB)
                with store.openImage("a", disk, "rw") as image:
                    image.write(512, disk.encode())
                    assert image.read(512, len(disk)) == disk.encode()
                made.append(disk)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert store.listImages("a") == sorted(made)
