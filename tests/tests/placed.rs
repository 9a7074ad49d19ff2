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

#[path = "hosts/aimed.rs"]
mod aimed;
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
#[path = "hosts/shrink.rs"]
mod shrink;
#[path = "hosts/writing.rs"]
mod writing;

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use vdsmstore_core::options::{AutoFix, CreateOptions, ResizeOptions};
use vdsmstore_io::mutation;

use deeds::Deed;
use scene::{Scene, Storage};
use schedule::{Chance, Context, Fate, First, Schedule};

/// A schedule, and the switch that it is about.
pub struct Row {
    /// With `+` between them, several: it fails when all of them are on, and no less. The place is that of the first.
    pub switch: &'static str,
    /// Another place that counts in its stead; empty: its own.
    pub at: &'static str,
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

    fn context(&self) -> Context {
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
        context
    }

    /// After which steps the first host comes to the place.
    fn places<'a>(&self, context: &'a Context) -> &'a [u64] {
        let first = self.names().next().unwrap();
        let next_to = NEXT_TO.iter().find(|(switch, _)| *switch == first).map_or(first, |(_, at)| *at);
        let at = if self.at.is_empty() { next_to } else { self.at };
        let nobody =
            || panic!("{} in {:?}: nobody comes to {at}: {:?}", self.switch, self.operation, context.places);
        context.places.get(at).unwrap_or_else(nobody)
    }

    fn schedule<'a>(
        &self,
        context: &'a Context,
        nth: usize,
        later: i64,
        pauses: Option<u64>,
        goes_on: Option<u64>,
    ) -> Schedule<'a> {
        let places = self.places(context);
        let place = *places.get(nth).unwrap_or_else(|| panic!("{}: only at {places:?}", self.switch));
        let held = place.saturating_add_signed(later + 1).clamp(1, context.steps);
        let what = format!(
            "{} in {:?} ({:?}), held at step {held} of {} (nth: {nth}, later: {later}, pauses: {pauses:?}, goes_on: {goes_on:?})",
            self.switch, self.operation, self.storage, context.steps
        );
        let deeds = (self.second)(&context.start);
        Schedule { context, held, fate: self.fate, deeds, pauses, goes_on, what }
    }

    /// Tries moments by chance; which ones it fails at without all that it is about, and not without less.
    fn moments(&self, budget: Duration) {
        let context = self.context();
        let all = mutation::named(self.switch).unwrap();
        let count = self.places(&context).len();
        let mut chance = Chance(SEED);
        let (mut tried, mut failed, begun) = (0, 0, Instant::now());
        while begun.elapsed() < budget && failed < 10 {
            let nth = chance.below(count as u64) as usize;
            let (low, high) = (*self.later.start(), *self.later.end());
            let later = low + chance.below((high - low + 1).cast_unsigned()) as i64;
            let pauses = self.pauses.filter(|_| chance.below(4) > 0).map(|most| 1 + chance.below(most));
            let goes_on = self.goes_on.filter(|_| chance.below(2) > 0).map(|most| 1 + chance.below(most));
            let schedule = self.schedule(&context, nth, later, pauses, goes_on);
            tried += 1;
            let Some(text) = shrink::without(&schedule, &all) else { continue };
            if let Some(text) = shrink::without(&schedule, &[]) {
                println!("FAILS without any: {text}");
                continue;
            }
            failed += 1;
            let set = shrink::shrink(all.clone(), |set| shrink::without(&schedule, set).is_some());
            println!("{} | {}", shrink::told(&set), text.chars().take(500).collect::<String>());
        }
        println!("{}: failed at {failed} of {tried} moments", self.switch);
    }

    /// How many schedules there were.
    fn run(&self) -> usize {
        let context = self.context();
        let run =
            |later: &i64| self.schedule(&context, self.nth, *later, self.pauses, self.goes_on).run().held;
        let ran = self.later.clone().filter(run).count();
        assert!(ran > 0, "{} in {:?}: it was not held", self.switch, self.operation);
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

/// Looks for the moments of the rows about what `VDSMSTORE_FOCUS` names, while that is out: when the first host is held,
/// and for how long each goes on. `later` says how far around the place, `pauses` and `goes_on` how many steps at most.
#[test]
#[ignore = "reports, and judges nothing"]
fn moments() {
    std::fs::write(file_to_import(), scene::pattern(6)).unwrap();
    let names = std::env::var("VDSMSTORE_FOCUS").unwrap();
    let seconds = std::env::var("VDSMSTORE_FOCUS_SECONDS").map_or(30, |text| text.parse().unwrap());
    std::panic::set_hook(Box::new(|_| {}));
    for row in rows::ALL.iter().copied().flatten().filter(|row| row.switch == names) {
        row.moments(Duration::from_secs(seconds));
    }
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
