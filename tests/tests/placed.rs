//! Two hosts around the place of one safeguard, each schedule written down: what goes wrong in it without the safeguard.
//!
//! `focused` finds such schedules by chance; what it finds slowly, or what takes three things to meet, is here. Each row
//! passes as the engine is, and fails with its switch on (`docs/mutations.md`): `scripts/mutations NAME` shows it.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::match_same_arms,
    clippy::needless_range_loop,
    clippy::struct_excessive_bools,
    clippy::too_many_arguments,
    clippy::unwrap_used,
    dead_code,
    missing_docs,
    reason = "the numbers of tests are small, tests fail by panicking, and modules are shared with other tests"
)]

#[path = "causes/changing.rs"]
mod changing;
#[path = "hosts/deeds.rs"]
mod deeds;
#[path = "hosts/displaced.rs"]
mod displaced;
#[path = "hosts/invariants.rs"]
mod invariants;
#[path = "hosts/judge.rs"]
mod judge;
#[path = "causes/making.rs"]
mod making;
#[path = "causes/operation.rs"]
mod operation;
#[path = "hosts/operations.rs"]
mod operations;
#[path = "causes/raw.rs"]
mod raw;
#[path = "hosts/rows.rs"]
mod rows;
#[path = "causes/scene.rs"]
mod scene;
#[path = "hosts/schedule.rs"]
mod schedule;
#[path = "hosts/writing.rs"]
mod writing;

use std::ops::RangeInclusive;

use vdsmstore_core::options::{AutoFix, CreateOptions, ResizeOptions};
use vdsmstore_io::mutation;

use deeds::Deed;
use scene::{Scene, Storage};
use schedule::{Context, Fate, First, Schedule};

/// A schedule, and the switch that it is about.
pub struct Row {
    /// With `+` between them, several: it fails when all of them are on, and no less. The place is that of the first.
    pub switch: &'static str,
    pub storage: Storage,
    /// Its scene, by name.
    pub operation: &'static str,
    pub first: Begin,
    /// Where the first host is held: when it comes to the place of the switch for this time, counted from 0, and so many
    /// steps later or earlier, one schedule for each. With 0 the next step is the first one after the place.
    pub nth: usize,
    pub later: RangeInclusive<i64>,
    pub fate: Fate,
    /// What the second host does meanwhile.
    pub second: fn(&Scene) -> Vec<Deed>,
    /// After so many steps the second lets the first go on.
    pub pauses: Option<u64>,
    /// After so many steps more of the first the second goes on.
    pub goes_on: Option<u64>,
}

/// What the first host does.
pub enum Begin {
    Operation,
    Deed(fn(&Scene) -> Deed),
}

const SEED: u64 = 5;

/// Compares that are come to only when something is another by then; and where a host comes right before or after.
const NEXT_TO: &[(&str, &str)] = &[
    ("replace.compare.next", "replace.compare.held"),
    ("replace.compare.begun-state", "replace.compare.begun-held"),
    ("resize.compare.volume", "resize.compare.held"),
    ("resize.compare.freeze", "resize.compare.held"),
    ("seal.compare.volume", "seal.compare.held"),
    ("lease.compare.volume", "lease.token"),
    ("in-place.mine", "in-place.begin"),
    ("in-place.doubt", "merge.flush.end"),
    ("lease.claim", "seal.compare.owner"),
    ("layout.look.target", "driver.flush.clone"),
];

/// The file that is imported.
fn file_to_import() -> &'static str {
    concat!(env!("CARGO_TARGET_TMPDIR"), "/placed-import.raw")
}

impl Row {
    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.switch.split('+')
    }

    /// How many schedules there were.
    fn run(&self) -> usize {
        let operation = operations::named(self.operation);
        let start = operations::start(operation, self.storage, SEED);
        // The same context with the switch on as without it.
        mutation::keep_all();
        let first = match self.first {
            Begin::Operation => First::Operation,
            Begin::Deed(deed) => First::Deed(deed(&start)),
        };
        let context = Context::new(start, self.storage, operation, first, SEED + 10);
        mutation::as_told();
        let what = format!("{} in {:?} ({:?})", self.switch, self.operation, self.storage);
        let first = self.names().next().unwrap();
        let at = NEXT_TO.iter().find(|(switch, _)| *switch == first).map_or(first, |(_, at)| *at);
        let places = context.places.get(at).unwrap_or_else(|| panic!("{what}: nobody comes there"));
        let place = *places.get(self.nth).unwrap_or_else(|| panic!("{what}: only at {places:?}"));
        let mut ran = 0;
        for later in self.later.clone() {
            let held = place.saturating_add_signed(later + 1).clamp(1, context.steps);
            let schedule = Schedule {
                held,
                fate: self.fate,
                deeds: (self.second)(&context.start),
                pauses: self.pauses,
                goes_on: self.goes_on,
                what: format!("{what}, held at step {held} of {}", context.steps),
                context: &context,
            };
            ran += usize::from(schedule.run().held);
        }
        assert!(ran > 0, "{what}: it was not held");
        ran
    }
}

#[test]
fn rows() {
    std::fs::write(file_to_import(), scene::pattern(6)).unwrap();
    let on = std::env::var("VDSMSTORE_MUTATION").ok();
    // With some on of those that a row is about, it passes.
    let about =
        |row: &&Row| on.as_ref().is_none_or(|on| on.split('+').all(|on| row.names().any(|name| name == on)));
    let mut ran = 0;
    for row in rows::ALL.iter().copied().flatten().filter(about) {
        ran += row.run();
    }
    println!("{ran} schedules");
    assert!(ran > 0 || on.is_some());
}

/// Whoever needs a disk whose replacement is under way gives the replacement up.
fn a_replacement_gives_way(work: fn(&vdsmstore_core::Store, &Scene) -> vdsmstore_core::Result<()>) {
    let operation = operations::named("open a disk that is being replaced");
    let scene = operations::start(operation, Storage::Overlays, SEED);
    displaced::walk(
        &scene,
        SEED + 30,
        move |store, scene| {
            work(store, scene).unwrap();
            let next = &scene.raw(0).images[scene.id("child")]["next"];
            assert!(next.is_null(), "{next} is still to be its volume");
        },
        |_, _| {},
    );
}

#[test]
fn a_replacement_gives_way_to_a_writer() {
    a_replacement_gives_way(|store, scene| store.open_image("A", scene.id("child"), true)?.close());
}

#[test]
fn a_replacement_gives_way_to_a_larger_disk() {
    a_replacement_gives_way(|store, scene| {
        let size = 2 * scene::SIZE as i64;
        store.resize_virtual_disk("A", scene.id("child"), size, &ResizeOptions::default())
    });
}

#[test]
fn a_replacement_gives_way_to_a_snapshot() {
    a_replacement_gives_way(|store, scene| {
        let options = CreateOptions { auto_fix: AutoFix::Off, ..CreateOptions::default() };
        store.create_snapshot("A", scene.id("child"), "{}", &options).map(drop)
    });
}
