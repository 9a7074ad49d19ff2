//! What takes two hosts and a moment of each; and what several safeguards keep from going wrong, each of which is enough.

use std::ops::RangeInclusive;

use super::key;
use crate::deeds::Deed;
use crate::displaced::WAYS;
use crate::scene::{CLUSTER, SIZE, Scene, Storage};
use crate::schedule::Fate;
use crate::{Begin, Row};

/// It lost its locks without notice, and may still write.
pub(super) const LOST: Fate = Fate::Displaced(WAYS[0]);
pub(super) const LARGER: usize = SIZE + 3 * CLUSTER;
const MERGE_DOWN: &str = "remove a snapshot and merge down";

pub(super) const fn row(
    switch: &'static str,
    at: &'static str,
    storage: Storage,
    operation: &'static str,
    later: RangeInclusive<i64>,
    fate: Fate,
    second: fn(&Scene) -> Vec<Deed>,
) -> Row {
    Row {
        switch,
        at,
        storage,
        operation,
        first: Begin::Operation,
        nth: 0,
        later,
        fate,
        second,
        pauses: None,
        goes_on: None,
    }
}

/// Something is to be built on the snapshot that the second host merges away.
const fn merged_away(switch: &'static str, later: i64, pauses: u64) -> Row {
    Row {
        first: Begin::Deed(|scene| Deed::CreateOn(key(scene, 0, "upper"))),
        pauses: Some(pauses),
        ..row(switch, "add.look.base", Storage::Overlays, MERGE_DOWN, later..=later, Fate::Waits, |scene| {
            vec![Deed::Remove(key(scene, 0, "upper")), Deed::Fix]
        })
    }
}

pub const ROWS: &[Row] = &[
    // The second host has announced another volume for the image, and has not taken the first host's away yet.
    Row {
        first: Begin::Deed(|scene| Deed::Own(key(scene, 0, "child"))),
        pauses: Some(65),
        ..row("mend.compare.filled", "fill.flush.end", Storage::Overlays, "resize", 0..=2, LOST, |_| {
            vec![Deed::Fix]
        })
    },
    merged_away("add.compare.absorbed", -17, 217),
    merged_away("absorb.look", -22, 196),
    merged_away("absorb.flag", -16, 217),
    // The second host has read the volume as one that is being filled, and nobody's.
    merged_away("clean.compare.filled", -7, 70),
    // The base was frozen for this copy, and is cleaned away before that is built on it.
    row("source.look.base", "", Storage::Overlays, "copy a disk onto a disk", -6..=-2, Fate::Waits, |_| {
        vec![Deed::Fix]
    }),
    Row {
        pauses: Some(119),
        ..row(
            "resize.compare.next",
            "resize.compare.held",
            Storage::Overlays,
            "resize",
            -9..=-2,
            LOST,
            |scene| vec![Deed::Own(key(scene, 0, "child"))],
        )
    },
    Row {
        pauses: Some(94),
        ..row(
            "switch.look.base",
            "",
            Storage::Overlays,
            "two snapshots announced, then the disk opened",
            -22..=-20,
            LOST,
            |scene| {
                let remove = |name| Deed::Remove(key(scene, 0, name));
                vec![remove("new"), remove("second"), Deed::Fix]
            },
        )
    },
    // The disk was written since it was copied.
    row(
        "replace.compare.held+replace.compare.token+replace.compare.next",
        "",
        Storage::Overlays,
        "give a disk a volume of its own",
        -2..=0,
        LOST,
        |_| vec![Deed::Write],
    ),
    row(
        "replace.compare.volume+replace.compare.next",
        "replace.compare.held",
        Storage::Overlays,
        "give a disk a volume of its own",
        -1..=0,
        LOST,
        |scene| vec![Deed::Snapshot(key(scene, 0, "child"))],
    ),
    row(
        "lease.compare.next+lease.next",
        "fill.flush.end",
        Storage::Overlays,
        "give a disk a volume of its own",
        -21..=-20,
        LOST,
        |_| vec![Deed::Write],
    ),
    // The image that stays was read after the disk grew, and its volume before.
    Row {
        pauses: Some(66),
        ..row("merge.reread.upper", "merge.reread", Storage::Overlays, MERGE_DOWN, 3..=5, LOST, |scene| {
            vec![Deed::Resize(key(scene, 0, "disk"), LARGER)]
        })
    },
    // A header that names another volume than its record.
    Row {
        pauses: Some(12),
        ..row(
            "merge.doubt",
            "seal.marker.again",
            Storage::Overlays,
            "remove a snapshot and merge up",
            -2..=-2,
            Fate::Displaced(WAYS[1]),
            |scene| vec![Deed::Prepare(key(scene, 0, "disk"))],
        )
    },
    // The image points at the volume by now that the second host took for nobody's.
    Row {
        pauses: Some(55),
        ..row(
            "clean.look.holder",
            "add.marker.holder",
            Storage::Overlays,
            "create on a snapshot",
            -1..=-1,
            Fate::Waits,
            |_| vec![Deed::Fix],
        )
    },
    Row {
        pauses: Some(73),
        goes_on: Some(9),
        ..row(
            "clean.flag.volume",
            "add.marker.holder",
            Storage::Overlays,
            "create on a snapshot",
            3..=5,
            LOST,
            |_| vec![Deed::Fix],
        )
    },
    row(
        "add.compare.cancel",
        "add.lock",
        Storage::Clones,
        "create on a snapshot of another repository",
        10..=11,
        Fate::Displaced(WAYS[1]),
        |_| vec![Deed::Fix, Deed::Same],
    ),
    // The second call builds on the copy that the first one announced, and takes back.
    Row {
        pauses: Some(96),
        ..row(
            "create.claim.joined",
            "add.lock",
            Storage::Clones,
            "create on a snapshot of another repository",
            9..=11,
            Fate::Displaced(WAYS[1]),
            |_| vec![Deed::Same],
        )
    },
    // The second host buries what the first one is building on.
    Row {
        first: Begin::Deed(|scene| Deed::CreateOn(key(scene, 0, "snapshot"))),
        pauses: Some(105),
        ..row(
            "clean.flag+add.look.base",
            "add.look.base",
            Storage::Overlays,
            "resize",
            -13..=-13,
            Fate::Waits,
            |scene| {
                let remove = |name| Deed::Remove(key(scene, 0, name));
                vec![remove("child"), remove("disk"), remove("snapshot"), Deed::Fix]
            },
        )
    },
    // A snapshot is announced while those before it are cloned.
    row("switch.compare.asked", "switch.lock.clone", Storage::Clones, "snapshot", 19..=20, LOST, |scene| {
        vec![Deed::Announce(key(scene, 0, "disk"))]
    }),
    // The second host has the locks of what the disk was on before the first one moved it.
    Row {
        pauses: Some(17),
        ..row(
            "chain.reread",
            "seal.compare.held",
            Storage::Overlays,
            MERGE_DOWN,
            -2..=-2,
            Fate::Displaced(WAYS[1]),
            |scene| vec![Deed::Resize(key(scene, 0, "disk"), LARGER)],
        )
    },
    // The repeated call is answered, and the first one takes its snapshot back.
    row(
        "create.look.promised+create.claim.told",
        "switch.look.promised",
        Storage::Clones,
        "snapshot announced, then the disk removed",
        -5..=-3,
        LOST,
        |_| vec![Deed::Same],
    ),
];
