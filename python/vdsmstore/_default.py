"""The default store behind the functions of the module."""

from __future__ import annotations

import functools
import inspect
import threading
from typing import TYPE_CHECKING, Any

from ._arguments import invalid
from ._store import Store

if TYPE_CHECKING:
    from typing import Callable, TypeVar

    from typing_extensions import Concatenate, ParamSpec

    P = ParamSpec("P")
    R = TypeVar("R")

_lock = threading.Lock()
_store: Store | None = None
_arguments: dict[str, Any] = {}


def configure(hostId: str | None = None, threads: int | None = None, memory: int | None = None) -> None:
    """Says how the default store is opened: as `Store`. Before its first use only."""
    global _arguments  # noqa: PLW0603
    with _lock:
        if _store is not None:
            raise invalid("configure", "the default store is in use already")
        _arguments = {"hostId": hostId, "threads": threads, "memory": memory}


def default_store() -> Store:
    global _store  # noqa: PLW0603
    if _store is None:
        with _lock:
            if _store is None:
                _store = Store(**_arguments)
    return _store


def on_default(method: Callable[Concatenate[Store, P], R]) -> Callable[P, R]:
    """A verb of the default store."""

    @functools.wraps(method)
    def verb(*args: P.args, **kwargs: P.kwargs) -> R:
        return method(default_store(), *args, **kwargs)

    signature = inspect.signature(method)
    without_self = list(signature.parameters.values())[1:]
    verb.__signature__ = signature.replace(parameters=without_self)  # type: ignore[attr-defined]
    verb.__module__ = "vdsmstore"
    verb.__qualname__ = method.__name__
    return verb
