"""What is refused before anything is done."""

from __future__ import annotations

import decimal
import math
import uuid
from typing import Any

import pytest

import vdsmstore
from vdsmstore import InvalidParameter, Store

MISSING = str(uuid.uuid4())
FIX = {
    "type": "mend",
    "imageId": MISSING,
    "description": "",
    "cost": {"read": 0, "write": 0, "frees": 0, "needs": 0},
    "data": {},
}
VERBS: dict[str, tuple[Any, ...]] = {
    "connectStorageRepository": ("c", "localfs-1.0", {"path": "/nonexistent"}),
    "disconnectStorageRepository": ("a",),
    "formatStorageRepository": ("localfs-1.0", {"path": "/nonexistent"}),
    "listStorageRepositories": (),
    "getStorageRepositoryInfo": ("a",),
    "createVirtualDisk": ("a", 1 << 20, None, {}),
    "createSnapshot": ("a", MISSING, {}),
    "copyImage": ("a", MISSING, None, {}),
    "importImage": ("a", "/nonexistent", "raw", {}),
    "removeImage": ("a", MISSING),
    "getImageStatus": ("a", MISSING),
    "getImageInfo": ("a", MISSING),
    "listImages": ("a",),
    "setImageUserData": ("a", MISSING, {}),
    "openImage": ("a", MISSING, "r"),
    "prepareImage": ("a", MISSING),
    "teardownImage": ("a", MISSING),
    "waitImage": ("a", MISSING, None),
    "waitTask": ("task", None),
    "listTasks": (),
    "checkStorageRepository": ("a",),
    "fixStorageRepository": ("a", FIX),
    "setImageStrategy": ("a", MISSING, "space"),
    "resizeVirtualDisk": ("a", MISSING, 1 << 20),
    "stopImageTask": ("a", MISSING),
    "stopTask": ("task",),
    "diffImages": ("a", MISSING, None),
    "exportImage": ("a", MISSING, "/nonexistent/file", "raw"),
    "measureImage": ("a", MISSING, None),
}
UNBUILT = ["extendImage"]
# Of an image that is not there nothing runs; a path is judged before the image is looked for.
NOT_LOOKED_FOR = {"stopImageTask", "exportImage"}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("options", [{"noSuchOption": 1}, [], "x", 1, {"a": {1, 2}}, {1: 2}, {"x": math.nan}])
def test_options(store: Store, verb: str, options: Any) -> None:
    before = store.listImages("a")
    with pytest.raises(InvalidParameter) as caught:
        getattr(store, verb)(*VERBS[verb], options)
    assert caught.value.details["parameter"] == "options"
    assert store.listStorageRepositories() == ["a", "b"]
    assert store.listImages("a") == before


@pytest.mark.parametrize("verb", [verb for verb, arguments in VERBS.items() if arguments])
@pytest.mark.parametrize("value", [None, 1, b"a", ["a"], "a\0b", "\ud800"])
def test_first_argument(store: Store, verb: str, value: Any) -> None:
    with pytest.raises(InvalidParameter):
        getattr(store, verb)(value, *VERBS[verb][1:])


@pytest.mark.parametrize("verb", [verb for verb, arguments in VERBS.items() if MISSING in arguments])
@pytest.mark.parametrize("value", ["", "x", MISSING.replace("-", ""), "../../etc/passwd", f"{{{MISSING}}}"])
def test_image_ids(store: Store, verb: str, value: str) -> None:
    arguments = [value if argument == MISSING else argument for argument in VERBS[verb]]
    with pytest.raises(InvalidParameter):
        getattr(store, verb)(*arguments)


@pytest.mark.parametrize("verb", [v for v, arguments in VERBS.items() if "a" in arguments])
def test_unknown_repository(store: Store, verb: str) -> None:
    with pytest.raises(vdsmstore.RepositoryNotFound):
        getattr(store, verb)(*["nowhere" if argument == "a" else argument for argument in VERBS[verb]])


@pytest.mark.parametrize(
    "verb", [v for v, arguments in VERBS.items() if MISSING in arguments and v not in NOT_LOOKED_FOR]
)
def test_unknown_image(store: Store, verb: str) -> None:
    with pytest.raises(vdsmstore.ImageNotFound):
        getattr(store, verb)(*VERBS[verb])


@pytest.mark.parametrize("size", ["1", 1.5, True, b"1", math.inf, [512]])
def test_sizes_that_are_none(store: Store, size: Any) -> None:
    with pytest.raises(InvalidParameter):
        store.createVirtualDisk("a", size)


@pytest.mark.parametrize("size", [0, -1, -512, 1, 511, 513, 2**53, 2**62, 2**63, 2**200, -(2**63)])
def test_sizes_that_are_not_possible(store: Store, size: int) -> None:
    with pytest.raises(vdsmstore.InvalidSize):
        store.createVirtualDisk("a", size)
    assert store.listImages("a") == []


def test_no_size_needs_a_base(store: Store) -> None:
    with pytest.raises(InvalidParameter):
        store.createVirtualDisk("a", None)


class Recursive(list[Any]):
    def __init__(self) -> None:
        super().__init__([self])


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        [math.inf],
        {1: 2},
        {"a": (1, 2)},
        (1,),
        {1, 2},
        b"x",
        decimal.Decimal(1),
        object(),
        Recursive(),
        {None: 1},
    ],
)
def test_user_data_that_is_no_json(store: Store, value: Any) -> None:
    with pytest.raises(InvalidParameter) as caught:
        store.createVirtualDisk("a", 1 << 20, userData=value)
    assert caught.value.details["parameter"] == "userData"
    assert store.listImages("a") == []


@pytest.mark.parametrize("timeout", ["1", -1, -0.5, math.nan, True, [1]])
def test_timeouts(store: Store, disk: str, timeout: Any) -> None:
    with pytest.raises(InvalidParameter):
        store.waitImage("a", disk, timeout)
    with pytest.raises(InvalidParameter):
        store.waitTask("x", timeout)


@pytest.mark.parametrize("mode", ["", "w", "rb", "R", "rw ", None, 1])
def test_modes(store: Store, disk: str, mode: Any) -> None:
    with pytest.raises(InvalidParameter):
        store.openImage("a", disk, mode)


@pytest.mark.parametrize("arguments", [{"hostId": 1}, {"threads": "2"}, {"threads": -1}, {"memory": 1.5}])
def test_store_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter):
        vdsmstore.Store(**arguments)


@pytest.mark.parametrize("verb", UNBUILT)
def test_unbuilt(store: Store, verb: str) -> None:
    with pytest.raises(vdsmstore.UnsupportedOperation, match=verb):
        getattr(store, verb)("a", MISSING)


@pytest.mark.parametrize("verb", VERBS)
def test_a_closed_store(store: Store, verb: str) -> None:
    store.close()
    store.close()
    with pytest.raises(vdsmstore.Closed):
        getattr(store, verb)(*VERBS[verb])
