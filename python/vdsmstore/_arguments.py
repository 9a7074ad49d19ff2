"""Python values as the engine takes them: every wrong one is InvalidParameter, whatever its type."""

from __future__ import annotations

import ctypes
import json
import math
import os
import threading
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Union

from .errors import InvalidParameter, InvalidSize

if TYPE_CHECKING:
    from collections.abc import Iterator

INT64_MAX = 2**63 - 1


def invalid(name: str, reason: str) -> InvalidParameter:
    return InvalidParameter(f"{name}: {reason}", {"parameter": name})


def text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise invalid(name, f"is a str, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid(name, "is not a text that UTF-8 can hold") from None
    return value


def optional_text(name: str, value: object) -> str | None:
    return None if value is None else text(name, value)


def path(name: str, value: object) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return text(name, value)


def integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise invalid(name, f"is an int, not {type(value).__name__}")
    number = int(value.__index__())  # type: ignore[attr-defined]
    if not -INT64_MAX <= number <= INT64_MAX:
        raise invalid(name, f"{number} is out of range")
    return number


def optional_integer(name: str, value: object) -> int | None:
    return None if value is None else integer(name, value)


def size(name: str, value: object) -> int:
    if isinstance(value, int) and not -INT64_MAX <= value <= INT64_MAX:
        raise InvalidSize(f"{name}: {value} is out of range", {"parameter": name})
    return integer(name, value)


def optional_size(name: str, value: object) -> int | None:
    return None if value is None else size(name, value)


def timeout(value: object) -> float:
    """Seconds; negative: none."""
    if value is None:
        return -1.0
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise invalid("timeout", f"is a number or None, not {type(value).__name__}")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if math.isnan(seconds) or seconds < 0:
        raise invalid("timeout", f"{value} is no time to wait")
    return seconds if seconds < threading.TIMEOUT_MAX else -1.0


def dictionary(name: str, value: Mapping[str, Any] | None) -> str:
    """A dict as JSON; None: {}."""
    return "{}" if value is None else required_dictionary(name, value)


def required_dictionary(name: str, value: object) -> str:
    if not isinstance(value, Mapping):
        raise invalid(name, f"is a dict, not {type(value).__name__}")
    return _json(name, dict(value))


def user_data(value: object) -> str:
    return _json("userData", value)


def _json(name: str, value: object) -> str:
    try:
        encoded = json.dumps(value, allow_nan=False, separators=(",", ":"))
        same = bool(json.loads(encoded) == value)
    except (TypeError, ValueError, RecursionError) as error:
        raise invalid(name, f"is no JSON: {error}") from None
    if not same:
        raise invalid(name, "would not come back from JSON as it is (tuples, keys that are no texts)")
    return encoded


Buffer = Union[bytes, bytearray, memoryview, Any]


@contextmanager
def pinned(value: Buffer, *, writable: bool) -> Iterator[tuple[int, int]]:
    """The address and length of a buffer, which can neither move nor shrink meanwhile."""
    with _view(value) as view:
        if view.readonly and writable:
            raise invalid("buffer", "cannot be written")
        if not view.c_contiguous:
            raise invalid("buffer", "is not contiguous")
        if view.nbytes == 0:
            yield 0, 0
            return
        with view.cast("B") as flat:
            hold = ctypes.c_char.from_buffer(flat)
            try:
                yield ctypes.addressof(hold), flat.nbytes
            finally:
                del hold


def frozen(value: Buffer) -> bytes | None:
    """The bytes of a buffer that is read-only, which cannot be pinned; None for others."""
    if isinstance(value, bytes):
        return value
    with _view(value) as view:
        return view.tobytes() if view.readonly else None


def _view(value: Buffer) -> memoryview:
    try:
        return memoryview(value)
    except TypeError:
        raise invalid("buffer", f"is a buffer, not {type(value).__name__}") from None
