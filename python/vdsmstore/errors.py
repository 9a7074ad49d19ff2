"""The errors: one class per kind.

Each has `code` (two kinds share one: tell them apart by class), `message`, `details` (a dict) and
`response()`, and is also what Python calls such an error: a `LookupError`, an `OSError` with `errno`, ...
"""

from __future__ import annotations

import errno as _errno
import json as _json
from typing import Any, ClassVar


class StorageError(Exception):
    """What every function of vdsmstore raises."""

    code: int = 100
    message: str
    details: dict[str, Any]

    def __init__(self, message: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = {} if details is None else details

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.message, self.details), {"code": self.code})

    def response(self) -> dict[str, Any]:
        """The error in VDSM's dict style."""
        return {"status": {"code": self.code, "message": self.message}}


class _SystemError(StorageError, OSError):
    """An error with `errno` and, where one is known, `filename`."""

    _errno: ClassVar[int] = _errno.EIO

    def __init__(self, message: str = "", details: dict[str, Any] | None = None) -> None:
        StorageError.__init__(self, message, details)
        self.errno = self.details.get("errno", self._errno)
        self.strerror = message
        self.filename = self.details.get("path")


class InvalidParameter(StorageError, ValueError):
    """An argument or option is unknown, malformed or out of range."""

    code = 1000


class RepositoryNotFound(StorageError, LookupError):
    """No repository is connected under that name."""

    code = 358


class RepositoryIdInUse(StorageError):
    """The name is taken by a connected repository."""

    code = 478


class RepositoryExists(StorageError):
    """The place already holds a repository."""

    code = 365


class NotEmpty(StorageError):
    """The place to format is not empty."""

    code = 361


class NotARepository(StorageError):
    """The place holds no repository."""

    code = 364


class WrongFormat(StorageError):
    """The repository has another format than the one named."""

    code = 372


class FormatUnsupported(StorageError):
    """No driver for that format."""

    code = 394


class VersionTooNew(StorageError):
    """The repository was written by a newer release, or has features that this one does not know."""

    code = 395


class ConnectionFailed(_SystemError):
    """The place cannot be reached."""

    code = 451
    _errno = _errno.ENOTCONN


class MountFailed(_SystemError):
    """The mount failed."""

    code = 477


class ReadOnlyRepository(StorageError):
    """The repository can only be read."""

    code = 4506


class ImageNotFound(StorageError, LookupError):
    """No such image."""

    code = 268


class ImageExists(StorageError):
    """The chosen image id is taken by another image."""

    code = 212


class ImageInUse(StorageError):
    """The image is open, prepared or being worked on."""

    code = 203


class ImageBroken(StorageError):
    """The image cannot be used now."""

    code = 227


class NotADisk(StorageError):
    """The image is a snapshot where a virtual disk is needed."""

    code = 4502


class NotASnapshot(StorageError):
    """The image is a virtual disk where a snapshot is needed."""

    code = 4503


class ReadOnlyImage(StorageError):
    """The image or the handle does not allow writing."""

    code = 219


class InvalidSize(StorageError, ValueError):
    """The size is not possible."""

    code = 232


class VerificationFailed(StorageError):
    """What was read back differs from what was written."""

    code = 484


class CorruptImage(StorageError):
    """The image file contradicts its format. It shares the code of VerificationFailed."""

    code = 484


class CorruptRecord(StorageError):
    """A record cannot be understood."""

    code = 752


class NoSpace(_SystemError):
    """No space left."""

    code = 397
    _errno = _errno.ENOSPC


class IoError(_SystemError):
    """The storage failed."""

    code = 4501

    @property
    def path(self) -> str | None:
        return self.details.get("path")

    @property
    def offset(self) -> int | None:
        return self.details.get("offset")

    @property
    def length(self) -> int | None:
        return self.details.get("length")


class PermissionDenied(_SystemError, PermissionError):
    """The operating system refused access."""

    code = 385
    _errno = _errno.EACCES


class StaleHandle(_SystemError):
    """A file handle went stale."""

    code = 384
    _errno = _errno.ESTALE


class LeaseLost(StorageError):
    """The lease on the image was lost."""

    code = 4505


class CannotLock(StorageError):
    """A lock could not be taken."""

    code = 651


class Conflict(StorageError):
    """Somebody else changed the record first."""

    code = 911


class FixRefused(StorageError):
    """The fix is not one that a check would list now."""

    code = 4504


class TooManyVolumes(StorageError):
    """The chain or the repository has too many volumes."""

    code = 613


class Stopped(StorageError):
    """The work was stopped; it can be resumed."""

    code = 443


class Timeout(_SystemError, TimeoutError):
    """The time given was not enough."""

    code = 851
    _errno = _errno.ETIMEDOUT


class TaskNotFound(StorageError, LookupError):
    """No such task, or its result is no longer kept."""

    code = 401


class TaskIdInUse(StorageError):
    """A running task has that name."""

    code = 406


class UnsupportedOperation(StorageError):
    """Not built, or not possible with this format."""

    code = 2009


class Closed(StorageError):
    """The store or image handle is closed."""

    code = 4507


class ForkedProcess(StorageError):
    """The store belongs to the parent process."""

    code = 4508


class Internal(StorageError):
    """A bug of ours."""

    code = 100


KINDS: dict[str, type[StorageError]] = {
    name: value
    for name, value in list(globals().items())
    if isinstance(value, type) and issubclass(value, StorageError) and not name.startswith("_")
}


def from_kind(kind: str, code: int, message: str, details: str) -> StorageError:
    """The exception of an error of the engine; `details` is JSON."""
    error = KINDS.get(kind, StorageError)(message, _json.loads(details))
    if error.code != code:  # a kind that this module does not know
        error.code = code
    return error
