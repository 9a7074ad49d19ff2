"""Export, differences, measure; compared with QEMU's tools and with a model."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import vdsmstore
from vdsmstore import Store

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
QEMU_IMG = shutil.which("qemu-img")


def qemu_img(*arguments: str) -> str:
    assert QEMU_IMG is not None
    return subprocess.run([QEMU_IMG, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def layered(store: Store) -> tuple[str, str, bytes, bytes]:
    """A snapshot, a disk built on it that differs from it here and there, and what they hold."""
    generator = random.Random(7)  # noqa: S311
    size = 4 * MIB
    base = store.createVirtualDisk("a", size)
    model = bytearray(size)
    with store.openImage("a", base, "rw") as image:
        for _ in range(20):
            offset, length = generator.randrange(size - 70000), generator.randrange(1, 70000)
            model[offset : offset + length] = data = generator.randbytes(length)
            image.write(offset, data)
    snapshot = store.createSnapshot("a", base)
    store.waitImage("a", snapshot, 30)
    before = bytes(model)
    disk = store.createVirtualDisk("a", size, snapshot)
    store.waitImage("a", disk, 30)
    with store.openImage("a", disk, "rw") as image:
        for _ in range(10):
            offset, length = generator.randrange(size - 70000), generator.randrange(1, 70000)
            model[offset : offset + length] = data = generator.randbytes(length)
            image.write(offset, data)
        image.writeZeroes(MIB, MIB)
        model[MIB : 2 * MIB] = bytes(MIB)
    return snapshot, disk, before, bytes(model)


@pytest.mark.parametrize(
    ("file_format", "compress"), [("raw", None), ("qcow2", None), ("qcow2", "zstd"), ("qcow2", "deflate")]
)
def test_export(
    store: Store,
    tmp_path: Path,
    layered: tuple[str, str, bytes, bytes],
    file_format: str,
    compress: str | None,
) -> None:
    snapshot, disk, before, after = layered
    for image_id, content in ((snapshot, before), (disk, after)):
        path, model = tmp_path / f"{image_id}.out", tmp_path / f"{image_id}.model"
        model.write_bytes(content)
        options = {"taskId": image_id, "compress": compress}
        task = store.exportImage("a", image_id, path, file_format, options)
        assert task == image_id
        store.waitTask(task, 30)
        qemu_img("compare", "-f", file_format, "-F", "raw", str(path), str(model))
        if file_format == "qcow2":
            qemu_img("check", str(path))
            assert "backing-filename" not in json.loads(qemu_img("info", "--output=json", str(path)))
        again = store.importImage("b", path, file_format)
        assert store.waitImage("b", again, 30)["status"] == "optimized"
        with store.openImage("b", again) as image:
            assert image.read(0, image.size) == content
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.is_file()) == [
        ".model",
        ".model",
        ".out",
        ".out",
    ]


def test_export_over_a_file(store: Store, tmp_path: Path, disk: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"precious")
    with pytest.raises(vdsmstore.InvalidParameter) as caught:
        store.exportImage("a", disk, path, "raw")
    assert caught.value.details["parameter"] == "path"
    assert path.read_bytes() == b"precious"
    store.waitTask(store.exportImage("a", disk, path, "raw", {"overwrite": True}), 30)
    assert path.read_bytes() == bytes(MIB)


def test_an_export_that_is_stopped_leaves_no_file(store: Store, tmp_path: Path, disk: str) -> None:
    with store.openImage("a", disk, "rw") as image:
        image.write(0, os.urandom(MIB))
    place = tmp_path / "out"
    place.mkdir()
    task = store.exportImage("a", disk, place / "file", "raw", {"bandwidth": MIB // 8})
    deadline = time.monotonic() + 20
    while not list(place.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(vdsmstore.ImageInUse):
        store.openImage("a", disk, "rw")
    assert not (place / "file").exists()
    store.stopTask(task)
    with pytest.raises(vdsmstore.Stopped):
        store.waitTask(task, 0)
    assert list(place.iterdir()) == []
    store.openImage("a", disk, "rw").close()


@pytest.mark.parametrize(
    ("path", "file_format"),
    [
        ("relative", "raw"),
        ("/nonexistent/file", "raw"),
        ("", "raw"),
        ("/", "raw"),
        ("{tmp}/file", "vmdk"),
        ("{tmp}/file", ""),
        ("{tmp}/file", None),
        (1, "raw"),
        (b"/x", "raw"),
        ("/x\0y", "raw"),
    ],
)
def test_exports_that_are_refused(
    store: Store, tmp_path: Path, disk: str, path: Any, file_format: Any
) -> None:
    if isinstance(path, str):
        path = path.replace("{tmp}", str(tmp_path))
    with pytest.raises(vdsmstore.InvalidParameter):
        store.exportImage("a", disk, path, file_format)
    assert store.listTasks() == []
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    ("file_format", "compress"), [("raw", "zstd"), ("qcow2", "zlib"), ("qcow2", ""), ("qcow2", True)]
)
def test_compress_that_is_refused(
    store: Store, tmp_path: Path, disk: str, file_format: str, compress: Any
) -> None:
    with pytest.raises(vdsmstore.InvalidParameter):
        store.exportImage("a", disk, tmp_path / "file", file_format, {"compress": compress})


def replay(base: bytes, target: bytes, pieces: list[tuple[int, int, str]]) -> bytes:
    """The base with the pieces put in, which must be in order, merged, and of the right kind."""
    result = bytearray(base)
    end, last = -1, ""
    for offset, length, kind in pieces:
        assert length > 0
        assert offset >= end
        assert (offset, kind) != (end, last)
        assert kind in ("data", "zero")
        if kind == "zero":
            assert not any(target[offset : offset + length])
        result[offset : offset + length] = target[offset : offset + length]
        end, last = offset + length, kind
    return bytes(result)


def test_diff(store: Store, layered: tuple[str, str, bytes, bytes]) -> None:
    snapshot, disk, before, after = layered
    pieces = list(store.diffImages("a", disk, snapshot))
    assert replay(before, after, pieces) == after
    assert sum(length for _, length, _ in pieces) < 3 * MIB
    assert replay(after, before, list(store.diffImages("a", snapshot, disk))) == before
    assert replay(bytes(len(before)), before, list(store.diffImages("a", snapshot))) == before
    assert replay(bytes(len(after)), after, list(store.diffImages("a", disk, None, {}))) == after
    assert list(store.diffImages("a", snapshot, snapshot)) == []


def test_diff_of_images_that_have_nothing_to_do_with_each_other(store: Store) -> None:
    model = bytearray(2 * MIB)
    disks = [store.createVirtualDisk("a", 2 * MIB) for _ in range(2)]
    for disk in disks:
        store.waitImage("a", disk, 30)
    with store.openImage("a", disks[0], "rw") as image:
        image.write(MIB, b"x" * 512)
    model[MIB : MIB + 512] = b"x" * 512
    pieces = list(store.diffImages("a", disks[0], disks[1]))
    assert replay(bytes(2 * MIB), bytes(model), pieces) == model
    assert sum(length for _, length, _ in pieces) < MIB


def test_many_differences(store: Store) -> None:
    """More than one batch: nothing is lost or torn between them."""
    count, step = 1500, 128 << 10
    disk = store.createVirtualDisk("a", count * step)
    empty = store.createVirtualDisk("a", count * step)
    store.waitImage("a", disk, 30)
    store.waitImage("a", empty, 30)
    with store.openImage("a", disk, "rw") as image:
        for index in range(count):
            image.write(index * step, b"x" * 4096)
    pieces = list(store.diffImages("a", disk, empty))
    assert [(offset, kind) for offset, _, kind in pieces] == [(i * step, "data") for i in range(count)]
    assert all(4096 <= length < step for _, length, _ in pieces)
    found: list[tuple[int, int, str]] = []
    difference = store.diffImages("a", disk, empty)
    threads = [threading.Thread(target=lambda: found.extend(difference)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == pieces


def test_a_difference_holds_its_images(store: Store, disk: str) -> None:
    def is_free() -> bool:
        try:
            store.openImage("a", disk, "rw").close()
        except vdsmstore.ImageInUse:
            return False
        return True

    def write() -> None:
        with store.openImage("a", disk, "rw") as image:
            image.write(0, b"x" * MIB)

    write()
    difference = store.diffImages("a", disk)
    assert not is_free()
    assert iter(difference) is difference
    assert next(difference) == (0, MIB, "data")
    assert not is_free()
    with pytest.raises(StopIteration):
        next(difference)
    assert is_free()
    with pytest.raises(StopIteration):
        next(difference)

    difference = store.diffImages("a", disk)
    assert not is_free()
    del difference
    gc.collect()
    assert is_free()

    with store.diffImages("a", disk) as difference:
        assert not is_free()
    assert is_free()
    assert list(difference) == []
    difference.close()

    difference = store.diffImages("a", disk)
    with pytest.raises(vdsmstore.ImageInUse):
        store.disconnectStorageRepository("a")
    store.close()
    with pytest.raises(vdsmstore.Closed):
        next(difference)
    difference.close()


def test_diff_of_what_cannot_be_read(store: Store, disk: str) -> None:
    broken = store.createVirtualDisk("a", MIB, options={"AutoFix": False})
    for images in ((broken,), (disk, broken), (broken, disk)):
        with pytest.raises(vdsmstore.ImageBroken):
            store.diffImages("a", *images)
    with store.openImage("a", disk, "rw"), pytest.raises(vdsmstore.ImageInUse):
        store.diffImages("a", disk)
    with pytest.raises(vdsmstore.InvalidParameter):
        store.diffImages("a", disk, "no id")
    with pytest.raises(vdsmstore.InvalidParameter):
        store.diffImages("a", disk, 1)  # type: ignore[arg-type]
    store.openImage("a", disk, "rw").close()


@pytest.mark.parametrize("file_format", ["raw", "qcow2"])
def test_measure(
    store: Store, tmp_path: Path, layered: tuple[str, str, bytes, bytes], file_format: str
) -> None:
    snapshot, disk, _, after = layered
    measured = store.measureImage("a", disk, None, {"format": file_format})
    assert set(measured) == {"required", "fullyAllocated", "read"}
    path = tmp_path / "model"
    path.write_bytes(after)
    qemu = json.loads(qemu_img("measure", "-f", "raw", "-O", file_format, "--output=json", str(path)))
    # QEMU tells of a raw file's extents only what the file system knows, in its blocks.
    assert measured["required"] <= qemu["required"] + MIB // 4
    assert abs(measured["fullyAllocated"] - qemu["fully-allocated"]) <= MIB // 4
    assert measured["required"] <= measured["fullyAllocated"]
    store.waitTask(store.exportImage("a", disk, tmp_path / "file", file_format), 30)
    made = (tmp_path / "file").stat()
    assert made.st_blocks * 512 <= measured["required"] + 4096
    assert made.st_size <= max(measured["fullyAllocated"], len(after))
    difference = store.measureImage("a", disk, snapshot, {"format": file_format})
    assert difference["required"] < measured["required"]
    assert difference["required"] <= difference["read"]  # of both images


def test_measure_without_a_format_is_of_raw(store: Store, disk: str) -> None:
    assert store.measureImage("a", disk) == store.measureImage("a", disk, None, {"format": "raw"})
    assert store.measureImage("a", disk) == {"required": 0, "fullyAllocated": MIB, "read": 0}
    for options in ({"format": "vmdk"}, {"format": 1}, {"form": "raw"}):
        with pytest.raises(vdsmstore.InvalidParameter):
            store.measureImage("a", disk, None, options)
