"""The verbs in VDSM's dict style: none raises, each returns `{"status": {"code": ..., "message": ...}}`.

Code 0 and message "Done" stand for success; the result of the verb, if it has one, is beside it: an image id
under `uuid`, a dict under `info`, fixes under `fixes`, a task id under `taskID`, lists under `imageslist`,
`repolist` and `tasks`, what differs under `extents`, an open image (whose methods do raise) under `image`.
"""

from __future__ import annotations

import functools as _functools
import inspect as _inspect
from typing import Any, Callable

import vdsmstore as _vdsmstore

from .errors import InvalidParameter as _InvalidParameter
from .errors import StorageError as _StorageError

_RESULTS: dict[str, str | None] = {
    "connectStorageRepository": None,
    "disconnectStorageRepository": None,
    "formatStorageRepository": None,
    "listStorageRepositories": "repolist",
    "getStorageRepositoryInfo": "info",
    "createVirtualDisk": "uuid",
    "createSnapshot": "uuid",
    "copyImage": "uuid",
    "importImage": "uuid",
    "removeImage": None,
    "getImageStatus": "info",
    "getImageInfo": "info",
    "listImages": "imageslist",
    "setImageUserData": None,
    "openImage": "image",
    "prepareImage": "info",
    "teardownImage": None,
    "waitImage": "info",
    "waitTask": None,
    "listTasks": "tasks",
    "checkStorageRepository": "fixes",
    "fixStorageRepository": "taskID",
    "setImageStrategy": None,
    "resizeVirtualDisk": None,
    "stopImageTask": None,
    "stopTask": None,
    "diffImages": "extents",
    "exportImage": "taskID",
    "measureImage": "info",
    "extendImage": "allocated",
}


def _legacy(name: str, result: str | None) -> Callable[..., dict[str, Any]]:
    verb = getattr(_vdsmstore, name)
    signature = _inspect.signature(verb)

    @_functools.wraps(verb)
    def legacy(*args: object, **kwargs: object) -> dict[str, Any]:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            return _InvalidParameter(f"{name}: {error}").response()
        try:
            value = verb(*args, **kwargs)
            if isinstance(value, _vdsmstore.Difference):  # it could raise later
                value = list(value)
        except _StorageError as error:
            return error.response()
        except Exception as error:  # noqa: BLE001
            return _StorageError(f"{name}: {error!r}").response()
        response: dict[str, Any] = {"status": {"code": 0, "message": "Done"}}
        if result is not None:
            response[result] = value
        return response

    legacy.__module__ = __name__
    return legacy


connectStorageRepository = _legacy("connectStorageRepository", _RESULTS["connectStorageRepository"])
disconnectStorageRepository = _legacy("disconnectStorageRepository", _RESULTS["disconnectStorageRepository"])
formatStorageRepository = _legacy("formatStorageRepository", _RESULTS["formatStorageRepository"])
listStorageRepositories = _legacy("listStorageRepositories", _RESULTS["listStorageRepositories"])
getStorageRepositoryInfo = _legacy("getStorageRepositoryInfo", _RESULTS["getStorageRepositoryInfo"])
createVirtualDisk = _legacy("createVirtualDisk", _RESULTS["createVirtualDisk"])
createSnapshot = _legacy("createSnapshot", _RESULTS["createSnapshot"])
copyImage = _legacy("copyImage", _RESULTS["copyImage"])
importImage = _legacy("importImage", _RESULTS["importImage"])
removeImage = _legacy("removeImage", _RESULTS["removeImage"])
getImageStatus = _legacy("getImageStatus", _RESULTS["getImageStatus"])
getImageInfo = _legacy("getImageInfo", _RESULTS["getImageInfo"])
listImages = _legacy("listImages", _RESULTS["listImages"])
setImageUserData = _legacy("setImageUserData", _RESULTS["setImageUserData"])
openImage = _legacy("openImage", _RESULTS["openImage"])
prepareImage = _legacy("prepareImage", _RESULTS["prepareImage"])
teardownImage = _legacy("teardownImage", _RESULTS["teardownImage"])
waitImage = _legacy("waitImage", _RESULTS["waitImage"])
waitTask = _legacy("waitTask", _RESULTS["waitTask"])
listTasks = _legacy("listTasks", _RESULTS["listTasks"])
checkStorageRepository = _legacy("checkStorageRepository", _RESULTS["checkStorageRepository"])
fixStorageRepository = _legacy("fixStorageRepository", _RESULTS["fixStorageRepository"])
setImageStrategy = _legacy("setImageStrategy", _RESULTS["setImageStrategy"])
resizeVirtualDisk = _legacy("resizeVirtualDisk", _RESULTS["resizeVirtualDisk"])
stopImageTask = _legacy("stopImageTask", _RESULTS["stopImageTask"])
stopTask = _legacy("stopTask", _RESULTS["stopTask"])
diffImages = _legacy("diffImages", _RESULTS["diffImages"])
exportImage = _legacy("exportImage", _RESULTS["exportImage"])
measureImage = _legacy("measureImage", _RESULTS["measureImage"])
extendImage = _legacy("extendImage", _RESULTS["extendImage"])

__all__ = [
    "checkStorageRepository",
    "connectStorageRepository",
    "copyImage",
    "createSnapshot",
    "createVirtualDisk",
    "diffImages",
    "disconnectStorageRepository",
    "exportImage",
    "extendImage",
    "fixStorageRepository",
    "formatStorageRepository",
    "getImageInfo",
    "getImageStatus",
    "getStorageRepositoryInfo",
    "importImage",
    "listImages",
    "listStorageRepositories",
    "listTasks",
    "measureImage",
    "openImage",
    "prepareImage",
    "removeImage",
    "resizeVirtualDisk",
    "setImageStrategy",
    "setImageUserData",
    "stopImageTask",
    "stopTask",
    "teardownImage",
    "waitImage",
    "waitTask",
]
