//! A host that was displaced in the middle of something goes on, after another one took its place.

use std::ops::RangeInclusive;

use super::key;
use crate::deeds::Deed;
use crate::displaced::WAYS;
use crate::scene::{CLUSTER, SIZE, Scene, Storage};
use crate::schedule::Fate;
use crate::{Begin, Row};

const LARGER: usize = SIZE + 3 * CLUSTER;

const fn row(
    switch: &'static str,
    storage: Storage,
    operation: &'static str,
    later: RangeInclusive<i64>,
    way: usize,
    second: fn(&Scene) -> Vec<Deed>,
) -> Row {
    Row {
        switch,
        at: "",
        storage,
        operation,
        first: Begin::Operation,
        nth: 0,
        later,
        fate: Fate::Displaced(WAYS[way]),
        second,
        pauses: None,
        goes_on: None,
    }
}

pub const ROWS: &[Row] = &[
    // A marker of the first host's is taken for left over, while it waits.
    Row {
        fate: Fate::Waits,
        goes_on: Some(12),
        ..row("seal.marker.again", Storage::Overlays, "remove a snapshot and merge up", -1..=1, 0, |scene| {
            vec![Deed::Announce(key(scene, 0, "disk")), Deed::Fix]
        })
    },
    // The disk grows while the first host merges it down: the lowest volume is too small by then.
    row("seal.compare.owner", Storage::Overlays, "remove a snapshot and merge down", -3..=0, 2, |scene| {
        vec![Deed::Resize(key(scene, 0, "disk"), LARGER)]
    }),
    // The image is on a volume of its own by then.
    row(
        "seal.compare.volume",
        Storage::Overlays,
        "remove a copy whose base was frozen",
        -3..=0,
        1,
        |scene| vec![Deed::Own(key(scene, 1, "base"))],
    ),
    row("resize.compare.volume", Storage::Clones, "resize", -2..=0, 1, |scene| {
        vec![Deed::Own(key(scene, 0, "child"))]
    }),
    // The first host's size is the smaller one.
    Row {
        first: Begin::Deed(|scene| Deed::Resize(key(scene, 0, "child"), LARGER)),
        ..row("resize.compare.size", Storage::Overlays, "resize", -3..=0, 2, |scene| {
            vec![Deed::Resize(key(scene, 0, "child"), LARGER + CLUSTER)]
        })
    },
    // The overlay that the second host is making is as long as the disk was.
    Row {
        pauses: Some(86),
        ..row("resize.compare.freeze", Storage::Overlays, "resize", -2..=0, 2, |scene| {
            vec![Deed::Announce(key(scene, 0, "child")), Deed::Write]
        })
    },
    // The next volume was given up, and is gone.
    row("replace.compare.next", Storage::Overlays, "give a disk a volume of its own", -3..=0, 2, |scene| {
        vec![Deed::Resize(key(scene, 0, "child"), LARGER)]
    }),
    row(
        "replace.compare.begun-state",
        Storage::Doubts,
        "give a snapshot a volume of its own",
        -4..=-1,
        2,
        |scene| vec![Deed::Remove(key(scene, 0, "upper"))],
    ),
    // The snapshots are forsaken before anybody promised them, or once nobody does any more.
    row(
        "switch.look.promised",
        Storage::Overlays,
        "snapshot announced, then the disk removed",
        -5..=-3,
        2,
        |_| vec![Deed::Fix],
    ),
    row(
        "switch.order.freeze",
        Storage::Clones,
        "two snapshots announced, then the disk opened",
        4..=6,
        0,
        |_| vec![Deed::Fix],
    ),
    // What the first host opened is frozen by then.
    row("lease.compare.volume", Storage::Overlays, "write a disk", -4..=-1, 0, |scene| {
        vec![Deed::Snapshot(key(scene, 0, "child"))]
    }),
    // What was written since is not in the volume that the image moves to.
    Row {
        goes_on: Some(1),
        ..row("lease.claim", Storage::Overlays, "remove a snapshot and merge down", -6..=0, 0, |_| {
            vec![Deed::Write]
        })
    },
    // The first host still writes there.
    row("in-place.mine", Storage::Overlays, "resize", 1..=6, 0, |_| vec![Deed::Write, Deed::Fix]),
    row("in-place.mine", Storage::Overlays, "resize", 1..=6, 0, |scene| {
        vec![Deed::Resize(key(scene, 0, "child"), LARGER), Deed::Fix]
    }),
    // The first host dies once the header names what its record was to say.
    Row {
        fate: Fate::Dies,
        ..row("in-place.doubt", Storage::Overlays, "remove a snapshot and merge up", 4..=20, 0, |scene| {
            vec![Deed::Resize(key(scene, 0, "disk"), LARGER)]
        })
    },
    Row {
        pauses: Some(35),
        ..row(
            "in-place.compare.end",
            Storage::Overlays,
            "remove a snapshot and merge up",
            -3..=0,
            1,
            |scene| vec![Deed::Resize(key(scene, 0, "disk"), LARGER), Deed::Write],
        )
    },
];
