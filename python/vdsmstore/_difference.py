"""What differs between two images."""

from __future__ import annotations

import json
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from ._vdsmstore import Difference as Handle

_BATCH = 1024


class Difference:
    """An iterator of (offset, length, kind) in order, made by `diffImages`.

    kind is "data" or "zero": how the image reads there. Adjacent pieces of one kind are one. The images are
    open for reading until it is exhausted, closed or deleted. Any number of threads may use it at once: each
    piece goes to one of them.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle: Handle | None = handle
        self._found: deque[tuple[int, int, str]] = deque()
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[tuple[int, int, str]]:
        return self

    def __next__(self) -> tuple[int, int, str]:
        with self._lock:
            if not self._found and self._handle is not None:
                batch = json.loads(self._handle.next(_BATCH))
                self._found.extend((piece["offset"], piece["length"], piece["kind"]) for piece in batch)
                if not batch:
                    self._handle = None
            if not self._found:
                raise StopIteration
            return self._found.popleft()

    def close(self) -> None:
        """Closes the images; there is nothing more to come then. May be called again."""
        with self._lock:
            self._handle = None
            self._found.clear()

    def __enter__(self) -> Difference:  # noqa: PYI034
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
