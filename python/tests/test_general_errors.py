"""Every kind of error is raised for a real cause: those here that are of no verb's own."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import pytest

import vdsmstore

if TYPE_CHECKING:
    from conftest import Scene

    Cause = Callable[[Scene], Any]

MIB = 1 << 20
NOBODY = 65534
HERE = Path(__file__).resolve().parent
KINDS: dict[str, tuple[int, Any]] = runpy.run_path(str(HERE / "test_errors.py"))["KINDS"]
# Of some verb, by that verb.
CAUSED: set[tuple[str, str]] = set(runpy.run_path(str(HERE / "test_every_error.py"))["CAUSES"])
# Raised by no verb on the storage that there is.
NEVER = {
    "MountFailed": "localfs mounts nothing",
    "StaleHandle": "only network file systems have it",
    "LeaseLost": "the locks of a local file system are not lost",
    "Internal": "a bug of ours",
}

GENERAL: dict[str, Cause] = {
    "InvalidParameter": lambda s: s.store.createVirtualDisk("a", None),
}


def general(function: Cause) -> Cause:
    kind = "".join(word.capitalize() for word in function.__name__.split("_"))
    GENERAL[kind] = function
    return function


@general
def closed(scene: Scene) -> None:
    scene.store.close()
    scene.store.listTasks()


@general
def corrupt_record(scene: Scene) -> None:
    scene.record().write_bytes(b"x")
    scene.store.getImageInfo("a", scene.disk)


@general
def verification_failed(scene: Scene) -> None:
    """What is copied is not what the hashes say that an import kept."""
    path = scene.file("file", os.urandom(MIB))
    disk = scene.store.importImage("a", path, "raw", options={"verify": True})
    scene.store.waitImage("a", disk, 30)
    snapshot = scene.store.createSnapshot("a", disk)
    content = path.read_bytes()
    (data,) = [file for file in (scene.place / "a" / "data").iterdir() if file.read_bytes() == content]
    data.write_bytes(b"x" + content[1:])
    scene.store.copyImage("b", snapshot, options={"taskId": "copies"})
    scene.store.waitTask("copies", 30)


@general
def conflict(scene: Scene) -> None:
    """The file of an import has changed since."""
    path = scene.file("file", b"x" * 512)
    disk = scene.store.importImage("a", path, "raw", options={"AutoFix": False})
    path.write_bytes(b"y" * 1024)
    (fix,) = [fix for fix in scene.store.checkStorageRepository("a") if fix["imageId"] == disk]
    scene.store.waitTask(scene.store.fixStorageRepository("a", fix), 30)


@general
def cannot_lock(scene: Scene) -> None:
    """Somebody else is formatting it."""
    place = scene.directory("empty")
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        scene.format(place)
    finally:
        os.close(descriptor)


@general
def io_error(scene: Scene) -> None:
    """A name that the file system has no room for."""
    task = scene.store.exportImage("a", scene.snapshot, scene.place / ("x" * 255), "raw")
    try:
        scene.store.waitTask(task, 30)
    except vdsmstore.IoError as error:
        assert error.errno == error.details["errno"] == errno.ENAMETOOLONG
        assert str(scene.place) in error.filename
        raise


@general
def permission_denied(scene: Scene) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    scene.place.chmod(0o755)
    (scene.place / "a").chmod(0o700)
    os.seteuid(NOBODY)
    try:
        scene.connect(scene.place / "a")
    except vdsmstore.PermissionDenied as error:
        assert isinstance(error, PermissionError)
        raise
    finally:
        os.seteuid(0)


@general
def no_space(scene: Scene) -> None:
    with scene.mounted("-t", "tmpfs", "-o", "size=2m", "tmpfs") as mount:
        scene.add("c", mount / "c")
        options = {"strategy": "performance", "taskId": "large"}
        try:
            scene.store.createVirtualDisk("c", 64 * MIB, options=options)
            scene.store.waitTask("large", 30)
        except vdsmstore.NoSpace as error:
            assert error.errno == errno.ENOSPC
            raise
        finally:
            scene.store.disconnectStorageRepository("c")


@general
def read_only_repository(scene: Scene) -> None:
    with scene.mounted("-t", "tmpfs", "tmpfs") as mount:
        scene.add("c", mount / "c")
        scene.store.disconnectStorageRepository("c")
        scene.program("mount", "-o", "remount,ro", str(mount))
        scene.connect(mount / "c")
        assert scene.store.getStorageRepositoryInfo("c")["readOnly"]
        try:
            scene.store.createVirtualDisk("c", MIB)
        finally:
            scene.store.disconnectStorageRepository("c")


@general
def forked_process(scene: Scene) -> None:
    """What the child got comes back as it was."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        text = b"nothing"
        try:
            scene.store.listTasks()
        except vdsmstore.StorageError as error:
            text = json.dumps([type(error).__name__, error.message, error.details]).encode()
        os.write(sender, text)
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver) as pipe:
        kind, message, details = json.loads(pipe.read())
    os.waitpid(child, 0)
    raise getattr(vdsmstore, kind)(message, details)


@pytest.mark.parametrize("kind", sorted(GENERAL))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_general(scene: Scene, kind: str) -> None:
    with pytest.raises(getattr(vdsmstore, kind)) as caught:
        GENERAL[kind](scene)
    scene.judge(caught.value, kind, KINDS[kind][0])


def test_every_kind_is_raised() -> None:
    raised = {kind for _, kind in CAUSED} | set(GENERAL)
    assert raised.isdisjoint(NEVER)
    assert raised | set(NEVER) == set(KINDS)
