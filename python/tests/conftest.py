"""A store with two empty repositories; and a scene for errors."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vdsmstore

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[vdsmstore.Store]:
    with vdsmstore.Store(hostId="testhost") as store:
        for name in ("a", "b"):
            place = tmp_path / name
            place.mkdir()
            store.formatStorageRepository("localfs-1.0", {"path": str(place)})
            store.connectStorageRepository(name, "localfs-1.0", {"path": str(place)})
        yield store


@pytest.fixture
def disk(store: vdsmstore.Store) -> str:
    """A disk of 1 MiB in repository a."""
    disk = store.createVirtualDisk("a", MIB)
    store.waitImage("a", disk, timeout=30)
    return disk


SLOW: dict[str, Any] = {"bandwidth": 64 << 10, "taskId": "slow"}


class Recorder:
    """A store that remembers which verb failed last."""

    def __init__(self, store: vdsmstore.Store) -> None:
        self._store = store
        self.failed: str | None = None

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._store, name)

        def call(*arguments: Any, **options: Any) -> Any:
            try:
                return verb(*arguments, **options)
            except vdsmstore.StorageError:
                self.failed = name
                raise

        return call


class Scene:
    """Repositories a and b where nothing can be cloned; a disk, its snapshot, and one only intended."""

    def __init__(self, store: vdsmstore.Store, place: Path) -> None:
        self.store: Any = Recorder(store)
        self.place: Path = place
        for name in ("a", "b"):
            self.add(name, place / name)
        self.disk: str = self.store.createVirtualDisk("a", MIB)
        self.store.waitImage("a", self.disk, 30)
        with self.store.openImage("a", self.disk, "rw") as image:
            image.write(0, b"x" * (256 << 10))
        self.snapshot = self.store.createSnapshot("a", self.disk)
        self.store.waitImage("a", self.snapshot, 30)
        self.broken = self.store.createVirtualDisk("a", MIB, options={"AutoFix": False})

    def add(self, name: str, place: Path) -> None:
        place.mkdir()
        self.store.formatStorageRepository("localfs-1.0", {"path": str(place)})
        self.store.connectStorageRepository(name, "localfs-1.0", {"path": str(place)})

    def connect(self, place: Path, repo_format: str = "localfs-1.0") -> None:
        self.store.connectStorageRepository("c", repo_format, {"path": str(place)})

    def format(self, place: Path, repo_format: str = "localfs-1.0") -> None:
        self.store.formatStorageRepository(repo_format, {"path": str(place)})

    def directory(self, name: str) -> Path:
        (self.place / name).mkdir()
        return self.place / name

    def file(self, name: str, content: bytes = b"") -> Path:
        (self.place / name).write_bytes(content)
        return self.place / name

    def running(self) -> str:
        """A task that takes four seconds."""
        self.store.exportImage("a", self.snapshot, self.place / "slow", "raw", SLOW)
        return str(SLOW["taskId"])

    def used(self) -> str:
        """The disk, opened for writing."""
        self.image = self.store.openImage("a", self.disk, "rw")
        return self.disk

    def damaged(self) -> str:
        """The disk, whose file contradicts its format."""
        prepared = self.store.prepareImage("a", self.disk, {"readOnly": True})
        self.store.teardownImage("a", self.disk)
        assert prepared["format"] == "qcow2"
        with Path(prepared["path"]).open("r+b") as file:
            file.seek(40)
            file.write(b"\xff" * 8)  # where its first table is
        return self.disk

    def unknown_qcow2(self) -> Path:
        """A qcow2 file with an incompatible feature that nobody knows."""
        path = self.place / "unknown.qcow2"
        program = shutil.which("qemu-img") or "qemu-img"
        subprocess.run([program, "create", "-q", "-f", "qcow2", path, "1M"], check=True)
        content = bytearray(path.read_bytes())
        content[72] = 0x80
        path.write_bytes(content)
        return path

    def record(self) -> Path:
        """The file of the disk's record."""
        return max(self.place.glob(f"a/images/*/{self.disk}.*"))

    def fix(self) -> dict[str, Any]:
        fixes: list[dict[str, Any]] = self.store.checkStorageRepository("a")
        return fixes[0]

    def edit_descriptor(self, key: str, value: Any) -> Path:
        place = self.directory("edited")
        self.format(place)
        descriptor = next(place.glob("descriptor.*"))
        descriptor.write_text(json.dumps({**json.loads(descriptor.read_text()), key: value}))
        return place

    def deep(self) -> str:
        """A disk over as many volumes as can be."""
        for _ in range(248):
            self.store.createSnapshot("a", self.disk)
        assert self.store.getImageInfo("a", self.disk)["depth"] == 250
        return self.disk

    @staticmethod
    def program(*arguments: str) -> None:
        subprocess.run(arguments, check=True, capture_output=True)

    @contextlib.contextmanager
    def mounted(self, *arguments: str) -> Iterator[Path]:
        """A file system for the length of a test."""
        if os.geteuid() != 0:
            pytest.skip("needs root to mount")
        place = self.directory("mount")
        self.program("mount", *arguments, str(place))
        try:
            yield place
        finally:
            self.program("umount", "--lazy", str(place))

    @staticmethod
    def judge(error: vdsmstore.StorageError, kind: str, code: int) -> None:
        """It is whole."""
        assert type(error).__name__ == kind
        assert error.code == code
        assert error.message
        assert "\n" not in error.message
        assert error.response() == {"status": {"code": code, "message": error.message}}

    @contextlib.contextmanager
    def storage_that_does_not_answer(self) -> Iterator[str]:
        """A copy to repository c, whose file system takes no writes for a while."""
        file = self.place / "file-system"
        with file.open("wb") as empty:
            empty.truncate(24 * MIB)
        self.program("mkfs.ext4", "-q", "-F", str(file))
        with self.mounted("-o", "loop", str(file)) as mount:
            self.add("c", mount / "c")
            copied = self.store.copyImage("c", self.snapshot, options=SLOW)
            deadline = time.monotonic() + 20
            while not self.store.listTasks()[0]["bytesDone"]:
                assert time.monotonic() < deadline
            self.program("fsfreeze", "--freeze", str(mount))
            try:
                yield copied
            finally:
                self.program("fsfreeze", "--unfreeze", str(mount))
                self.store.stopTask("slow")
                # It was told to stop, and did when it could.
                with pytest.raises(vdsmstore.Stopped):
                    self.store.waitTask("slow", 30)
                self.store.disconnectStorageRepository("c")


@pytest.fixture
def scene() -> Iterator[Scene]:
    # Not in tmp_path: whether there are chains must not depend on what file system that is.
    place = Path("/dev/shm") / f"vdsmstore-{uuid.uuid4()}"  # noqa: S108
    place.mkdir()
    try:
        with vdsmstore.Store(hostId="testhost") as store:
            yield Scene(store, place)
    finally:
        shutil.rmtree(place)
