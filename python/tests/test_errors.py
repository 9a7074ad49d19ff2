"""Every kind of error: class, code, bases, attributes."""

from __future__ import annotations

import errno
import pickle

import pytest

import vdsmstore
from vdsmstore import errors

KINDS: dict[str, tuple[int, tuple[type[BaseException], ...]]] = {
    "InvalidParameter": (1000, (ValueError,)),
    "RepositoryNotFound": (358, (LookupError,)),
    "RepositoryIdInUse": (478, ()),
    "RepositoryExists": (365, ()),
    "NotEmpty": (361, ()),
    "NotARepository": (364, ()),
    "WrongFormat": (372, ()),
    "FormatUnsupported": (394, ()),
    "VersionTooNew": (395, ()),
    "ConnectionFailed": (451, (OSError,)),
    "MountFailed": (477, (OSError,)),
    "ReadOnlyRepository": (4506, ()),
    "ImageNotFound": (268, (LookupError,)),
    "ImageExists": (212, ()),
    "ImageInUse": (203, ()),
    "ImageBroken": (227, ()),
    "NotADisk": (4502, ()),
    "NotASnapshot": (4503, ()),
    "ReadOnlyImage": (219, ()),
    "InvalidSize": (232, (ValueError,)),
    "VerificationFailed": (484, ()),
    "CorruptImage": (484, ()),
    "CorruptRecord": (752, ()),
    "NoSpace": (397, (OSError,)),
    "IoError": (4501, (OSError,)),
    "PermissionDenied": (385, (OSError, PermissionError)),
    "StaleHandle": (384, (OSError,)),
    "LeaseLost": (4505, ()),
    "CannotLock": (651, ()),
    "Conflict": (911, ()),
    "FixRefused": (4504, ()),
    "TooManyVolumes": (613, ()),
    "Stopped": (443, ()),
    "Timeout": (851, (TimeoutError, OSError)),
    "TaskNotFound": (401, (LookupError,)),
    "TaskIdInUse": (406, ()),
    "UnsupportedOperation": (2009, ()),
    "Closed": (4507, ()),
    "ForkedProcess": (4508, ()),
    "Internal": (100, ()),
}
BUILTIN = (ValueError, LookupError, OSError)


def test_there_are_no_others() -> None:
    assert set(errors.KINDS) == {*KINDS, "StorageError"}


@pytest.mark.parametrize("kind", KINDS)
def test_kind(kind: str) -> None:
    code, bases = KINDS[kind]
    error = errors.from_kind(kind, code, "it: no", '{"errno": 5, "path": "/x", "more": [1]}')
    assert type(error) is getattr(vdsmstore, kind)
    assert isinstance(error, vdsmstore.StorageError)
    for base in BUILTIN:
        assert isinstance(error, base) == any(issubclass(wanted, base) for wanted in bases)
    assert all(isinstance(error, base) for base in bases)
    assert error.code == code
    assert error.message == str(error) == "it: no"
    assert error.details == {"errno": 5, "path": "/x", "more": [1]}
    assert error.response() == {"status": {"code": code, "message": "it: no"}}
    if isinstance(error, OSError):
        assert (error.errno, error.filename, error.strerror) == (5, "/x", "it: no")


@pytest.mark.parametrize("kind", KINDS)
def test_pickles(kind: str) -> None:
    error = errors.from_kind(kind, KINDS[kind][0], "no", '{"errno": 5}')
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(again) is type(error)
    assert (again.message, again.details, again.code) == (error.message, error.details, error.code)
    assert getattr(again, "errno", None) == getattr(error, "errno", None)


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (vdsmstore.NoSpace, errno.ENOSPC),
        (vdsmstore.IoError, errno.EIO),
        (vdsmstore.PermissionDenied, errno.EACCES),
        (vdsmstore.StaleHandle, errno.ESTALE),
        (vdsmstore.Timeout, errno.ETIMEDOUT),
    ],
)
def test_errno_without_details(kind: type[OSError], number: int) -> None:
    assert kind("no").errno == number


def test_io_error_says_where() -> None:
    error = vdsmstore.IoError("no", {"path": "/x", "offset": 512, "length": 10})
    assert (error.path, error.offset, error.length) == ("/x", 512, 10)


def test_a_kind_from_the_future() -> None:
    error = errors.from_kind("Surprise", 77, "no", "{}")
    assert type(error) is vdsmstore.StorageError
    assert error.code == 77
    assert error.response()["status"]["code"] == 77
