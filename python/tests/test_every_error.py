"""Every error that docs/api.md lists of a verb, raised by that verb for a real cause."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import pytest

import vdsmstore

if TYPE_CHECKING:
    from conftest import Scene

    Cause = Callable[[Scene], Any]

MIB = 1 << 20
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VERBS: dict[str, tuple[Any, ...]]
MISSING: str
KINDS: dict[str, tuple[int, Any]]
VERBS, MISSING = (runpy.run_path(str(HERE / "test_arguments.py"))[name] for name in ("VERBS", "MISSING"))
KINDS = runpy.run_path(str(HERE / "test_errors.py"))["KINDS"]

# Listed of a verb, and not raised by it on the storage that there is.
NOT_RAISED = {
    ("prepareImage", "UnsupportedOperation"): "every image of localfs has a path",
}
CAUSES: dict[tuple[str, str], Cause] = {}


def cause(kind: str, *verbs: str) -> Callable[[Cause], Cause]:
    def add(function: Cause) -> Cause:
        for verb in verbs:
            assert (verb, kind) not in CAUSES
            CAUSES[verb, kind] = function
        return function

    return add


def table(kind: str, causes: dict[str, Cause]) -> None:
    for verb, function in causes.items():
        cause(kind, verb)(function)


def with_argument(verb: str, old: str, new: str) -> Cause:
    arguments = [new if argument == old else argument for argument in VERBS[verb]]
    return lambda s: getattr(s.store, verb)(*arguments)


LISTED = {
    (name, kind)
    for name, verb in runpy.run_path(str(ROOT / "tests/api/verbs.py"))["page"](
        (ROOT / "docs/api.md").read_text(encoding="utf-8")
    )[0].items()
    for kind in verb.errors
}
for verb, kind in LISTED:
    if kind == "RepositoryNotFound":
        CAUSES[verb, kind] = with_argument(verb, "a", "nowhere")
CAUSES["createVirtualDisk", "ImageNotFound"] = lambda s: s.store.createVirtualDisk("a", None, MISSING)
CAUSES["exportImage", "ImageNotFound"] = lambda s: s.store.exportImage("a", MISSING, s.place / "x", "raw")
for verb, kind in LISTED - set(CAUSES):
    if kind == "ImageNotFound":
        CAUSES[verb, kind] = with_argument(verb, MISSING, MISSING)

# Repositories
table(
    "ConnectionFailed",
    {
        "connectStorageRepository": lambda s: s.connect(s.place / "missing"),
        "formatStorageRepository": lambda s: s.format(s.place / "missing"),
    },
)
table(
    "FormatUnsupported",
    {
        "connectStorageRepository": lambda s: s.connect(s.place / "a", "zfs-1.0"),
        "formatStorageRepository": lambda s: s.format(s.directory("empty"), "zfs-1.0"),
    },
)
table(
    "VersionTooNew",
    {
        "connectStorageRepository": lambda s: s.connect(s.edit_descriptor("incompatible", ["teleportation"])),
        "formatStorageRepository": lambda s: s.format(s.directory("empty"), "localfs-2.0"),
    },
)
cause("NotARepository", "connectStorageRepository")(lambda s: s.connect(s.directory("empty")))
cause("WrongFormat", "connectStorageRepository")(lambda s: s.connect(s.edit_descriptor("format", "nfs")))
cause("RepositoryIdInUse", "connectStorageRepository")(
    lambda s: s.store.connectStorageRepository("a", "localfs-1.0", {"path": str(s.place / "b")})
)
cause("NotEmpty", "formatStorageRepository")(lambda s: s.format(s.file("full").parent))
cause("RepositoryExists", "formatStorageRepository")(lambda s: s.format(s.place / "a"))

# Images in some state
table(
    "ImageBroken",
    {
        "createVirtualDisk": lambda s: s.store.createVirtualDisk("a", None, s.broken),
        "createSnapshot": lambda s: s.store.createSnapshot("a", s.broken),
        "copyImage": lambda s: s.store.copyImage("b", s.broken),
        "resizeVirtualDisk": lambda s: s.store.resizeVirtualDisk("a", s.broken, 2 * MIB),
        "openImage": lambda s: s.store.openImage("a", s.broken),
        "prepareImage": lambda s: s.store.prepareImage("a", s.broken),
        "diffImages": lambda s: s.store.diffImages("a", s.broken),
        "exportImage": lambda s: s.store.exportImage("a", s.broken, s.place / "x", "raw"),
        "measureImage": lambda s: s.store.measureImage("a", s.broken),
    },
)
table(
    "ImageInUse",
    {
        "disconnectStorageRepository": lambda s: s.used() and s.store.disconnectStorageRepository("a"),
        "createSnapshot": lambda s: s.store.createSnapshot("a", s.used()),
        "copyImage": lambda s: s.store.copyImage("b", s.used()),
        "removeImage": lambda s: s.store.removeImage("a", s.used()),
        "resizeVirtualDisk": lambda s: s.store.resizeVirtualDisk("a", s.used(), 2 * MIB),
        "openImage": lambda s: s.store.openImage("a", s.used()),
        "prepareImage": lambda s: s.store.prepareImage("a", s.used()),
        "diffImages": lambda s: s.store.diffImages("a", s.snapshot, s.used()),
        "exportImage": lambda s: s.store.exportImage("a", s.used(), s.place / "x", "qcow2"),
        "measureImage": lambda s: s.store.measureImage("a", s.used()),
    },
)
table(
    "CorruptImage",
    {
        "importImage": lambda s: s.store.importImage("a", s.file("file", b"x" * 512), "qcow2"),
        "openImage": lambda s: s.store.openImage("a", s.damaged()),
        "diffImages": lambda s: s.store.diffImages("a", s.damaged()),
        "exportImage": lambda s: s.store.exportImage("a", s.damaged(), s.place / "x", "raw"),
        "measureImage": lambda s: s.store.measureImage("a", s.damaged()),
    },
)
table(
    "NotADisk",
    {
        "createSnapshot": lambda s: s.store.createSnapshot("a", s.snapshot),
        "resizeVirtualDisk": lambda s: s.store.resizeVirtualDisk("a", s.snapshot, 2 * MIB),
    },
)
table(
    "NotASnapshot",
    {
        "createVirtualDisk": lambda s: s.store.createVirtualDisk("b", None, s.disk),
        "copyImage": lambda s: s.store.copyImage("b", s.snapshot, s.disk, options={"partial": True}),
    },
)
table(
    "ReadOnlyImage",
    {
        "openImage": lambda s: s.store.openImage("a", s.snapshot, "rw"),
        "prepareImage": lambda s: s.store.prepareImage("a", s.snapshot),
    },
)


@cause("ImageInUse", "teardownImage")
def prepared_elsewhere(scene: Scene) -> None:
    with vdsmstore.Store(hostId="elsewhere") as other:
        other.connectStorageRepository("a", "localfs-1.0", {"path": str(scene.place / "a")})
        other.prepareImage("a", scene.disk)
        scene.store.teardownImage("a", scene.disk)


@cause("ImageInUse", "importImage")
def a_file_that_qemu_writes(scene: Scene) -> None:
    path = scene.file("file", b"x" * 512)
    qemu_io = shutil.which("qemu-io")
    assert qemu_io is not None
    with subprocess.Popen(
        [qemu_io, "-f", "raw", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as qemu:
        assert qemu.stdin is not None
        assert qemu.stdout is not None
        qemu.stdin.write("length\n")
        qemu.stdin.flush()
        assert qemu.stdout.readline()  # it has it open
        try:
            scene.store.importImage("a", path, "raw")
        finally:
            qemu.stdin.close()


# Arguments
table(
    "InvalidSize",
    {
        "createVirtualDisk": lambda s: s.store.createVirtualDisk("a", 1),
        "importImage": lambda s: s.store.importImage("a", s.file("empty"), "raw"),
        "resizeVirtualDisk": lambda s: s.store.resizeVirtualDisk("a", s.disk, 512),
    },
)
table(
    "ImageExists",
    {
        "createVirtualDisk": lambda s: s.store.createVirtualDisk("a", MIB, options={"imageId": s.disk}),
        "createSnapshot": lambda s: s.store.createSnapshot("a", s.disk, options={"imageId": s.disk}),
        "copyImage": lambda s: s.store.copyImage("a", s.disk, options={"imageId": s.broken}),
        "importImage": lambda s: s.store.importImage(
            "a", s.file("x", b"x"), "raw", options={"imageId": s.disk}
        ),
    },
)
table(
    "TaskIdInUse",
    {
        "createVirtualDisk": lambda s: s.store.createVirtualDisk("a", MIB, options={"taskId": s.running()}),
        "createSnapshot": lambda s: s.store.createSnapshot("a", s.disk, options={"taskId": s.running()}),
        "copyImage": lambda s: s.store.copyImage("b", s.disk, options={"taskId": s.running()}),
        "importImage": lambda s: s.store.importImage(
            "a", s.file("x", b"x"), "raw", options={"taskId": s.running()}
        ),
        "removeImage": lambda s: s.store.removeImage("a", s.disk, {"taskId": s.running()}),
        "exportImage": lambda s: s.running() and s.running(),
        "fixStorageRepository": lambda s: s.store.fixStorageRepository("a", s.fix(), {"taskId": s.running()}),
    },
)
table(
    "UnsupportedOperation",
    {
        "importImage": lambda s: s.store.importImage("a", s.unknown_qcow2(), "qcow2"),
    },
)
table(
    "TooManyVolumes",
    {
        "createVirtualDisk": lambda s: s.store.createVirtualDisk("a", None, deepest(s)),
        "createSnapshot": lambda s: s.store.createSnapshot("a", s.deep()),
        "copyImage": lambda s: s.store.copyImage("a", s.snapshot, s.deep()),
    },
)


def deepest(scene: Scene) -> str:
    """A snapshot over as many volumes as can be."""
    scene.deep()
    child = scene.store.createSnapshot("b", scene.store.createVirtualDisk("b", MIB))
    copied: str = scene.store.copyImage("a", child)
    scene.store.waitImage("a", copied, 30)
    last = scene.store.listImages("a", {"kind": "snapshot", "details": True})
    below = max(last, key=lambda info: info["depth"])["imageId"]
    disk = scene.store.createVirtualDisk("b", MIB)
    copied = scene.store.copyImage("a", disk, below, options={"mutable": False})
    scene.store.waitImage("a", copied, 30)
    assert scene.store.getImageInfo("a", copied)["depth"] == 250
    return copied


# Fixes and tasks
cause("FixRefused", "fixStorageRepository")(
    lambda s: s.store.fixStorageRepository("a", {**s.fix(), "imageId": MISSING})
)


@cause("ImageInUse", "fixStorageRepository")
def a_fix_that_waits_for_who_opened_the_disk(scene: Scene) -> None:
    base = scene.store.copyImage("b", scene.snapshot)
    scene.store.waitImage("b", base, 30)
    disk = scene.store.copyImage("b", scene.disk, base)
    scene.store.waitImage("b", disk, 30)
    scene.store.setImageStrategy("b", disk, "performance")
    (fix,) = scene.store.checkStorageRepository("b")
    with scene.store.openImage("b", disk, "rw"):
        scene.store.fixStorageRepository("b", fix)


cause("TaskNotFound", "stopTask")(lambda s: s.store.stopTask("unknown"))
cause("TaskNotFound", "waitTask")(lambda s: s.store.waitTask("unknown"))
cause("Timeout", "waitTask")(lambda s: s.store.waitTask(s.running(), 0.01))
cause("Timeout", "waitImage")(lambda s: s.store.waitImage("a", s.broken, 0.01, {"status": "optimized"}))


@cause("Stopped", "waitTask")
def a_stopped_task(scene: Scene) -> None:
    scene.running()
    scene.store.stopTask("slow")
    scene.store.waitTask("slow")


@cause("Timeout", "disconnectStorageRepository")
def a_disconnect_from_storage_that_does_not_answer(scene: Scene) -> None:
    with scene.storage_that_does_not_answer():
        with pytest.raises(vdsmstore.Timeout) as caught:
            scene.store.disconnectStorageRepository("c")
        failed = scene.store.failed
    scene.store.failed = failed  # afterwards the task is waited for
    raise caught.value


@pytest.mark.parametrize(("verb", "kind"), sorted(CAUSES))
def test_listed(scene: Scene, verb: str, kind: str) -> None:
    with pytest.raises(getattr(vdsmstore, kind)) as caught:
        CAUSES[verb, kind](scene)
    assert scene.store.failed == verb
    scene.judge(caught.value, kind, KINDS[kind][0])


def test_no_other_is_listed() -> None:
    """A kind that is added to docs/api.md needs a cause here."""
    assert len(LISTED) > 100
    assert set(CAUSES).isdisjoint(NOT_RAISED)
    assert set(CAUSES) | set(NOT_RAISED) | LONG == LISTED


# A stop waits for a minute.
LONG = {("stopImageTask", "Timeout"), ("stopTask", "Timeout")}


@pytest.mark.skipif("VDSMSTORE_LONG" not in os.environ, reason="takes two minutes; VDSMSTORE_LONG=1 runs it")
@pytest.mark.parametrize("verb", ["stopImageTask", "stopTask"])
def test_a_stop_that_storage_does_not_answer(scene: Scene, verb: str) -> None:
    with scene.storage_that_does_not_answer() as copied:
        arguments = ("c", copied) if verb == "stopImageTask" else ("slow",)
        with pytest.raises(vdsmstore.Timeout) as caught:
            getattr(scene.store, verb)(*arguments)
        scene.judge(caught.value, "Timeout", 851)
        assert scene.store.failed == verb
