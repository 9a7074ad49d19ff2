//! What the kills hit: by operation and stage, over all file systems together.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::Random;
use crate::operation::{OPERATIONS, Operation};
use crate::place::Place;

/// Where in an operation the host died, as the records and its own last words say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    BeforeIntent,
    Intent,
    FirstHalf,
    SecondHalf,
    Sealed,
}

pub const STAGES: [(Stage, &str); 5] = [
    (Stage::BeforeIntent, "before intent"),
    (Stage::Intent, "intent"),
    (Stage::FirstHalf, "filling < 50 %"),
    (Stage::SecondHalf, "filling >= 50 %"),
    (Stage::Sealed, "sealed, cleaning"),
];

type Pair = (&'static str, Stage);

#[derive(Debug, Default)]
struct Numbers {
    counted: BTreeMap<(&'static str, Pair), u32>,
    tried: BTreeMap<Pair, u32>,
    uncounted: u32,
    rounds: u32,
    faulty: bool,
}

/// Ends the work on all file systems when that on one panics.
pub struct Fault<'a>(pub &'a Counts);

impl Drop for Fault<'_> {
    fn drop(&mut self) {
        self.0.numbers().faulty |= thread::panicking();
    }
}

/// Shared by the file systems.
#[derive(Debug, Default)]
pub struct Counts(Mutex<Numbers>);

impl Numbers {
    fn at(&self, pair: Pair) -> u32 {
        self.counted.iter().filter(|((_, at), _)| *at == pair).map(|(_, count)| count).sum()
    }

    fn on(&self, kind: &str) -> u32 {
        self.counted.iter().filter(|((at, _), _)| *at == kind).map(|(_, count)| count).sum()
    }
}

impl Counts {
    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_faulty(&self) -> bool {
        self.numbers().faulty
    }

    /// A kill has hit this, or nothing.
    pub fn hit(&self, kind: &'static str, operation: &'static Operation, stage: Option<Stage>, rounds: u32) {
        let mut numbers = self.numbers();
        match stage {
            Some(stage) => *numbers.counted.entry((kind, (operation.name, stage))).or_default() += 1,
            None => numbers.uncounted += 1,
        }
        numbers.rounds = numbers.rounds.max(rounds);
    }

    /// What nobody has hit yet of what these file systems can show.
    pub fn missing(&self, kinds: &[&str]) -> Vec<Pair> {
        let numbers = self.numbers();
        let all = OPERATIONS.iter().flat_map(|operation| {
            let there = kinds.iter().any(|kind| operation.runs_on(kind));
            operation.awaited().filter(move |_| there).map(|stage| (operation.name, stage))
        });
        all.filter(|pair| numbers.at(*pair) == 0).collect()
    }

    /// What to aim at next here: what is missing, the least tried first; then anything.
    pub fn next(&self, place: &Place, random: &mut Random) -> (&'static Operation, Stage) {
        let mut numbers = self.numbers();
        let mut pairs = Vec::new();
        for operation in OPERATIONS.iter().filter(|operation| operation.runs_on(place.kind())) {
            let here = operation.awaited().filter(|stage| operation.shows_on(place.kind(), *stage));
            for stage in here {
                let pair = (operation.name, stage);
                let tried = numbers.tried.get(&pair).copied().unwrap_or(0);
                // Those that are rarely hit are not tried for ever while others wait.
                let rank = numbers.at(pair) * 3 + tried;
                pairs.push((numbers.at(pair) > 0, rank, random.below(1 << 20), operation, stage));
            }
        }
        pairs.sort_by_key(|(hit, rank, order, ..)| (*hit, *rank, *order));
        let (_, _, _, operation, stage) = pairs[0];
        *numbers.tried.entry((operation.name, stage)).or_default() += 1;
        (operation, stage)
    }

    pub fn on(&self, kind: &str) -> u32 {
        self.numbers().on(kind)
    }

    pub fn print(&self, kinds: &[&str]) {
        let numbers = self.numbers();
        let heads: Vec<String> = STAGES.iter().map(|(_, name)| format!("{name:>16}")).collect();
        println!("{:<28} {}", kinds.join(", "), heads.join(" "));
        for operation in OPERATIONS {
            let cell = |stage: Stage| match numbers.at((operation.name, stage)) {
                0 if operation.never.iter().any(|(never, _)| *never == stage) => "-".to_owned(),
                count => count.to_string(),
            };
            let cells: Vec<String> =
                STAGES.iter().map(|(stage, _)| format!("{:>16}", cell(*stage))).collect();
            println!("{:<28} {}", operation.name, cells.join(" "));
        }
        let each: Vec<String> = kinds.iter().map(|kind| format!("{kind} {}", numbers.on(kind))).collect();
        for (pair, tried) in
            numbers.tried.iter().filter(|(pair, tried)| numbers.at(**pair) == 0 && **tried > 0)
        {
            println!("not hit: {pair:?}, tried {tried} times");
        }
        println!(
            "{} kills counted ({}), {} hit nothing; at most {} rounds of fixes",
            numbers.counted.values().sum::<u32>(),
            each.join(", "),
            numbers.uncounted,
            numbers.rounds
        );
    }
}
