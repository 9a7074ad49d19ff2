"""A store: the verbs as methods."""

from __future__ import annotations

import atexit
import contextlib
import json
import weakref
from typing import TYPE_CHECKING, Any, NoReturn, Union

from . import _arguments as arguments
from ._difference import Difference
from ._image import Image
from ._vdsmstore import Store as Handle
from .errors import StorageError, UnsupportedOperation

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Callable

Options = Union["Mapping[str, Any]", None]


def _unbuilt(name: str) -> Callable[..., NoReturn]:
    def verb(self: Store, *_arguments: object, **_options: object) -> NoReturn:  # noqa: ARG001
        raise UnsupportedOperation(f"{name} is not supported by this release")

    verb.__name__ = name
    verb.__qualname__ = f"Store.{name}"
    verb.__doc__ = "Not built yet: raises UnsupportedOperation."
    return verb


class Store:
    """A set of connections and tasks, and the verbs on them. Any number of threads may use it at once.

    hostId: a label for this host (default: the machine's name). threads: how many jobs run at once
    (default 2). memory: a budget for caches in bytes.

    Every verb raises `InvalidParameter` for a wrong argument or option, `Closed` after `close`, and
    `ForkedProcess` in a forked child; the rest of its errors are listed in docs/api.md.
    """

    def __init__(
        self, hostId: str | None = None, threads: int | None = None, memory: int | None = None
    ) -> None:
        options = {
            "hostId": arguments.optional_text("hostId", hostId),
            "threads": arguments.optional_integer("threads", threads),
            "memory": arguments.optional_integer("memory", memory),
        }
        self._handle = Handle(json.dumps(options))
        _open_stores.add(self)

    def close(self) -> None:
        """Stops jobs in a resumable state within 2 s, frees leases, disconnects. May be called again."""
        self._handle.close()

    def __enter__(self) -> Store:  # noqa: PYI034
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Repositories

    def connectStorageRepository(
        self,
        repoId: str,
        repoFormat: str,
        connectionParameters: Options = None,
        options: Options = None,
    ) -> None:
        """Connects a repository under a name of the caller's."""
        self._handle.connect_storage_repository(
            arguments.text("repoId", repoId),
            arguments.text("repoFormat", repoFormat),
            arguments.dictionary("connectionParameters", connectionParameters),
            arguments.dictionary("options", options),
        )

    def disconnectStorageRepository(self, repoId: str, options: Options = None) -> None:
        """Stops what runs on the repository in a resumable state, and lets it go. Options: force."""
        self._handle.disconnect_storage_repository(
            arguments.text("repoId", repoId), arguments.dictionary("options", options)
        )

    def formatStorageRepository(
        self, repoFormat: str, connectionParameters: Options = None, options: Options = None
    ) -> None:
        """Makes an empty repository in an empty place. Options: owner, group, mode."""
        self._handle.format_storage_repository(
            arguments.text("repoFormat", repoFormat),
            arguments.dictionary("connectionParameters", connectionParameters),
            arguments.dictionary("options", options),
        )

    def listStorageRepositories(self, options: Options = None) -> list[str]:
        """The connected repositories in order of connection."""
        return _list(self._handle.list_storage_repositories(arguments.dictionary("options", options)))

    def getStorageRepositoryInfo(self, repositoryId: str, options: Options = None) -> dict[str, Any]:
        """Space, counts and capabilities."""
        return _dict(
            self._handle.get_storage_repository_info(
                arguments.text("repositoryId", repositoryId), arguments.dictionary("options", options)
            )
        )

    # Making images

    def createVirtualDisk(
        self,
        targetRepoId: str,
        size: int | None,
        baseSnapshotId: str | None = None,
        userData: Any = None,
        options: Options = None,
    ) -> str:
        """A new virtual disk; `size` None with a base: the base's. Returns its id.

        Options: AutoFix, strategy, participatingRepositories, imageHints, imageId, taskId, bandwidth.
        """
        return self._handle.create_virtual_disk(
            arguments.text("targetRepoId", targetRepoId),
            arguments.optional_size("size", size),
            arguments.optional_text("baseSnapshotId", baseSnapshotId),
            arguments.user_data({} if userData is None else userData),
            arguments.dictionary("options", options),
        )

    def createSnapshot(
        self, targetRepoId: str, baseVirtualDiskId: str, userData: Any = None, options: Options = None
    ) -> str:
        """A snapshot of a disk, which keeps its id and goes on. Returns the snapshot's id.

        Options: as createVirtualDisk.
        """
        return self._handle.create_snapshot(
            arguments.text("targetRepoId", targetRepoId),
            arguments.text("baseVirtualDiskId", baseVirtualDiskId),
            arguments.user_data({} if userData is None else userData),
            arguments.dictionary("options", options),
        )

    def copyImage(
        self,
        targetRepoId: str,
        imageId: str,
        baseImageId: str | None = None,
        userData: Any = None,
        options: Options = None,
    ) -> str:
        """A copy in the target repository: the same id for a snapshot, a new one for a disk.

        Options: as createVirtualDisk, and mutable, partial, verify.
        """
        return self._handle.copy_image(
            arguments.text("targetRepoId", targetRepoId),
            arguments.text("imageId", imageId),
            arguments.optional_text("baseImageId", baseImageId),
            arguments.user_data({} if userData is None else userData),
            arguments.dictionary("options", options),
        )

    def importImage(
        self,
        targetRepoId: str,
        path: str | os.PathLike[str],
        format: str,  # noqa: A002
        userData: Any = None,
        options: Options = None,
    ) -> str:
        """A new disk with the content of a file, "raw" or "qcow2".

        Options: as createVirtualDisk, and verify.
        """
        return self._handle.import_image(
            arguments.text("targetRepoId", targetRepoId),
            arguments.path("path", path),
            arguments.text("format", format),
            arguments.user_data({} if userData is None else userData),
            arguments.dictionary("options", options),
        )

    # Images that exist

    def removeImage(self, repositoryId: str, imageId: str, options: Options = None) -> None:
        """The id is gone at once, the space when nothing needs it. Options: AutoFix, taskId."""
        self._handle.remove_image(*_image(repositoryId, imageId, options))

    def getImageStatus(self, repositoryId: str, imageId: str, options: Options = None) -> dict[str, Any]:
        """Whether an image can be used, and what works on it."""
        return _dict(self._handle.get_image_status(*_image(repositoryId, imageId, options)))

    def getImageInfo(self, repositoryId: str, imageId: str, options: Options = None) -> dict[str, Any]:
        """What an image is."""
        return _dict(self._handle.get_image_info(*_image(repositoryId, imageId, options)))

    def listImages(self, repositoryId: str, options: Options = None) -> list[Any]:
        """Ids in order, or info dicts with `{"details": True}`. Options: details, kind, after, limit."""
        return _list(
            self._handle.list_images(
                arguments.text("repositoryId", repositoryId), arguments.dictionary("options", options)
            )
        )

    def setImageUserData(
        self, repositoryId: str, imageId: str, userData: Any, options: Options = None
    ) -> None:
        """Replaces the user data: any JSON value, up to 1 MiB."""
        self._handle.set_image_user_data(
            arguments.text("repositoryId", repositoryId),
            arguments.text("imageId", imageId),
            arguments.user_data(userData),
            arguments.dictionary("options", options),
        )

    def openImage(self, repositoryId: str, imageId: str, mode: str = "r", options: Options = None) -> Image:
        """Opens an image for I/O in this process; "rw" (disks) leases it."""
        handle = self._handle.open_image(
            arguments.text("repositoryId", repositoryId),
            arguments.text("imageId", imageId),
            arguments.text("mode", mode),
            arguments.dictionary("options", options),
        )
        return Image(handle, mode)

    def prepareImage(self, repositoryId: str, imageId: str, options: Options = None) -> dict[str, Any]:
        """Makes an image ready for QEMU, durably. Options: readOnly."""
        return _dict(self._handle.prepare_image(*_image(repositoryId, imageId, options)))

    def teardownImage(self, repositoryId: str, imageId: str, options: Options = None) -> None:
        """Releases a prepared image. Options: force."""
        self._handle.teardown_image(*_image(repositoryId, imageId, options))

    def setImageStrategy(
        self, repositoryId: str, imageId: str, strategy: str, options: Options = None
    ) -> None:
        """Says which representation is the best, "space" or "performance"; a fix brings the image there."""
        self._handle.set_image_strategy(
            arguments.text("repositoryId", repositoryId),
            arguments.text("imageId", imageId),
            arguments.text("strategy", strategy),
            arguments.dictionary("options", options),
        )

    def resizeVirtualDisk(self, repositoryId: str, imageId: str, size: int, options: Options = None) -> None:
        """Grows a disk; the new bytes read as zeroes. Complete when it returns. Options: AutoFix."""
        self._handle.resize_virtual_disk(
            arguments.text("repositoryId", repositoryId),
            arguments.text("imageId", imageId),
            arguments.size("size", size),
            arguments.dictionary("options", options),
        )

    # Reading images for others

    def diffImages(
        self, repositoryId: str, imageId: str, baseImageId: str | None = None, options: Options = None
    ) -> Difference:
        """(offset, length, "data" or "zero") of what differs from the base, or of what the image has."""
        handle = self._handle.diff_images(
            arguments.text("repositoryId", repositoryId),
            arguments.text("imageId", imageId),
            arguments.optional_text("baseImageId", baseImageId),
            arguments.dictionary("options", options),
        )
        return Difference(handle)

    def exportImage(
        self,
        repositoryId: str,
        imageId: str,
        path: str | os.PathLike[str],
        format: str,  # noqa: A002
        options: Options = None,
    ) -> str:
        """Starts writing an image to a file, "raw" or "qcow2"; returns the task's id.

        The file has its name only when it is whole. Options: overwrite, compress ("zstd" or "deflate",
        for qcow2), taskId, bandwidth.
        """
        return self._handle.export_image(
            arguments.text("repositoryId", repositoryId),
            arguments.text("imageId", imageId),
            arguments.path("path", path),
            arguments.text("format", format),
            arguments.dictionary("options", options),
        )

    def measureImage(
        self, repositoryId: str, imageId: str, baseImageId: str | None = None, options: Options = None
    ) -> dict[str, int]:
        """What a copy, or the difference to the base, would take. Options: format ("raw" or "qcow2")."""
        return _dict(
            self._handle.measure_image(
                arguments.text("repositoryId", repositoryId),
                arguments.text("imageId", imageId),
                arguments.optional_text("baseImageId", baseImageId),
                arguments.dictionary("options", options),
            )
        )

    # What is unfinished

    def checkStorageRepository(self, repositoryId: str, options: Options = None) -> list[dict[str, Any]]:
        """The fixes that the repository needs: each survives JSON, and any host may run it.

        Takes no locks, changes nothing. Options: exactCost.
        """
        return _list(
            self._handle.check_storage_repository(
                arguments.text("repositoryId", repositoryId), arguments.dictionary("options", options)
            )
        )

    def fixStorageRepository(self, repositoryId: str, fix: Mapping[str, Any], options: Options = None) -> str:
        """Starts one fix; returns the task's id. Options: taskId, bandwidth."""
        return self._handle.fix_storage_repository(
            arguments.text("repositoryId", repositoryId),
            arguments.required_dictionary("fix", fix),
            arguments.dictionary("options", options),
        )

    # What runs

    def stopImageTask(self, repositoryId: str, imageId: str, options: Options = None) -> None:
        """Stops what runs on an image here, resumably; returns when it has stopped."""
        self._handle.stop_image_task(*_image(repositoryId, imageId, options))

    def stopTask(self, taskId: str, options: Options = None) -> None:
        """Stops a task, resumably; returns when it has stopped."""
        self._handle.stop_task(arguments.text("taskId", taskId), arguments.dictionary("options", options))

    def waitImage(
        self, repositoryId: str, imageId: str, timeout: float | None = None, options: Options = None
    ) -> dict[str, Any]:
        """The status once no task of this store runs on the image. Options: status ("optimized")."""
        return _dict(
            self._handle.wait_image(
                arguments.text("repositoryId", repositoryId),
                arguments.text("imageId", imageId),
                arguments.timeout(timeout),
                arguments.dictionary("options", options),
            )
        )

    def waitTask(self, taskId: str, timeout: float | None = None, options: Options = None) -> None:
        """Waits until a task has ended; raises what it failed with."""
        self._handle.wait_task(
            arguments.text("taskId", taskId),
            arguments.timeout(timeout),
            arguments.dictionary("options", options),
        )

    def listTasks(self, options: Options = None) -> list[dict[str, Any]]:
        """What runs in this store."""
        return _list(self._handle.list_tasks(arguments.dictionary("options", options)))

    # A verb of the contract that this release has not built

    extendImage = _unbuilt("extendImage")


def _image(repositoryId: str, imageId: str, options: Options) -> tuple[str, str, str]:
    return (
        arguments.text("repositoryId", repositoryId),
        arguments.text("imageId", imageId),
        arguments.dictionary("options", options),
    )


def _dict(text: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text)
    return value


def _list(text: str) -> list[Any]:
    value: list[Any] = json.loads(text)
    return value


_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for store in list(_open_stores):
        # In a forked child they are the parent's.
        with contextlib.suppress(StorageError):
            store.close()
