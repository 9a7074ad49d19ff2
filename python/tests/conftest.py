"""A store with two empty repositories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import vdsmstore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[vdsmstore.Store]:
    with vdsmstore.Store(hostId="testhost") as store:
        for name in ("a", "b"):
            place = tmp_path / name
            place.mkdir()
            store.formatStorageRepository("localfs-1.0", {"path": str(place)})
            store.connectStorageRepository(name, "localfs-1.0", {"path": str(place)})
        yield store


@pytest.fixture
def disk(store: vdsmstore.Store) -> str:
    """A disk of 1 MiB in repository a."""
    disk = store.createVirtualDisk("a", MIB)
    store.waitImage("a", disk, timeout=30)
    return disk
