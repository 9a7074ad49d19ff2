//! The operations that are killed, which stages they have, and what must come of each.

use serde_json::Value;

use crate::Random;
use crate::counts::{STAGES, Stage};
use crate::place::Place;
use crate::prepare;

/// A kind of operation.
pub struct Operation {
    pub name: &'static str,
    /// The case, to be done slowly or not.
    pub prepare: fn(&mut Place, &mut Random, bool) -> Case,
    /// Where it was when it died; asked only if something is unfinished.
    pub judge: Judge,
    pub storage: Storage,
    /// Its data comes from another file system: it is moved where storage clones, too.
    pub from_outside: bool,
    /// Stages that it does not have, and why: no kill may hit them.
    pub never: &'static [(Stage, &'static str)],
    /// Stages that are too short to be aimed at: not waited for.
    pub short: &'static [(Stage, &'static str)],
}

/// Where an operation is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    Any,
    /// Without clones.
    Overlays,
    Clones,
}

/// How the stage is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judge {
    /// It makes an image.
    New,
    /// It makes a snapshot: that is intended by the record of its disk.
    Snapshot,
    /// It goes on with an image that is being made.
    Again,
    BringBack,
    Optimize,
    MergeUp,
    MergeDown,
    Remove,
    Resize,
    UserData,
    Export,
}

/// An operation about to be started.
pub struct Case {
    /// For the host that dies.
    pub job: Value,
    /// The image that it makes or changes.
    pub repo: &'static str,
    pub image: String,
    /// The file that says what the image must hold; None: it must be gone.
    pub model: Option<String>,
    /// Bytes that it takes when it is done.
    pub grows: i64,
    /// What is removed afterwards.
    pub clear: Vec<(&'static str, String)>,
}

impl Operation {
    pub fn runs_on(&self, kind: &str) -> bool {
        match self.storage {
            Storage::Any => true,
            Storage::Overlays => !clones(kind),
            Storage::Clones => clones(kind),
        }
    }

    /// Where data is cloned in an instant, no half of it is in place.
    pub fn shows_on(&self, kind: &str, stage: Stage) -> bool {
        !clones(kind) || self.from_outside || !matches!(stage, Stage::FirstHalf | Stage::SecondHalf)
    }

    /// The stages that are to be hit.
    pub fn awaited(&self) -> impl Iterator<Item = Stage> {
        let not = self.never.iter().chain(self.short).map(|(stage, _)| *stage);
        STAGES.iter().map(|(stage, _)| *stage).filter(move |stage| !not.clone().any(|other| other == *stage))
    }
}

pub fn clones(kind: &str) -> bool {
    kind != "ext4"
}

/// By how much of the data was in place.
pub fn filling(done: u64) -> Stage {
    match done {
        0 => Stage::Intent,
        1..500 => Stage::FirstHalf,
        _ => Stage::SecondHalf,
    }
}

const NO_DATA: &str = "it moves no data";
const FIRST_PUT: &str = "its first put is the intent";
const LAST_PUT: &str = "its last put is the seal, and there is nothing to be cleaned";
const ONE_PUT: &str = "one put is its intent and its seal";

const PLAIN: Operation = Operation {
    name: "",
    prepare: prepare::copy,
    judge: Judge::New,
    storage: Storage::Any,
    from_outside: false,
    never: &[],
    short: &[],
};

pub const OPERATIONS: &[Operation] = &[
    Operation {
        name: "create on a snapshot",
        prepare: prepare::create,
        never: &[(Stage::FirstHalf, NO_DATA), (Stage::SecondHalf, NO_DATA), (Stage::Sealed, LAST_PUT)],
        ..PLAIN
    },
    Operation {
        name: "snapshot by an overlay",
        prepare: prepare::snapshot,
        judge: Judge::Snapshot,
        storage: Storage::Overlays,
        never: &[(Stage::FirstHalf, NO_DATA), (Stage::SecondHalf, NO_DATA)],
        ..PLAIN
    },
    Operation {
        name: "snapshot by a clone",
        prepare: prepare::snapshot,
        judge: Judge::Snapshot,
        storage: Storage::Clones,
        never: &[(Stage::FirstHalf, NO_DATA), (Stage::SecondHalf, NO_DATA)],
        ..PLAIN
    },
    Operation { name: "copy", prepare: prepare::copy, ..PLAIN },
    Operation { name: "copy with a base", prepare: prepare::copy_with_base, ..PLAIN },
    Operation { name: "import", prepare: prepare::import, from_outside: true, ..PLAIN },
    Operation {
        name: "mend by a second host",
        prepare: prepare::mend,
        judge: Judge::Again,
        storage: Storage::Overlays,
        never: &[(Stage::BeforeIntent, "the first host had recorded it")],
        ..PLAIN
    },
    Operation {
        name: "merge up",
        prepare: prepare::merge_up,
        judge: Judge::MergeUp,
        never: &[
            (Stage::BeforeIntent, "it records nothing before the seal but how far it is"),
            (Stage::Intent, "it records nothing before the seal but how far it is"),
        ],
        ..PLAIN
    },
    Operation {
        name: "merge down",
        prepare: prepare::merge_down,
        judge: Judge::MergeDown,
        never: &[(Stage::BeforeIntent, FIRST_PUT)],
        ..PLAIN
    },
    Operation { name: "flatten a chain", prepare: prepare::flatten, judge: Judge::Optimize, ..PLAIN },
    Operation {
        name: "bring back",
        prepare: prepare::bring_back,
        judge: Judge::BringBack,
        never: &[(Stage::Intent, ONE_PUT), (Stage::FirstHalf, NO_DATA), (Stage::SecondHalf, NO_DATA)],
        ..PLAIN
    },
    Operation {
        name: "remove",
        prepare: prepare::remove,
        judge: Judge::Remove,
        never: &[
            (Stage::BeforeIntent, FIRST_PUT),
            (Stage::Intent, ONE_PUT),
            (Stage::FirstHalf, NO_DATA),
            (Stage::SecondHalf, NO_DATA),
        ],
        ..PLAIN
    },
    Operation {
        name: "resize",
        prepare: prepare::resize,
        judge: Judge::Resize,
        never: &[
            (Stage::BeforeIntent, "what it changes first is the volume"),
            (Stage::FirstHalf, NO_DATA),
            (Stage::SecondHalf, NO_DATA),
            (Stage::Sealed, LAST_PUT),
        ],
        ..PLAIN
    },
    Operation {
        name: "user data",
        prepare: prepare::user_data,
        judge: Judge::UserData,
        never: &[(Stage::Intent, ONE_PUT), (Stage::FirstHalf, NO_DATA), (Stage::SecondHalf, NO_DATA)],
        ..PLAIN
    },
    Operation {
        name: "export",
        prepare: prepare::export,
        judge: Judge::Export,
        from_outside: true,
        never: &[(Stage::BeforeIntent, "it records nothing: it makes its file at once")],
        short: &[(Stage::Sealed, "the whole file has both names only between two calls to the kernel")],
        ..PLAIN
    },
];
