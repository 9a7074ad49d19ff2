"""The GIL, Ctrl-C, forks, the end of the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING

import pytest

import vdsmstore
from vdsmstore import Store

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
PROLOGUE = """
    import os, signal, sys, threading, time, warnings
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    import vdsmstore

    def repository(path, name="a"):
        os.mkdir(path)
        vdsmstore.formatStorageRepository("localfs-1.0", {"path": path})
        vdsmstore.connectStorageRepository(name, "localfs-1.0", {"path": path})
"""


def start(tmp_path: Path, body: str) -> subprocess.Popen[str]:
    script = textwrap.dedent(PROLOGUE) + textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "repository")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(tmp_path: Path, body: str) -> str:
    process = start(tmp_path, body)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def waiting(store: Store) -> str:
    """An image that no task works on, and that will not become optimized."""
    return store.createVirtualDisk("a", MIB, options={"AutoFix": False})


def test_waiting_releases_the_gil(store: Store) -> None:
    image = waiting(store)
    counted = 0
    ended = threading.Event()

    def count() -> None:
        nonlocal counted
        while not ended.is_set():
            counted += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        with pytest.raises(vdsmstore.Timeout):
            store.waitImage("a", image, 0.5, {"status": "optimized"})
    finally:
        ended.set()
        thread.join()
    assert counted > 100


def test_control_c_while_waiting(tmp_path: Path) -> None:
    process = start(
        tmp_path,
        """
        repository(sys.argv[1])
        image = vdsmstore.createVirtualDisk("a", 1 << 20, options={"AutoFix": False})
        print("ready", flush=True)
        try:
            vdsmstore.waitImage("a", image, None, {"status": "optimized"})
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert out == "interrupted\n", err
    assert time.monotonic() - sent < 5
    assert process.returncode == 0


def in_child(body: object) -> int:
    """The exit status of a forked child that runs the body."""
    assert callable(body)
    child = os.fork()
    if child == 0:
        try:
            os._exit(body())
        except BaseException:  # noqa: BLE001
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_may_not_use_the_store(store: Store, disk: str, tmp_path: Path) -> None:
    difference = store.diffImages("a", store.createSnapshot("a", disk))
    image = store.openImage("a", disk, "rw")

    def child() -> int:
        for call in (
            lambda: store.getImageStatus("a", disk),
            store.close,
            lambda: store.openImage("a", disk),
            lambda: next(difference),
            lambda: image.read(0, 1),
            lambda: image.write(0, b"x"),
            image.close,
        ):
            try:
                call()
            except vdsmstore.ForkedProcess as error:
                assert error.code == 4508
            else:
                return 1
        with Store() as own:
            own.connectStorageRepository("a", "localfs-1.0", {"path": str(tmp_path / "a")})
            assert disk in own.listImages("a")
        return 0

    assert in_child(child) == 0
    image.write(0, b"still mine")
    image.close()
    assert store.getImageStatus("a", disk)["status"] == "optimized"


@pytest.mark.parametrize(
    "end",
    [
        "image.close()",
        "os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_a_forked_child_keeps_no_locks(tmp_path: Path, end: str) -> None:
    process = start(
        tmp_path,
        f"""
        repository(sys.argv[1])
        image_id = vdsmstore.createVirtualDisk("a", 1 << 20)
        image = vdsmstore.openImage("a", image_id, "rw")
        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writable, b"x")  # from here on it runs, and has let go
            time.sleep(60)
            os._exit(0)
        os.read(readable, 1)
        print(image_id, child, flush=True)
        {end}
        """,
    )
    assert process.stdout is not None
    image_id, child = process.stdout.readline().split()
    try:
        process.wait(30)
        with Store() as store:
            store.connectStorageRepository("a", "localfs-1.0", {"path": str(tmp_path / "repository")})
            store.openImage("a", image_id, "rw").close()
    finally:
        os.kill(int(child), signal.SIGKILL)
        process.communicate()


def test_the_default_store_in_a_forked_child(tmp_path: Path) -> None:
    out = run(
        tmp_path,
        """
        repository(sys.argv[1])
        child = os.fork()
        if child == 0:
            try:
                vdsmstore.listStorageRepositories()
            except vdsmstore.ForkedProcess:
                print("forked", flush=True)
            sys.exit(0)  # with its handlers
        assert os.waitpid(child, 0)[1] == 0
        print(vdsmstore.listStorageRepositories())
        """,
    )
    assert out == "forked\n['a']\n"


def test_the_end_of_the_process(tmp_path: Path) -> None:
    """What is left open is freed at exit, so that others can have it at once."""
    out = run(
        tmp_path,
        """
        repository(sys.argv[1])
        image_id = vdsmstore.createVirtualDisk("a", 1 << 20)
        image = vdsmstore.openImage("a", image_id, "rw")
        image.write(0, b"x")
        print(image_id)
        """,
    )
    with Store() as store:
        store.connectStorageRepository("a", "localfs-1.0", {"path": str(tmp_path / "repository")})
        store.openImage("a", out.strip(), "rw").close()


SLOW_COPY = """
    repository(sys.argv[1])
    repository(sys.argv[1] + "2", "b")
    disk = vdsmstore.createVirtualDisk("a", 8 << 20)
    with vdsmstore.openImage("a", disk, "rw") as image:
        image.write(0, bytes(range(256)) * (32 << 10))
    image_id = vdsmstore.copyImage("b", disk, options={"bandwidth": 1 << 19})
    task = vdsmstore.exportImage("a", disk, sys.argv[1] + ".out", "raw", {"bandwidth": 1 << 19})
    while not all(task["bytesDone"] for task in vdsmstore.listTasks()):
        time.sleep(0.02)
    assert len(vdsmstore.listTasks()) == 2
    print(image_id, flush=True)
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise KeyError", 1),
        (
            "threading.Thread(target=lambda: vdsmstore.waitTask(task), daemon=True).start(); time.sleep(0.3)",
            0,
        ),
        pytest.param("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", -signal.SIGINT, id="control-c"),
    ],
)
def test_the_end_of_the_process_stops_jobs(tmp_path: Path, end: str, status: int) -> None:
    """They stop resumably, in time; another process goes on with them."""
    process = start(tmp_path, SLOW_COPY + f"    {end}\n")
    assert process.stdout is not None
    image_id = process.stdout.readline().strip()
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 3
    assert process.returncode == status, err
    assert "panicked" not in err
    assert "Fatal" not in err
    assert list(tmp_path.glob("*.out*")) == []
    with Store() as store:
        for name, place in (("a", "repository"), ("b", "repository2")):
            store.connectStorageRepository(name, "localfs-1.0", {"path": str(tmp_path / place)})
        was = store.getImageStatus("b", image_id)
        assert was["status"] == "broken"
        assert "stopped" in was["last_error"]
        for fix in store.checkStorageRepository("b"):
            store.waitTask(store.fixStorageRepository("b", fix, {"bandwidth": 1e12}), 30)
        assert store.getImageStatus("b", image_id)["status"] == "optimized"
        with store.openImage("b", image_id) as image:
            assert image.read(0, 8 * MIB) == bytes(range(256)) * (32 << 10)
        assert store.checkStorageRepository("b") == []


def test_configure(tmp_path: Path) -> None:
    out = run(
        tmp_path,
        """
        try:
            vdsmstore.configure(threads="many")
            vdsmstore.listTasks()
        except vdsmstore.InvalidParameter:
            print("refused")
        vdsmstore.configure(hostId="me", threads=1)
        repository(sys.argv[1])
        try:
            vdsmstore.configure(threads=2)
        except vdsmstore.InvalidParameter:
            print("too late")
        """,
    )
    assert out == "refused\ntoo late\n"


@pytest.mark.parametrize("memory", ["much", -1, 1 << 70, 1.5])
def test_memory_is_a_number(memory: int) -> None:
    with pytest.raises(vdsmstore.InvalidParameter):
        vdsmstore.Store(memory=memory)
