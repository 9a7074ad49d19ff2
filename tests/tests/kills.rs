//! A host is killed (SIGKILL) at random moments of every operation; a second host then finds what is unfinished, and
//! all fixes bring every image that was returned to what it must be, with nothing left over.
//!
//! `VDSMSTORE_KILLS=n` asks for so many kills that count on each file system, `VDSMSTORE_KILLS_SEED` repeats the order
//! of the operations and of the moments (what a moment hits is up to the machine).

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    clippy::match_same_arms,
    clippy::similar_names,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

#[path = "kills/left.rs"]
mod left;
#[path = "kills/operation.rs"]
mod operation;
#[path = "kills/place.rs"]
mod place;

use std::collections::BTreeMap;
use std::env;
use std::time::{Duration, Instant};

use serde_json::json;
use vdsmstore_core::Status;
use vdsmstore_core::options::{CheckOptions, CreateOptions};
use vdsmstore_tests::dying::{Dying, Moment, Pace};
use vdsmstore_tests::mounts::can_mount;
use vdsmstore_tests::{new_repo, scratch, settle, store, write};

use operation::{Case, OPERATIONS, Operation};
use place::Place;

const MIB: u64 = 1 << 20;

/// Where in an operation the host died, as the records and its own last words say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    BeforeIntent,
    Intent,
    FirstHalf,
    SecondHalf,
    Sealed,
}

const STAGES: [(Stage, &str); 5] = [
    (Stage::BeforeIntent, "before intent"),
    (Stage::Intent, "intent"),
    (Stage::FirstHalf, "filling < 50 %"),
    (Stage::SecondHalf, "filling >= 50 %"),
    (Stage::Sealed, "sealed, cleaning"),
];

/// Small and repeatable.
pub struct Random(u64);

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }

    fn time(&mut self, limit: Duration) -> Duration {
        Duration::from_nanos(self.below(limit.as_nanos() as u64))
    }
}

/// After a kill that hit nothing: it came too late, or too early.
fn learn(pace: &mut Pace, late: bool) {
    for time in [&mut pace.returned, &mut pace.finished] {
        *time = if late { *time * 4 / 5 } else { *time * 5 / 4 };
        *time = (*time).clamp(Duration::from_micros(300), Duration::from_secs(2));
    }
}

fn moment(random: &mut Random, operation: &Operation, pace: Pace) -> Moment {
    let whole = pace.finished.max(Duration::from_millis(1)) * 11 / 10;
    let call = pace.returned.max(Duration::from_micros(500)) * 11 / 10;
    match random.below(10) {
        _ if !operation.fills => Moment::After(random.time(whole)),
        0..=2 => Moment::After(random.time(call)),
        3 => Moment::Done(1000, random.time(Duration::from_millis(8))),
        _ => Moment::Done(random.below(999), Duration::ZERO),
    }
}

/// Kills counted, by operation and stage; and those after which nothing was to be seen.
#[derive(Default)]
struct Counts {
    counted: BTreeMap<(&'static str, Stage), u32>,
    uncounted: u32,
    rounds: u32,
}

impl Counts {
    fn of(&self, operation: &str) -> u32 {
        self.counted.iter().filter(|((name, _), _)| *name == operation).map(|(_, count)| count).sum()
    }

    fn at(&self, stage: Stage) -> u32 {
        self.counted.iter().filter(|((_, at), _)| *at == stage).map(|(_, count)| count).sum()
    }

    fn total(&self) -> u32 {
        self.counted.values().sum()
    }

    /// Whether nothing is missing.
    fn enough(&self) -> bool {
        OPERATIONS.iter().all(|operation| self.of(operation.name) > 0)
            && STAGES.iter().all(|(stage, _)| self.at(*stage) > 0)
    }

    fn print(&self, kind: &str) {
        let heads: Vec<String> = STAGES.iter().map(|(_, name)| format!("{name:>16}")).collect();
        println!("{kind:<28} {}", heads.join(" "));
        for operation in OPERATIONS {
            let count = |stage| self.counted.get(&(operation.name, stage)).copied().unwrap_or(0);
            let cells: Vec<String> =
                STAGES.iter().map(|(stage, _)| format!("{:>16}", count(*stage))).collect();
            println!("{:<28} {}", operation.name, cells.join(" "));
        }
        println!(
            "{kind}: {} kills counted, {} hit nothing; at most {} rounds of fixes",
            self.total(),
            self.uncounted,
            self.rounds
        );
    }
}

/// Runs the case to the moment, kills its host, and brings the repositories back in order.
fn kill(
    place: &mut Place,
    operation: &'static Operation,
    case: &Case,
    moment: Option<&Moment>,
    counts: &mut Counts,
    pace: &mut Pace,
) {
    let before = place.listed();
    let used = place.used();
    let mut dying = Dying::start(place.root(), &case.job);
    let measured = dying.run_until(moment);
    let said = dying.kill();
    assert_eq!(said.failed, None, "{}", case.job);
    let stage = place.stage(operation, case, &before, &said);
    let what = format!("{}: {}, killed at {stage:?} ({said:?})", place.kind(), operation.name);
    match stage {
        Some(stage) => *counts.counted.entry((operation.name, stage)).or_default() += 1,
        None => counts.uncounted += 1,
    }
    match moment {
        None => *pace = measured,
        Some(Moment::After(_)) if stage.is_none() => learn(pace, said.returned),
        Some(_) => {}
    }
    counts.rounds = counts.rounds.max(place.recover(&what));
    let grown = place.judge(case, &said, &what);
    place.nothing_left(used, grown, &what);
    place.clear(case);
}

fn kills(mut place: Place) {
    let wanted: u32 = env::var("VDSMSTORE_KILLS").map_or(70, |text| text.parse().expect("a number"));
    let seed = env::var("VDSMSTORE_KILLS_SEED").map_or_else(
        |_| (u64::from(std::process::id()) << 16) + u64::from(place.kind().as_bytes()[0]),
        |text| text.parse().expect("a number"),
    );
    println!("{}: VDSMSTORE_KILLS_SEED={seed}", place.kind());
    let mut random = Random(seed);
    let each = wanted.div_ceil(OPERATIONS.len() as u32);
    // What should suffice on a slow machine; beyond it only what is missing altogether is still waited for.
    let patience = Duration::from_secs(40).max(Duration::from_secs(u64::from(wanted) * 3 / 5));
    let start = Instant::now();
    let mut counts = Counts::default();
    let mut paces = BTreeMap::<_, Pace>::new();
    for operation in OPERATIONS {
        // Once without haste, to know how long it takes.
        let case = (operation.prepare)(&mut place, &mut random);
        let pace = paces.entry(operation.name).or_default();
        kill(&mut place, operation, &case, None, &mut Counts::default(), pace);
    }
    for attempt in 0.. {
        let late = start.elapsed() > patience;
        if counts.enough() && (late || OPERATIONS.iter().all(|one| counts.of(one.name) >= each)) {
            break;
        }
        if start.elapsed() > patience * 3 {
            break;
        }
        let operation = &OPERATIONS[attempt % OPERATIONS.len()];
        let stages_missing = STAGES.iter().any(|(stage, _)| counts.at(*stage) == 0);
        if counts.of(operation.name) >= each && !stages_missing {
            continue;
        }
        let case = (operation.prepare)(&mut place, &mut random);
        let pace = paces.entry(operation.name).or_default();
        let moment = moment(&mut random, operation, *pace);
        kill(&mut place, operation, &case, Some(&moment), &mut counts, pace);
    }
    counts.print(place.kind());
    println!("{}: {:.1} s", place.kind(), start.elapsed().as_secs_f64());
    for operation in OPERATIONS {
        assert!(counts.of(operation.name) > 0, "{}: no kill counted", operation.name);
    }
    for (stage, name) in STAGES {
        assert!(counts.at(stage) > 0, "no kill counted at the stage {name:?}");
    }
    place.qemu_agrees();
}

#[test]
fn ext4() {
    kills(Place::in_a_directory());
}

#[test]
fn xfs() {
    if can_mount() {
        kills(Place::mounted("xfs"));
    } else {
        println!("not root: nothing is tested");
    }
}

#[test]
fn btrfs() {
    if can_mount() {
        kills(Place::mounted("btrfs"));
    } else {
        println!("not root: nothing is tested");
    }
}

/// A copy that was killed at three quarters goes on there: of what is not in place yet, and little else.
#[test]
fn a_copy_goes_on_where_it_was() {
    const SIZE: u64 = 256 * MIB;
    let root = scratch();
    let here = store("second");
    for name in ["A", "B"] {
        new_repo(&here, root.path(), name);
    }
    let disk = here.create_virtual_disk("A", Some(SIZE as i64), None, "{}", &CreateOptions::default());
    let disk = disk.unwrap().to_string();
    let data: Vec<u8> =
        (0..SIZE / 8).flat_map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1).to_le_bytes()).collect();
    write(&here, "A", &disk, |image| image.write(0, &data));
    let copy = "12345678-1234-4234-8234-123456789abc";
    let job = json!({
        "call": "copy", "repo": "B", "image": disk, "new": copy, "bandwidth": SIZE, "connect": ["A", "B"],
    });
    let dying = Dying::start(root.path(), &job);
    let deadline = Instant::now() + Duration::from_mins(1);
    let percent = loop {
        assert!(Instant::now() < deadline, "the copy does not come to three quarters");
        match here.get_image_status("B", copy) {
            Ok(status) if status.percent_complete >= 75 => break status.percent_complete,
            _ => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let said = dying.kill();
    let status = here.get_image_status("B", copy).unwrap();
    assert_eq!(status.status, Status::Broken, "it was killed too late: {said:?}");
    let fixes = here.check_storage_repository("B", &CheckOptions::default()).unwrap();
    let fix =
        fixes.iter().find(|fix| fix.image_id.is_some_and(|id| id.to_string() == copy)).expect("its fix");
    let job =
        json!({ "call": "fix", "repo": "B", "fix": fix, "bandwidth": 1_u64 << 40, "connect": ["A", "B"] });
    let mut going_on = Dying::start(root.path(), &job);
    going_on.run_until(None);
    let said = going_on.kill();
    settle(&here, "B", copy);
    let again = said.wrote as f64 * 100.0 / SIZE as f64;
    println!("killed at {percent} %: whoever went on wrote {} bytes, {again:.1} % of {SIZE}", said.wrote);
    assert!(again < 30.0, "{again} % was copied again");
    assert!(again > 1.0, "nothing was left to be copied");
    let image = here.open_image("B", copy, false).unwrap();
    let mut found = vec![0; SIZE as usize];
    image.read(0, &mut found).unwrap();
    assert!(found == data, "the copy is wrong");
    image.close().unwrap();
}

/// Not a test: the host that dies, which is this program once more.
#[test]
#[ignore = "it is what the others start and kill"]
fn dying_host() {
    vdsmstore_tests::dying::live();
}
