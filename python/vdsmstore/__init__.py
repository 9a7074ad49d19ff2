"""A storage engine for virtual machine images.

The functions of this module are the verbs of one default store; `Store` opens others. docs/api.md describes
every verb; `vdsmstore.legacy` offers them in VDSM's dict style.
"""

import warnings as _warnings

from ._default import configure
from ._default import on_default as _on_default
from ._difference import Difference
from ._image import Image
from ._store import Store
from ._vdsmstore import DEBUG_BUILD as _DEBUG_BUILD
from ._vdsmstore import __version__
from .errors import (
    CannotLock,
    Closed,
    Conflict,
    ConnectionFailed,
    CorruptImage,
    CorruptRecord,
    FixRefused,
    ForkedProcess,
    FormatUnsupported,
    ImageBroken,
    ImageExists,
    ImageInUse,
    ImageNotFound,
    Internal,
    InvalidParameter,
    InvalidSize,
    IoError,
    LeaseLost,
    MountFailed,
    NoSpace,
    NotADisk,
    NotARepository,
    NotASnapshot,
    NotEmpty,
    PermissionDenied,
    ReadOnlyImage,
    ReadOnlyRepository,
    RepositoryExists,
    RepositoryIdInUse,
    RepositoryNotFound,
    StaleHandle,
    Stopped,
    StorageError,
    TaskIdInUse,
    TaskNotFound,
    Timeout,
    TooManyVolumes,
    UnsupportedOperation,
    VerificationFailed,
    VersionTooNew,
    WrongFormat,
)

connectStorageRepository = _on_default(Store.connectStorageRepository)
disconnectStorageRepository = _on_default(Store.disconnectStorageRepository)
formatStorageRepository = _on_default(Store.formatStorageRepository)
listStorageRepositories = _on_default(Store.listStorageRepositories)
getStorageRepositoryInfo = _on_default(Store.getStorageRepositoryInfo)
createVirtualDisk = _on_default(Store.createVirtualDisk)
createSnapshot = _on_default(Store.createSnapshot)
copyImage = _on_default(Store.copyImage)
importImage = _on_default(Store.importImage)
removeImage = _on_default(Store.removeImage)
getImageStatus = _on_default(Store.getImageStatus)
getImageInfo = _on_default(Store.getImageInfo)
listImages = _on_default(Store.listImages)
setImageUserData = _on_default(Store.setImageUserData)
setImageStrategy = _on_default(Store.setImageStrategy)
resizeVirtualDisk = _on_default(Store.resizeVirtualDisk)
openImage = _on_default(Store.openImage)
prepareImage = _on_default(Store.prepareImage)
teardownImage = _on_default(Store.teardownImage)
diffImages = _on_default(Store.diffImages)
exportImage = _on_default(Store.exportImage)
measureImage = _on_default(Store.measureImage)
checkStorageRepository = _on_default(Store.checkStorageRepository)
fixStorageRepository = _on_default(Store.fixStorageRepository)
waitImage = _on_default(Store.waitImage)
waitTask = _on_default(Store.waitTask)
listTasks = _on_default(Store.listTasks)
stopImageTask = _on_default(Store.stopImageTask)
stopTask = _on_default(Store.stopTask)

# Not built yet: UnsupportedOperation.
extendImage = _on_default(Store.extendImage)

if _DEBUG_BUILD:
    _warnings.warn("vdsmstore was built without optimisation", RuntimeWarning, stacklevel=2)

__all__ = [
    "CannotLock",
    "Closed",
    "Conflict",
    "ConnectionFailed",
    "CorruptImage",
    "CorruptRecord",
    "Difference",
    "FixRefused",
    "ForkedProcess",
    "FormatUnsupported",
    "Image",
    "ImageBroken",
    "ImageExists",
    "ImageInUse",
    "ImageNotFound",
    "Internal",
    "InvalidParameter",
    "InvalidSize",
    "IoError",
    "LeaseLost",
    "MountFailed",
    "NoSpace",
    "NotADisk",
    "NotARepository",
    "NotASnapshot",
    "NotEmpty",
    "PermissionDenied",
    "ReadOnlyImage",
    "ReadOnlyRepository",
    "RepositoryExists",
    "RepositoryIdInUse",
    "RepositoryNotFound",
    "StaleHandle",
    "Stopped",
    "StorageError",
    "Store",
    "TaskIdInUse",
    "TaskNotFound",
    "Timeout",
    "TooManyVolumes",
    "UnsupportedOperation",
    "VerificationFailed",
    "VersionTooNew",
    "WrongFormat",
    "__version__",
    "checkStorageRepository",
    "configure",
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
