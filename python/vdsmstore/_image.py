"""An image open for I/O."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from . import _arguments as arguments

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from ._vdsmstore import Image as Handle

_BATCH = 1024


class Image:
    """An image open for I/O, made by `openImage`. Any number of threads may use it at once.

    Offsets and lengths are bytes; outside of the image they are `InvalidParameter`, and nothing is done.
    """

    def __init__(self, handle: Handle, mode: str) -> None:
        self._handle = handle
        self._mode = mode

    @property
    def mode(self) -> str:
        return self._mode

    @property
    def size(self) -> int:
        """The virtual size."""
        return self._handle.size()

    def read(self, offset: int, length: int) -> bytes:
        """Reads all of it, or raises."""
        offset, length = arguments.integer("offset", offset), arguments.integer("length", length)
        size = self._handle.size()
        if length < 0 or not 0 <= offset <= size - length:
            raise arguments.invalid(
                "offset", f"{length} bytes at {offset} are outside of the image of {size}"
            )
        return self._handle.read(offset, length)

    def readinto(self, offset: int, buffer: arguments.Buffer) -> int:
        """Fills a writable buffer; returns its length in bytes."""
        offset = arguments.integer("offset", offset)
        with arguments.pinned(buffer, writable=True) as (address, length):
            self._handle.read_at(offset, address, length)
            return length

    def write(self, offset: int, buffer: arguments.Buffer) -> int:
        """Writes all of a buffer; returns its length in bytes. Durable after `flush`."""
        offset = arguments.integer("offset", offset)
        data = arguments.frozen(buffer)
        if data is not None:
            self._handle.write(offset, data)
            return len(data)
        with arguments.pinned(buffer, writable=False) as (address, length):
            self._handle.write_at(offset, address, length)
            return length

    def writeZeroes(self, offset: int, length: int) -> None:
        """Makes a range read as zeroes."""
        self._handle.write_zeroes(arguments.integer("offset", offset), arguments.integer("length", length))

    def discard(self, offset: int, length: int) -> None:
        """Makes a range read as zeroes, and gives its space back where that is possible."""
        self._handle.discard(arguments.integer("offset", offset), arguments.integer("length", length))

    def flush(self) -> None:
        """Everything written before is durable after."""
        self._handle.flush()

    def extents(self) -> Iterator[tuple[int, int, str]]:
        """(offset, length, "data" or "zero" or "hole") of the whole image in order."""
        offset = 0
        while batch := json.loads(self._handle.extents(offset, _BATCH)):
            for extent in batch:
                yield extent["offset"], extent["length"], extent["kind"]
            offset = batch[-1]["offset"] + batch[-1]["length"]

    def close(self) -> None:
        """Flushes and releases the image; other calls then raise `Closed`. May be called again."""
        self._handle.close()

    def __enter__(self) -> Image:  # noqa: PYI034
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
