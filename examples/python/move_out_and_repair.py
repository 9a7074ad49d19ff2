#!/usr/bin/env python3
"""Work is left to somebody else, who finds and finishes it; a disk leaves as a qcow2 file and comes back.

mkdir /tmp/example && ./move_out_and_repair.py /tmp/example
"""

from __future__ import annotations

import sys
from pathlib import Path

import vdsmstore

MIB = 1 << 20


def repair(store: vdsmstore.Store, name: str) -> None:
    """What a timer does on any host: completes, merges, cleans."""
    while fixes := store.checkStorageRepository(name):
        for fix in fixes:
            print(f"{fix['type']}: {fix['description']}, at most {fix['cost']['write']} bytes written")
            store.waitTask(store.fixStorageRepository(name, fix))


def main(folder: Path) -> None:
    place = {"path": str(folder / "images")}
    (folder / "images").mkdir()
    with vdsmstore.Store(hostId="one") as store:
        store.formatStorageRepository("localfs-1.0", place)
        store.connectStorageRepository("images", "localfs-1.0", place)
        # Only recorded: this host has no time for it.
        disk = store.createVirtualDisk("images", 64 * MIB, options={"AutoFix": False})
        print("on this host:", store.getImageStatus("images", disk)["status"])

    with vdsmstore.Store(hostId="another") as store:
        store.connectStorageRepository("images", "localfs-1.0", place)
        repair(store, "images")
        print("on another:", store.getImageStatus("images", disk)["status"])

        with store.openImage("images", disk, "rw") as image:
            image.write(0, b"before" * 1000)
        snapshot = store.createSnapshot("images", disk)
        with store.openImage("images", disk, "rw") as image:
            image.write(8 * MIB, b"after" * 1000)
        store.resizeVirtualDisk("images", disk, 128 * MIB)
        for offset, length, kind in store.diffImages("images", disk, snapshot):
            print(f"differs: {length} bytes of {kind} at {offset}")

        print("a file of", store.measureImage("images", disk, None, {"format": "qcow2"})["required"], "bytes")
        store.waitTask(store.exportImage("images", disk, folder / "disk.qcow2", "qcow2"))
        again = store.importImage("images", folder / "disk.qcow2", "qcow2")
        store.waitImage("images", again)
        print("differences to the disk that came back:", list(store.diffImages("images", again, disk)))

        # Removed, and its data is merged into what was built on it.
        store.removeImage("images", snapshot, {"AutoFix": False})
        repair(store, "images")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
