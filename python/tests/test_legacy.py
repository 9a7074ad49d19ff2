"""VDSM's dict style."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import vdsmstore
from vdsmstore import legacy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DONE = {"code": 0, "message": "Done"}
MIB = 1 << 20


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "repository").mkdir()
    parameters = {"path": str(tmp_path / "repository")}
    assert legacy.formatStorageRepository("localfs-1.0", parameters) == {"status": DONE}
    assert legacy.connectStorageRepository("legacy", "localfs-1.0", parameters) == {"status": DONE}
    yield
    assert legacy.disconnectStorageRepository("legacy", {"force": True}) == {"status": DONE}


@pytest.mark.usefixtures("repository")
def test_results(tmp_path: Path) -> None:
    assert legacy.listStorageRepositories() == {"status": DONE, "repolist": ["legacy"]}
    made = legacy.createVirtualDisk("legacy", MIB, userData={"x": 1})
    assert made["status"] == DONE
    disk = made["uuid"]
    assert legacy.waitImage("legacy", disk)["info"]["status"] == "optimized"
    assert legacy.getImageStatus("legacy", disk)["info"]["status"] == "optimized"
    assert legacy.getImageInfo("legacy", disk)["info"]["userData"] == {"x": 1}
    assert legacy.listImages("legacy") == {"status": DONE, "imageslist": [disk]}
    assert legacy.listTasks() == {"status": DONE, "tasks": []}
    opened = legacy.openImage("legacy", disk)
    assert opened["image"].size == MIB
    opened["image"].close()
    assert legacy.diffImages("legacy", disk) == {"status": DONE, "extents": []}
    assert legacy.measureImage("legacy", disk)["info"]["fullyAllocated"] == MIB
    assert legacy.resizeVirtualDisk("legacy", disk, 2 * MIB) == {"status": DONE}
    assert legacy.setImageStrategy("legacy", disk, "space") == {"status": DONE}
    assert legacy.stopImageTask("legacy", disk) == {"status": DONE}
    assert legacy.removeImage("legacy", disk, options={"taskId": "removal"}) == {"status": DONE}
    assert legacy.waitTask(taskId="removal") == {"status": DONE}
    made = legacy.createVirtualDisk("legacy", MIB, options={"AutoFix": False})
    (fix,) = legacy.checkStorageRepository("legacy")["fixes"]
    assert fix["imageId"] == made["uuid"]
    task = legacy.fixStorageRepository("legacy", fix)["taskID"]
    assert legacy.waitTask(task, 30) == {"status": DONE}
    assert legacy.stopTask(task) == {"status": DONE}
    task = legacy.exportImage("legacy", made["uuid"], tmp_path / "file", "raw")["taskID"]
    assert legacy.waitTask(task, 30) == {"status": DONE}
    assert (tmp_path / "file").stat().st_size == MIB


@pytest.mark.usefixtures("repository")
def test_nothing_is_raised() -> None:
    assert legacy.getImageInfo("nowhere", "x")["status"]["code"] in (358, 1000)
    assert legacy.createVirtualDisk("legacy", "large")["status"]["code"] == 1000
    assert legacy.createVirtualDisk()["status"]["code"] == 1000
    assert legacy.createVirtualDisk("legacy", MIB, noSuchArgument=1)["status"]["code"] == 1000
    assert legacy.fixStorageRepository("legacy", {"type": "mend"})["status"]["code"] == 4504
    assert legacy.diffImages("legacy", "x")["status"]["code"] == 1000
    assert legacy.extendImage("legacy", "x", 512)["status"]["code"] == 2009
    assert "uuid" not in legacy.createVirtualDisk("legacy", 0)


def test_the_same_verbs() -> None:
    verbs = {
        name for name in vdsmstore.__all__ if name[0].islower() and name not in ("configure", "__version__")
    }
    assert {name for name in legacy.__all__} == {name for name in verbs if not name.startswith("_")}  # noqa: C416
