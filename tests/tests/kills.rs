//! A host is killed (SIGKILL) at random moments of every operation; a second host then finds what is unfinished, and
//! all fixes bring every image that was returned to what it must be, with nothing left over. Moments are aimed at: by how
//! long an operation takes, by how much of its data is in place, and by what is to be seen of it in the repository.
//!
//! `VDSMSTORE_KILLS=n` asks for so many kills that count on each file system, `VDSMSTORE_KILLS_SEED` repeats the random
//! choices of each (what a moment hits is up to the machine, and so is what is still missing).

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

#[path = "kills/aim.rs"]
mod aim;
#[path = "kills/counts.rs"]
mod counts;
#[path = "kills/left.rs"]
mod left;
#[path = "kills/operation.rs"]
mod operation;
#[path = "kills/place.rs"]
mod place;
#[path = "kills/prepare.rs"]
mod prepare;
#[path = "kills/stage.rs"]
mod stage;

use std::collections::BTreeMap;
use std::env;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use vdsmstore_core::Status;
use vdsmstore_core::options::{CheckOptions, CreateOptions};
use vdsmstore_tests::dying::{Dying, Moment, Pace};
use vdsmstore_tests::mounts::can_mount;
use vdsmstore_tests::{new_repo, scratch, settle, store, write};

use aim::Aim;
use counts::{Counts, Stage};
use operation::{OPERATIONS, Operation};
use place::Place;

const MIB: u64 = 1 << 20;
/// How long the kills of CI take at most, where nothing else runs.
const NORMAL: Duration = Duration::from_secs(75);

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

/// One file system, and what is known of it.
struct Killer<'a> {
    place: Place,
    random: Random,
    paces: BTreeMap<&'static str, Pace>,
    counts: &'a Counts,
}

impl Killer<'_> {
    /// Runs a case to the stage, or to its end, kills its host, and brings the repositories back in order.
    fn kill(&mut self, operation: &'static Operation, stage: Option<Stage>) {
        let slow = matches!(stage, Some(Stage::FirstHalf | Stage::SecondHalf));
        let place = &mut self.place;
        let at_first = place.used();
        let case = (operation.prepare)(place, &mut self.random, slow);
        let pace = self.paces.entry(operation.name).or_default();
        let aim = stage.map(|stage| Aim::new(place, operation, &case, stage, *pace, &mut self.random));
        let before = place.listed();
        let used = place.used();
        let mut dying = Dying::start(place.root(), &case.job);
        match &aim {
            None => *pace = dying.run_until(None),
            Some(aim) => aim.wait(&mut dying),
        }
        let said = dying.kill();
        assert_eq!(said.failed, None, "{}", case.job);
        let hit = place.stage(operation, &case, &before, &said);
        let what = format!("{}: {}, killed at {hit:?} ({said:?})", place.kind(), operation.name);
        if let Some((_, why)) = operation.never.iter().find(|(never, _)| Some(*never) == hit) {
            panic!("{what}, though {why}: {:?}", place.listed());
        }
        if let Some(Aim::At(Moment::After(_))) = aim
            && hit.is_none()
        {
            learn(pace, said.returned);
        }
        let rounds = place.recover(&what);
        if aim.is_some() {
            self.counts.hit(place.kind(), operation, hit, rounds);
        }
        let grown = place.judge(&case, &said, &what);
        place.nothing_left(used, grown, &what);
        place.clear(&case);
        place.nothing_gained(at_first, &what);
    }

    /// Kills until so many count here and nothing is missing anywhere; false: not in time.
    fn work(&mut self, wanted: u32, kinds: &[&str]) -> bool {
        let _fault = counts::Fault(self.counts);
        let start = Instant::now();
        let kind = self.place.kind();
        // What should suffice; beyond it only what is missing altogether is still waited for.
        let patience = NORMAL.max(Duration::from_secs(u64::from(wanted)) * 6 / 5);
        for operation in OPERATIONS.iter().filter(|operation| operation.runs_on(kind)) {
            // Once without haste, to know how long it takes.
            self.kill(operation, None);
        }
        loop {
            let enough = self.counts.on(kind) >= wanted || start.elapsed() > patience;
            if enough && self.counts.missing(kinds).is_empty() {
                break;
            }
            if start.elapsed() > patience * 3 || self.counts.is_faulty() {
                return false;
            }
            let (operation, stage) = self.counts.next(&self.place, &mut self.random);
            self.kill(operation, Some(stage));
        }
        self.place.qemu_agrees();
        true
    }
}

/// Every stage of every operation is hit on the file systems together.
#[test]
fn every_stage_of_every_operation() {
    let wanted: u32 = env::var("VDSMSTORE_KILLS").map_or(70, |text| text.parse().expect("a number"));
    let seed = env::var("VDSMSTORE_KILLS_SEED")
        .map_or_else(|_| u64::from(std::process::id()) << 16, |text| text.parse().expect("a number"));
    println!("VDSMSTORE_KILLS_SEED={seed}");
    let kinds: &[&'static str] = if can_mount() {
        &["ext4", "xfs", "btrfs"]
    } else {
        println!("not root: nothing is tested where storage clones");
        &["ext4"]
    };
    let start = Instant::now();
    let counts = Counts::default();
    let in_time: Vec<Option<bool>> = thread::scope(|scope| {
        let run = |kind: &'static str| {
            let place = if kind == "ext4" { Place::in_a_directory() } else { Place::mounted(kind) };
            let random = Random(seed + u64::from(kind.as_bytes()[0]));
            Killer { place, random, paces: BTreeMap::new(), counts: &counts }.work(wanted, kinds)
        };
        let threads: Vec<_> = kinds.iter().map(|kind| scope.spawn(move || run(kind))).collect();
        threads.into_iter().map(|thread| thread.join().ok()).collect()
    });
    counts.print(kinds);
    println!("{:.1} s", start.elapsed().as_secs_f64());
    let missing = counts.missing(kinds);
    assert!(!in_time.contains(&None), "a file system has a fault, see above");
    assert!(missing.is_empty() && !in_time.contains(&Some(false)), "not hit in time: {missing:?}");
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
