"""I/O on an open image."""

from __future__ import annotations

import array
import mmap
import threading
from typing import TYPE_CHECKING, Any

import pytest

import vdsmstore
from vdsmstore import InvalidParameter, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20


@pytest.fixture
def image(store: Store, disk: str) -> Iterator[vdsmstore.Image]:
    with store.openImage("a", disk, "rw") as image:
        yield image


def test_reads_what_was_written(image: vdsmstore.Image) -> None:
    assert image.size == MIB
    assert image.mode == "rw"
    assert image.read(0, MIB) == bytes(MIB)
    assert image.write(1000, b"hello") == 5
    image.flush()
    assert image.read(999, 7) == b"\0hello\0"
    image.writeZeroes(1001, 3)
    assert image.read(1000, 5) == b"h\0\0\0o"
    image.discard(0, MIB)
    assert image.read(0, MIB) == bytes(MIB)
    assert image.read(MIB, 0) == b""


def buffers() -> Iterator[Any]:
    yield b"0123456789abcdef"
    yield bytearray(b"0123456789abcdef")
    yield memoryview(b"0123456789abcdef")
    yield memoryview(bytearray(b"xx0123456789abcdefxx"))[2:18]
    yield array.array("I", [1, 2, 3, 4])
    yield memoryview(bytearray(b"0123456789abcdef")).cast("B", (4, 4))
    pages = mmap.mmap(-1, 16)
    pages.write(b"0123456789abcdef")
    yield pages


@pytest.mark.parametrize("buffer", list(buffers()), ids=lambda buffer: type(buffer).__name__)
def test_any_buffer_is_written(image: vdsmstore.Image, buffer: Any) -> None:
    content = memoryview(buffer).tobytes()
    assert image.write(512, buffer) == 16
    assert image.read(512, 16) == content


def test_readinto(image: vdsmstore.Image) -> None:
    image.write(0, b"0123456789abcdef")
    buffer = bytearray(20)
    assert image.readinto(0, memoryview(buffer)[2:18]) == 16
    assert buffer == b"\0\x000123456789abcdef\0\0"
    words = array.array("I", [0, 0, 0, 0])
    assert image.readinto(0, words) == 16
    assert words.tobytes() == b"0123456789abcdef"
    assert image.readinto(0, bytearray()) == 0
    assert image.write(0, bytearray()) == 0
    buffer.extend(b"not pinned any more")


@pytest.mark.parametrize("buffer", [b"x", memoryview(b"x"), "x", 1, None, memoryview(bytearray(8))[::2]])
def test_buffers_that_cannot_be_filled(image: vdsmstore.Image, buffer: Any) -> None:
    with pytest.raises(InvalidParameter):
        image.readinto(0, buffer)


@pytest.mark.parametrize("buffer", ["x", 1, None, memoryview(bytearray(8))[::2]])
def test_buffers_that_cannot_be_written(image: vdsmstore.Image, buffer: Any) -> None:
    with pytest.raises(InvalidParameter):
        image.write(0, buffer)


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (-1, 1),
        (0, -1),
        (MIB, 1),
        (MIB + 1, 0),
        (0, MIB + 1),
        (MIB - 1, 2),
        (2**62, 2**62),
        (0, 2**63),
        ("0", 1),
        (0, 1.0),
    ],
)
def test_ranges_outside(image: vdsmstore.Image, offset: Any, length: Any) -> None:
    for call in (image.read, image.writeZeroes, image.discard):
        with pytest.raises(InvalidParameter):
            call(offset, length)


@pytest.mark.parametrize("offset", [-1, MIB - 1, MIB, 2**62, 2**63, "0"])
def test_offsets_outside(image: vdsmstore.Image, offset: Any) -> None:
    with pytest.raises(InvalidParameter):
        image.write(offset, b"xy")
    with pytest.raises(InvalidParameter):
        image.readinto(offset, bytearray(2))


def test_extents(store: Store) -> None:
    disk = store.createVirtualDisk("a", 64 * MIB)
    store.waitImage("a", disk, timeout=30)
    with store.openImage("a", disk, "rw") as image:
        image.write(32 * MIB, b"x" * MIB)
        image.flush()
        extents = list(image.extents())
    end = 0
    for offset, length, kind in extents:
        assert offset == end
        assert length > 0
        assert kind in ("data", "zero", "hole")
        end = offset + length
    assert end == 64 * MIB
    data = [(offset, length) for offset, length, kind in extents if kind == "data"]
    assert any(offset <= 32 * MIB and offset + length >= 33 * MIB for offset, length in data)
    assert sum(length for _, length in data) < 2 * MIB


def test_read_only(store: Store, disk: str) -> None:
    with store.openImage("a", disk) as image:
        for call in (
            lambda: image.write(0, b"x"),
            lambda: image.writeZeroes(0, 512),
            lambda: image.discard(0, 512),
        ):
            with pytest.raises(vdsmstore.ReadOnlyImage):
                call()


def test_one_writer(store: Store, disk: str) -> None:
    with store.openImage("a", disk, "rw"), pytest.raises(vdsmstore.ImageInUse) as caught:
        store.openImage("a", disk, "rw")
    assert caught.value.details.get("host")
    store.openImage("a", disk, "rw").close()


def test_closed(image: vdsmstore.Image) -> None:
    image.close()
    image.close()
    for call in (
        lambda: image.read(0, 1),
        lambda: image.readinto(0, bytearray(1)),
        lambda: image.write(0, b"x"),
        lambda: image.size,
        lambda: list(image.extents()),
        image.flush,
    ):
        with pytest.raises(vdsmstore.Closed):
            call()


def test_a_dropped_image_is_released(store: Store, disk: str) -> None:
    image = store.openImage("a", disk, "rw")
    del image
    store.openImage("a", disk, "rw").close()


def test_one_image_in_many_threads(image: vdsmstore.Image) -> None:
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            content = bytes([number]) * 4096
            for _ in range(50):
                image.write(number * 4096, content)
                assert image.read(number * 4096, 4096) == content
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
