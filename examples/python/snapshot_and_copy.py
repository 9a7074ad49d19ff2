#!/usr/bin/env python3
"""A disk is made, written to, snapshotted, and backed up twice: the second copy takes only what changed.

mkdir /tmp/example && ./snapshot_and_copy.py /tmp/example
"""

from __future__ import annotations

import sys
from pathlib import Path

import vdsmstore

GIB = 1 << 30


def repository(store: vdsmstore.Store, folder: Path, name: str) -> None:
    """Makes a repository in a new folder and connects it under a name."""
    place = folder / name
    place.mkdir()
    store.formatStorageRepository("localfs-1.0", {"path": str(place)})
    store.connectStorageRepository(name, "localfs-1.0", {"path": str(place)})


def run_guest(store: vdsmstore.Store, disk: str, text: bytes) -> None:
    """Stands for a virtual machine that writes to its disk."""
    with store.openImage("fast", disk, "rw") as image:
        image.write(4096, text)
        image.flush()


def main(folder: Path) -> None:
    with vdsmstore.Store(hostId="example") as store:
        repository(store, folder, "fast")
        repository(store, folder, "backup")
        disk = store.createVirtualDisk("fast", GIB, userData={"name": "system"})
        store.waitImage("fast", disk)

        run_guest(store, disk, b"monday")
        monday = store.copyImage("backup", disk, userData={"day": "monday"}, options={"mutable": False})
        print("monday:", store.waitImage("backup", monday)["status"])

        run_guest(store, disk, b"tuesday")
        tuesday = store.copyImage("backup", disk, monday, {"day": "tuesday"}, {"mutable": False})
        print("tuesday:", store.waitImage("backup", tuesday)["status"])

        for info in store.listImages("backup", {"details": True}):
            print(info["imageId"], info["userData"]["day"], info["allocated"], "bytes")
        with store.openImage("backup", tuesday) as image:
            print(image.read(4096, 7).decode())
            data = sum(length for _, length, kind in image.extents() if kind == "data")
            print("data:", data, "of", image.size)

        try:
            store.removeImage("backup", disk)
        except vdsmstore.ImageNotFound as error:
            print("as expected:", error)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
