"""Work that is recorded, stopped, found by a check and completed by a fix."""

from __future__ import annotations

import copy
import json
import os
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest

import vdsmstore
from vdsmstore import Store

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Callable

MIB = 1 << 20
MISSING = str(uuid.uuid4())
Fix = dict[str, Any]


def pending(store: Store) -> str:
    """A disk that nothing has been done for yet."""
    return store.createVirtualDisk("a", MIB, options={"AutoFix": False})


def through_json(fixes: list[Fix]) -> list[Fix]:
    again: list[Fix] = json.loads(json.dumps(fixes))
    assert again == fixes
    return again


def fix_all(store: Store, repository: str) -> None:
    for fix in store.checkStorageRepository(repository):
        store.waitTask(store.fixStorageRepository(repository, fix), 30)


def content(store: Store, repository: str, image_id: str) -> bytes:
    with store.openImage(repository, image_id) as image:
        return image.read(0, image.size)


def test_a_mend_completes_what_was_recorded(store: Store) -> None:
    assert store.checkStorageRepository("a") == []
    disk = pending(store)
    (fix,) = through_json(store.checkStorageRepository("a"))
    assert set(fix) == {"type", "imageId", "description", "cost", "data"}
    assert (fix["type"], fix["imageId"]) == ("mend", disk)
    assert set(fix["cost"]) == {"read", "write", "frees", "needs"}
    assert all(isinstance(cost, int) and cost >= 0 for cost in fix["cost"].values())
    assert store.checkStorageRepository("a", {"exactCost": True})[0]["data"] == fix["data"]
    assert store.checkStorageRepository("b") == []
    assert store.getImageStatus("a", disk)["status"] == "broken"
    assert store.fixStorageRepository("a", fix, {"taskId": "mine"}) == "mine"
    store.waitTask("mine", 30)
    assert store.getImageStatus("a", disk)["status"] == "optimized"
    assert store.checkStorageRepository("a") == []


def test_a_fix_runs_on_another_host(store: Store, tmp_path: Path) -> None:
    disk = pending(store)
    (fix,) = through_json(store.checkStorageRepository("a"))
    with Store(hostId="other") as other:
        other.connectStorageRepository("theirs", "localfs-1.0", {"path": str(tmp_path / "a")})
        other.waitTask(other.fixStorageRepository("theirs", fix), 30)
    assert store.getImageStatus("a", disk)["status"] == "optimized"


def test_a_fix_that_has_become_unnecessary_succeeds(store: Store) -> None:
    disk = pending(store)
    (fix,) = store.checkStorageRepository("a")
    for _ in range(3):
        store.waitTask(store.fixStorageRepository("a", fix), 30)
    assert store.getImageStatus("a", disk)["status"] == "optimized"
    store.removeImage("a", disk)
    fix_all(store, "a")
    store.waitTask(store.fixStorageRepository("a", fix), 30)
    assert store.listImages("a") == []


def edited(path: str, value: Any) -> Callable[[Fix], None]:
    def edit(fix: Fix) -> None:
        place: Any = fix
        *way, last = path.split("/")
        for step in way:
            place = place[int(step) if isinstance(place, list) else step]
        place[int(last) if isinstance(place, list) else last] = value

    return edit


EDITS = {
    "another image": edited("imageId", MISSING),
    "no image": edited("imageId", None),
    "another type": edited("type", "clean"),
    "a type that is none": edited("type", "format"),
    "another action": edited("data/action", "clean-image"),
    "an action that is none": edited("data/action", "format"),
    "another object": edited("data/ids/0", MISSING),
    "no objects": edited("data/ids", []),
    "another version": edited("data/version", 2),
    "another repository": edited("data/repository", MISSING),
    "other generations": edited("data/observed/0/1", 99),
    "another sum": edited("data/sum", "0" * 16),
    "something more": edited("data/more", 1),
    "a key more": edited("more", 1),
    "no data": edited("data", None),
    "data of another kind": edited("data", "mend"),
    "long data": edited("data", "x" * 100_000),
    "a cost below nothing": edited("cost/read", -1),
    "a cost that is none": edited("cost", {}),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_an_edited_fix_is_refused(store: Store, tmp_path: Path, edit: Callable[[Fix], None]) -> None:
    disk = pending(store)
    (fix,) = store.checkStorageRepository("a")
    wrong = copy.deepcopy(fix)
    edit(wrong)
    before = files(tmp_path / "a")
    with pytest.raises(vdsmstore.FixRefused) as caught:
        store.fixStorageRepository("a", wrong)
    assert caught.value.code == 4504
    assert files(tmp_path / "a") == before
    assert store.listTasks() == []
    assert store.getImageStatus("a", disk)["status"] == "broken"
    assert store.checkStorageRepository("a") == [fix]


def files(place: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_a_fix_of_another_repository_is_refused(store: Store) -> None:
    pending(store)
    (fix,) = store.checkStorageRepository("a")
    with pytest.raises(vdsmstore.FixRefused):
        store.fixStorageRepository("b", fix)


@pytest.mark.parametrize("fix", [{}, {"type": "mend"}])
def test_dicts_that_are_no_fixes(store: Store, fix: Any) -> None:
    with pytest.raises(vdsmstore.FixRefused):
        store.fixStorageRepository("a", fix)


@pytest.mark.parametrize("fix", [None, [], "mend", 1, {1: 2}, {"data": {1, 2}}])
def test_fixes_that_are_no_dicts(store: Store, fix: Any) -> None:
    with pytest.raises(vdsmstore.InvalidParameter) as caught:
        store.fixStorageRepository("a", fix)
    assert caught.value.details["parameter"] == "fix"


def slow_copy(store: Store) -> tuple[str, bytes]:
    """A copy from a to b that takes about 8 s, and what it will hold."""
    disk = store.createVirtualDisk("a", 8 * MIB)
    store.waitImage("a", disk, 30)
    data = os.urandom(8 * MIB)
    with store.openImage("a", disk, "rw") as image:
        image.write(0, data)
    return store.copyImage("b", disk, options={"bandwidth": MIB, "taskId": "slow"}), data


def started(store: Store) -> dict[str, Any]:
    """The copy, when it has moved something."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        (task,) = store.listTasks()
        if task["bytesDone"] > 0:
            return task
        time.sleep(0.02)
    raise AssertionError("nothing was moved")


@pytest.mark.parametrize("how", ["image", "task"])
def test_a_copy_is_stopped_and_resumed(store: Store, how: str) -> None:
    copied, data = slow_copy(store)
    task = started(store)
    assert (task["taskId"], task["repoId"], task["imageId"]) == ("slow", "b", copied)
    asked = time.monotonic()
    if how == "image":
        store.stopImageTask("b", copied)
    else:
        store.stopTask("slow")
    assert time.monotonic() - asked < 2
    assert store.listTasks() == []
    with pytest.raises(vdsmstore.Stopped):
        store.waitTask("slow", 0)
    status = store.getImageStatus("b", copied)
    assert (status["status"], status["tasks"]) == ("broken", [])
    assert "stopped" in status["last_error"]
    with pytest.raises(vdsmstore.ImageBroken):
        store.openImage("b", copied)

    # Nothing runs: does nothing.
    store.stopImageTask("b", copied)
    store.stopTask("slow")

    (fix,) = through_json(store.checkStorageRepository("b"))
    assert (fix["type"], fix["imageId"]) == ("mend", copied)
    began = time.monotonic()
    store.waitTask(store.fixStorageRepository("b", fix, {"bandwidth": 1e12}), 60)
    assert time.monotonic() - began < 6
    status = store.getImageStatus("b", copied)
    assert (status["status"], status["last_error"]) == ("optimized", None)
    assert content(store, "b", copied) == data
    assert store.checkStorageRepository("b") == []


def test_the_limit_is_kept_and_goes_with_the_image(store: Store) -> None:
    copied, _ = slow_copy(store)
    started(store)
    store.stopTask("slow")
    (fix,) = store.checkStorageRepository("b")
    store.fixStorageRepository("b", fix, {"taskId": "again"})
    with pytest.raises(vdsmstore.Timeout):
        store.waitTask("again", 1.5)
    assert store.getImageStatus("b", copied)["status"] == "broken"
    store.stopTask("again")
    store.removeImage("b", copied)
    fix_all(store, "b")
    assert store.checkStorageRepository("b") == []


@pytest.mark.parametrize("bandwidth", [0, -1, 0.5, "1", True, [1], 1e300])
def test_bandwidths_that_are_none(store: Store, disk: str, bandwidth: Any) -> None:
    with pytest.raises(vdsmstore.InvalidParameter):
        store.copyImage("b", disk, options={"bandwidth": bandwidth})
    assert store.listImages("b") == []


def test_stopping_what_is_unknown(store: Store) -> None:
    with pytest.raises(vdsmstore.TaskNotFound) as caught:
        store.stopTask("unknown")
    assert isinstance(caught.value, LookupError)
    with pytest.raises(vdsmstore.RepositoryNotFound):
        store.stopImageTask("nowhere", MISSING)


def test_names_of_tasks(store: Store) -> None:
    slow_copy(store)
    started(store)
    pending(store)
    (fix,) = store.checkStorageRepository("a")
    with pytest.raises(vdsmstore.TaskIdInUse):
        store.fixStorageRepository("a", fix, {"taskId": "slow"})
    with pytest.raises(vdsmstore.InvalidParameter):
        store.fixStorageRepository("a", fix, {"taskId": "not a name"})
    store.stopTask("slow")


def test_resize(store: Store, disk: str) -> None:
    with store.openImage("a", disk, "rw") as image:
        image.write(0, b"x" * MIB)
        with pytest.raises(vdsmstore.ImageInUse):
            store.resizeVirtualDisk("a", disk, 2 * MIB)
    store.resizeVirtualDisk("a", disk, 3 * MIB + 512)
    assert store.getImageInfo("a", disk)["size"] == 3 * MIB + 512
    assert content(store, "a", disk) == b"x" * MIB + bytes(2 * MIB + 512)
    store.resizeVirtualDisk("a", disk, 3 * MIB + 512, {"AutoFix": False})
    for size in (3 * MIB, 0, -512, 3 * MIB + 513, 2**53, 2**70):
        with pytest.raises(vdsmstore.InvalidSize):
            store.resizeVirtualDisk("a", disk, size)
    for wrong in (None, "1", 1.5, True):
        with pytest.raises(vdsmstore.InvalidParameter):
            store.resizeVirtualDisk("a", disk, wrong)  # type: ignore[arg-type]
    assert store.getImageInfo("a", disk)["size"] == 3 * MIB + 512
    snapshot = store.createSnapshot("a", disk)
    with pytest.raises(vdsmstore.NotADisk):
        store.resizeVirtualDisk("a", snapshot, 4 * MIB)
    store.waitImage("a", snapshot, 30)
    store.resizeVirtualDisk("a", disk, 4 * MIB)
    assert content(store, "a", disk) == b"x" * MIB + bytes(3 * MIB)
    assert len(content(store, "a", snapshot)) == 3 * MIB + 512
    with pytest.raises(vdsmstore.ImageBroken):
        store.resizeVirtualDisk("a", pending(store), 4 * MIB)


def test_strategy(store: Store, disk: str) -> None:
    with store.openImage("a", disk, "rw") as image:
        image.write(0, b"base")
    snapshot = store.createSnapshot("a", disk)
    child = store.createVirtualDisk("a", None, snapshot)
    store.waitImage("a", child, 30)
    with store.openImage("a", child, "rw") as image:
        image.write(4096, b"child")
    before = content(store, "a", child)
    assert store.getImageInfo("a", child)["strategy"] == "space"
    store.setImageStrategy("a", child, "performance")
    info = store.getImageInfo("a", child)
    assert info["strategy"] == "performance"
    if info["depth"] > 1:  # there was nothing to clone with
        assert store.getImageStatus("a", child)["status"] == "degraded"
        (fix,) = store.checkStorageRepository("a")
        assert (fix["type"], fix["imageId"]) == ("optimize", child)
        assert fix["cost"]["write"] > 0
        store.waitTask(store.fixStorageRepository("a", fix), 30)
    assert store.getImageStatus("a", child)["status"] == "optimized"
    assert store.getImageInfo("a", child)["depth"] == 1
    assert content(store, "a", child) == before
    for wrong in ("", "fast", "Space", None, 1):
        with pytest.raises(vdsmstore.InvalidParameter):
            store.setImageStrategy("a", child, wrong)  # type: ignore[arg-type]
    assert store.getImageInfo("a", child)["strategy"] == "performance"


def test_everything_removed_leaves_nothing(store: Store, disk: str) -> None:
    snapshot = store.createSnapshot("a", disk)
    child = store.createVirtualDisk("a", None, snapshot)
    store.waitImage("a", child, 30)
    for image_id in (snapshot, disk, child):
        store.removeImage("a", image_id, {"AutoFix": False})
    assert store.listImages("a") == []
    for _ in range(10):
        fixes = through_json(store.checkStorageRepository("a"))
        if not fixes:
            break
        assert {fix["type"] for fix in fixes} <= {"clean", "merge", "mend", "optimize"}
        for fix in fixes:
            store.waitTask(store.fixStorageRepository("a", fix), 30)
    assert store.checkStorageRepository("a") == []


def test_a_check_beside_removals(store: Store) -> None:
    for _ in range(100):
        disk = store.createVirtualDisk("a", MIB)
        store.waitImage("a", disk, 30)
        store.removeImage("a", disk)
        for _ in range(3):
            store.checkStorageRepository("a")
