//! One host between two steps of another, where both then go on.

use super::key;
use super::together::{LARGER, LOST, row};
use crate::deeds::Deed;
use crate::displaced::WAYS;
use crate::scene::Storage;
use crate::schedule::Fate;
use crate::{Begin, Row};

pub const ROWS: &[Row] = &[
    // The second host has begun from the beginning, in the same volume.
    Row {
        pauses: Some(98),
        ..row(
            "add.compare.epoch+add.compare.owner",
            "fill.flush.end",
            Storage::Overlays,
            "copy a snapshot",
            1..=2,
            Fate::Displaced(WAYS[2]),
            |_| vec![Deed::Fix],
        )
    },
    // The second host has found the snapshot forsaken, which the first one promises then.
    Row {
        first: Begin::Deed(|scene| Deed::Announce(key(scene, 0, "child"))),
        pauses: Some(69),
        ..row("clean.look.promised", "switch.marker", Storage::Overlays, "resize", 5..=11, LOST, |_| {
            vec![Deed::Fix]
        })
    },
    // The second host has made the copy, and removed what it was to be a difference to.
    row(
        "source.compare.owner",
        "source.marker.base",
        Storage::Overlays,
        "copy a disk once more onto almost the same",
        0..=2,
        Fate::Displaced(WAYS[2]),
        |scene| vec![Deed::Fix, Deed::Remove(key(scene, 1, "base"))],
    ),
    // The second host has the disk open whose header is to be corrected.
    Row {
        pauses: Some(60),
        ..row(
            "clean.look.mirrors",
            "replace.compare.held",
            Storage::Overlays,
            "give a snapshot a volume of its own",
            1..=8,
            Fate::Waits,
            |_| vec![Deed::Write],
        )
    },
    // The second host has made the header name what the record still says.
    row(
        "seal.compare.epoch",
        "seal.marker.again",
        Storage::Overlays,
        "remove a snapshot and merge up",
        -1..=1,
        Fate::Displaced(WAYS[2]),
        |scene| vec![Deed::Resize(key(scene, 0, "disk"), LARGER), Deed::Prepare(key(scene, 0, "disk"))],
    ),
    // What the disk is to be built on has been merged into it, too.
    row(
        "seal.compare.backing+seal.compare.epoch+seal.reread",
        "seal.marker.again",
        Storage::Overlays,
        "remove a snapshot and merge up",
        -1..=1,
        Fate::Displaced(WAYS[2]),
        |scene| vec![Deed::Fix, Deed::Remove(key(scene, 0, "lower")), Deed::Fix],
    ),
    // The disk is to be frozen by then.
    Row {
        first: Begin::Deed(|_| Deed::Write),
        ..row("lease.compare.freeze", "lease.token", Storage::Overlays, "resize", -7..=-2, LOST, |scene| {
            vec![Deed::Freeze(key(scene, 0, "child"))]
        })
    },
    // Its volume is that of a snapshot by then.
    Row {
        first: Begin::Deed(|_| Deed::Write),
        pauses: Some(103),
        ..row("lease.compare.state", "lease.token", Storage::Overlays, "resize", -3..=-1, LOST, |scene| {
            vec![Deed::Freeze(key(scene, 0, "child")), Deed::Remove(key(scene, 0, "child")), Deed::Fix]
        })
    },
    // The volume is there, and not built on anything yet.
    row(
        "clean.fence.other",
        "source.marker.base",
        Storage::Overlays,
        "copy a disk once more onto almost the same",
        1..=2,
        Fate::Waits,
        |_| vec![Deed::Fix],
    ),
    // The second host has taken the volume for garbage, and is answered with the id of the image that was to be on it.
    Row {
        pauses: Some(40),
        goes_on: Some(8),
        ..row(
            "create.look.joined",
            "add.marker.holder",
            Storage::Overlays,
            "create",
            -1..=0,
            Fate::Waits,
            |_| vec![Deed::Fix, Deed::Same],
        )
    },
    // What the lowest volume was built on has been merged into it, and goes.
    Row {
        pauses: Some(370),
        ..row(
            "seal.reread",
            "seal.marker.again",
            Storage::Overlays,
            "remove a snapshot and merge up",
            -3..=1,
            LOST,
            |scene| {
                vec![Deed::Announce(key(scene, 0, "disk")), Deed::Remove(key(scene, 0, "lower")), Deed::Fix]
            },
        )
    },
];
