//! Two hosts run the same fix at once, on simulated storage: one does it, the other one finds it done or is told who does
//! it, and nobody waits for ever.
//!
//! For every action and every cause of it (`causes/cause.rs`) there is a state that an operation left, which was
//! interrupted; both hosts check, and both run the fix that was listed. One of them is held at a step while the other
//! one works to its end, and then it goes on, or it dies there; or both take turns by chance.
//!
//! In a normal run states and steps are drawn, by `VDSMSTORE_SEED`; with `VDSMSTORE_LONG=1` it is more states, and every
//! step. `VDSMSTORE_CAUSE=text` takes the causes that contain the text.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::field_reassign_with_default,
    clippy::match_same_arms,
    clippy::needless_range_loop,
    clippy::struct_excessive_bools,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

#[path = "causes/cause.rs"]
mod cause;
#[path = "causes/changing.rs"]
mod changing;
#[path = "hosts/invariants.rs"]
mod invariants;
#[allow(dead_code)]
#[path = "hosts/judge.rs"]
mod judge;
#[path = "causes/making.rs"]
mod making;
#[path = "causes/operation.rs"]
mod operation;
#[allow(dead_code)]
#[path = "causes/raw.rs"]
mod raw;
#[allow(dead_code)]
#[path = "causes/scene.rs"]
mod scene;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vdsmstore_core::id::Incarnation;
use vdsmstore_core::options::CheckOptions;
use vdsmstore_core::{Error, ErrorKind, Fix, Result, Store};
use vdsmstore_io::device::sim::hosts::{self, Act, Turn, mix};

use cause::{CAUSES, action, cause, ids};
use invariants::Moment;
use operation::Operation;
use scene::{Crash, Scene, Storage, crash, pattern};

/// Nobody waits longer for another host.
const PATIENCE: Duration = Duration::from_secs(20);
/// The two.
const NAMES: [&str; 2] = ["one", "other"];
/// States of each cause in a normal run.
const STATES: usize = 2;
/// Steps at which a host is held, in a normal run.
const STEPS: u64 = 4;

/// The file that is imported: it stays as it is for the whole run.
fn file_to_import() -> &'static str {
    concat!(env!("CARGO_TARGET_TMPDIR"), "/same-fix-import.raw")
}

/// An operation on a storage, with what it begins with.
struct Job {
    operation: &'static Operation,
    storage: Storage,
    start: Scene,
    seed: u64,
}

/// An interruption after which a fix is listed.
#[derive(Clone, Debug)]
struct Place {
    /// By its place among all.
    job: usize,
    cut: usize,
    after: u64,
    keep: bool,
    repo: usize,
    fix: Fix,
}

/// What was met of an action and a cause: how often, and one of these, which is drawn.
type Met = BTreeMap<(String, &'static str), (u64, Place)>;

fn long() -> bool {
    std::env::var_os("VDSMSTORE_LONG").is_some()
}

/// Does all of it, on as many threads as the machine has.
fn share<T: Sync, R: Send>(all: &[T], work: impl Fn(usize, &T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let some = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(each) = all.get(index) else { return done };
            done.push((index, work(index, each)));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut done: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(some)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

impl Job {
    fn new(operation: &'static Operation, storage: Storage, seed: u64) -> Job {
        let start = hosts::alone(seed, || {
            let mut start = Scene::new(storage);
            let (store, me) = start.join("setup");
            (operation.setup)(&store, &mut start);
            store.close().unwrap();
            // The world may be a copy from before it left.
            for world in &start.worlds {
                world.forget(me);
            }
            start
        });
        Job { operation, storage, start, seed }
    }

    /// What is there when the operation loses power after so many steps; the same each time.
    fn interrupted(&self, cut: usize, after: u64, keep: bool) -> (Scene, Crash) {
        let seed = mix(self.seed ^ mix(4 * after + 2 * cut as u64 + u64::from(keep)));
        hosts::alone(seed, || {
            let scene = self.start.copy();
            let crash = crash(&scene, cut, after, self.operation.run, keep);
            (scene, crash)
        })
    }

    /// All causes that its interruptions lead to.
    fn causes(&self, job: usize) -> Met {
        let mut found = Met::new();
        let before = [0, 1].map(|repo| self.start.raw(repo));
        for cut in 0..2 {
            for after in 0.. {
                let mut all = false;
                for keep in [false, true] {
                    let (scene, crash) = self.interrupted(cut, after, keep);
                    all = crash.finished;
                    let (lister, _) = scene.join("lister");
                    for repo in 0..2 {
                        let fixes = judge::check(&lister, repo);
                        let raw = (!fixes.is_empty()).then(|| scene.raw(repo));
                        for fix in fixes {
                            let cause = cause(&fix, raw.as_ref().unwrap(), &before[repo], self.storage);
                            let key = (action(&fix).to_owned(), cause);
                            let place = Place { job, cut, after, keep, repo, fix };
                            let (met, drawn) = found.entry(key).or_insert_with(|| (0, place.clone()));
                            *met += 1;
                            // Each is as likely to be drawn.
                            if mix(self.seed ^ mix(*met)).is_multiple_of(*met) {
                                *drawn = place;
                            }
                        }
                    }
                    lister.close().unwrap();
                }
                if all {
                    break;
                }
            }
        }
        found
    }
}

/// What happens to the first host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// It is held there until the other one has ended.
    Held(u64),
    /// It dies there.
    Dies(u64),
    /// Both take turns by chance.
    Turns,
}

#[derive(Debug, Default)]
struct Counts {
    schedules: u64,
    /// The one that the fix was left to did it, or found it done.
    done: u64,
    /// Both said that it is done.
    both: u64,
    in_use: u64,
    refused: u64,
    died: u64,
    /// States in which it waits for a host that may still live.
    waits: u64,
    longest: Duration,
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        self.schedules += other.schedules;
        self.done += other.done;
        self.both += other.both;
        self.in_use += other.in_use;
        self.refused += other.refused;
        self.died += other.died;
        self.waits += other.waits;
        self.longest = self.longest.max(other.longest);
    }
}

/// A state, and the fix that is run in it.
struct Case<'a> {
    job: &'a Job,
    place: &'a Place,
    scene: Scene,
    returned: bool,
    cause: &'static str,
    seed: u64,
}

/// Checks, and then runs a fix that was listed before.
fn work(store: &Store, repo: usize, fix: &Fix, checked: impl FnOnce()) -> Result<()> {
    store.check_storage_repository(scene::NAMES[repo], &CheckOptions::default())?;
    checked();
    judge::fix(store, repo, fix)
}

impl Case<'_> {
    fn what(&self, how: How) -> String {
        let Place { cut, after, keep, repo, fix, .. } = self.place;
        format!(
            "{}: {}, after {:?} ({:?}, {} cut after {after}, {}), in {}, {how:?}, VDSMSTORE_SEED={}",
            action(fix),
            self.cause,
            self.job.operation.name,
            self.job.storage,
            scene::NAMES[*cut],
            if *keep { "kept" } else { "lost" },
            scene::NAMES[*repo],
            seed()
        )
    }

    /// The steps of a host that is alone: those of its check, and all. None: a host that may still live is in its way.
    fn steps(&self) -> Option<(u64, u64)> {
        let scene = self.scene.copy();
        let store = hosts::alone(self.seed, || scene.join(NAMES[0]).0);
        let steps = Arc::new([const { AtomicU64::new(0) }; 2]);
        let (counted, checked) = (steps.clone(), steps.clone());
        let Place { repo, fix, .. } = self.place.clone();
        let only: hosts::Work<Result<()>> = Box::new(move || {
            let checked = || checked[0].store(checked[1].load(Ordering::Relaxed), Ordering::Relaxed);
            work(&store, repo, &fix, checked)
        });
        let count = Box::new(move |turn: &Turn<'_>| {
            if turn.act != Act::End {
                counted[1].store(turn.step(), Ordering::Relaxed);
            }
            0
        });
        let outcome = hosts::run(self.seed, vec![only], count).remove(0);
        let in_doubt = self.job.storage == Storage::Doubts;
        match outcome {
            Err(error) if error.kind() == ErrorKind::ImageInUse && in_doubt => return None,
            Err(error) => panic!("{}: alone: {error:?}", self.place.fix.description),
            Ok(()) => {}
        }
        Some((steps[0].load(Ordering::Relaxed), steps[1].load(Ordering::Relaxed)))
    }

    /// Both at once.
    fn both(&self, how: How, counts: &mut Counts) {
        let what = self.what(how);
        let scene = self.scene.copy();
        let before = judge::moments(&scene);
        let joined = hosts::alone(self.seed, || NAMES.map(|name| scene.join(name)));
        let incarnations = [joined[0].1, joined[1].1];
        let Place { repo, fix, .. } = self.place;
        let outcomes: Arc<Mutex<[Option<Result<()>>; 2]>> = Arc::default();
        let works = joined.into_iter().enumerate().map(|(index, (store, _))| {
            let (outcomes, repo, fix) = (outcomes.clone(), *repo, fix.clone());
            let each: hosts::Work<()> = Box::new(move || {
                let outcome = work(&store, repo, &fix, || ());
                let _ = store.close();
                outcomes.lock().unwrap()[index] = Some(outcome);
            });
            each
        });
        let ended = Arc::new(Mutex::new([Duration::ZERO; 2]));
        let decide = self.decide(how, &scene, incarnations[0], ended.clone());
        hosts::run(self.seed, works.collect(), decide);
        let outcomes = std::mem::take(&mut *outcomes.lock().unwrap()).map(Option::unwrap);
        let ended = *ended.lock().unwrap();
        let longest = ended.into_iter().max().unwrap();
        assert!(longest < PATIENCE, "{what}: it took {longest:?}: {outcomes:?}");
        counts.longest = counts.longest.max(longest);
        counts.schedules += 1;
        let died = matches!(how, How::Dies(_));
        counts.died += u64::from(died);
        for (host, outcome) in outcomes.iter().enumerate().skip(usize::from(died)) {
            match outcome {
                Ok(()) => counts.done += 1,
                Err(error) if error.kind() == ErrorKind::FixRefused => counts.refused += 1,
                Err(error) => {
                    // One that disconnects between the refusal and its being told is nobody any more.
                    let gone = how == How::Turns && ended[1 - host] <= ended[host];
                    self.told(error, NAMES[1 - host], died, gone, &what);
                    counts.in_use += 1;
                }
            }
        }
        counts.both += u64::from(!died && outcomes.iter().all(Result::is_ok));
        let somebody = outcomes.iter().any(Result::is_ok);
        assert!(died || somebody, "{what}: nobody did it: {outcomes:?}");
        hosts::alone(self.seed + 1, || self.judge(&scene, &before, somebody, &what));
    }

    fn decide(
        &self,
        how: How,
        scene: &Scene,
        first: Incarnation,
        ended: Arc<Mutex<[Duration; 2]>>,
    ) -> hosts::Decide {
        let (scene, mut reached, mut number) = (scene.clone(), false, self.seed);
        Box::new(move |turn: &Turn<'_>| {
            if turn.act == Act::End {
                ended.lock().unwrap()[turn.host] = turn.now;
            }
            match how {
                How::Turns => {
                    number = mix(number);
                    (number % 2) as usize
                }
                How::Held(step) | How::Dies(step) => {
                    if turn.host == 0 && turn.step() == step && turn.act != Act::End {
                        reached = true;
                        for world in scene.worlds.iter().filter(|_| how == How::Dies(step)) {
                            world.crash(first, &mut || true);
                        }
                    }
                    usize::from(reached && !turn.ended[1])
                }
            }
        })
    }

    /// It is in use, and the other host is named.
    fn told(&self, error: &Error, other: &str, died: bool, gone: bool, what: &str) {
        assert_eq!(error.kind(), ErrorKind::ImageInUse, "{what}: {error:?}");
        assert!(!died || self.job.storage == Storage::Doubts, "{what}: in use by a dead host: {error:?}");
        assert!(
            died || gone || error.details().get("host").is_some_and(|host| host == other),
            "{what}: {other} is not named: {error:?}"
        );
    }

    /// All is as it is to be, and another host completes the rest.
    fn judge(&self, scene: &Scene, before: &[Moment; 2], somebody: bool, what: &str) {
        let Place { repo, fix, .. } = self.place;
        self.hold(scene, before, what);
        let model = judge::model(scene, &[(self.job.operation, self.returned)]);
        let (store, _) = scene.join("judge");
        judge::look(scene, &store, &model, false, what);
        let listed = judge::check(&store, *repo);
        let same = |other: &Fix| action(other) == action(fix) && ids(other) == ids(fix);
        assert!(!somebody || !listed.iter().any(same), "{what}: done, and still listed: {listed:#?}");
        judge::recover(scene, &store, &model, what);
        judge::look(scene, &store, &model, true, what);
        store.close().unwrap();
        self.hold(scene, before, what);
    }

    /// The invariants hold, but for what a fault of the storage broke before all of it, and headers that name what that
    /// took away.
    fn hold(&self, scene: &Scene, before: &[Moment; 2], what: &str) {
        for (repo, (now, before)) in judge::moments(scene).iter().zip(before).enumerate() {
            let start = self.job.start.raw(repo);
            let lost = start.objects.into_keys().filter(|id| !start.volumes.contains_key(id));
            let lost: Vec<String> = lost.map(|id| format!("names {id}, which is not there")).collect();
            let mut violations = now.violations(Some(before));
            let before = before.violations(None);
            violations.retain(|violation| !lost.iter().any(|lost| violation.ends_with(lost)));
            violations.retain(|violation| !before.contains(violation));
            assert!(violations.is_empty(), "{what}: in {}: {violations:#?}", scene::NAMES[repo]);
        }
    }

    /// Every way to meet, or some that are drawn. The schedules that fail are told.
    fn meet(&self) -> (Counts, Vec<String>) {
        let Some((checked, all)) = self.steps() else {
            return (Counts { waits: 1, ..Counts::default() }, Vec::new());
        };
        let mut hows = vec![How::Turns];
        let steps: Vec<u64> = if long() {
            (1..=all).collect()
        } else {
            // One of each part of the fix itself.
            let share = |part: u64| checked + (all - checked) * part / STEPS;
            let drawn = |part: u64| {
                let width = (share(part + 1) - share(part)).max(1);
                share(part) + 1 + mix(self.seed ^ part) % width
            };
            (0..STEPS).map(drawn).collect::<BTreeSet<_>>().into_iter().collect()
        };
        hows.extend(steps.into_iter().flat_map(|step| [How::Held(step), How::Dies(step)]));
        let mut counts = Counts::default();
        let mut failed = Vec::new();
        for how in hows {
            if std::env::var_os("VDSMSTORE_SIM_TRACE").is_some() {
                println!("{}", self.what(how));
            }
            if catch_unwind(AssertUnwindSafe(|| self.both(how, &mut counts))).is_err() {
                failed.push(self.what(how));
            }
        }
        (counts, failed)
    }
}

/// A number for a text.
fn number(seed: u64, text: &str) -> u64 {
    text.bytes().fold(seed, |number, byte| mix(number ^ u64::from(byte)))
}

fn seed() -> u64 {
    std::env::var("VDSMSTORE_SEED").map_or(1, |text| text.parse().unwrap())
}

#[test]
fn every_fix_is_run_by_two_hosts() {
    let seed = seed();
    println!("VDSMSTORE_SEED={seed}");
    std::fs::write(file_to_import(), pattern(6)).unwrap();
    let begun = Instant::now();
    let operations = making::OPERATIONS.iter().chain(changing::OPERATIONS);
    let with_storages = operations.flat_map(|each| each.storages.iter().map(move |storage| (each, *storage)));
    let all: Vec<_> = with_storages.collect();
    let jobs = share(&all, |index, (operation, storage)| {
        Job::new(operation, *storage, mix(seed ^ mix(index as u64)))
    });
    let mut states: BTreeMap<(String, &'static str), Vec<Place>> = BTreeMap::new();
    let mut met = 0;
    for causes in share(&jobs, |index, job| job.causes(index)) {
        for (key, (times, place)) in causes {
            met += times;
            states.entry(key).or_default().push(place);
        }
    }
    let wanted: BTreeSet<_> = CAUSES.iter().map(|(action, cause)| ((*action).to_owned(), *cause)).collect();
    assert_eq!(states.keys().cloned().collect::<BTreeSet<_>>(), wanted);
    println!("{met} states that list a fix, {:.1} s", begun.elapsed().as_secs_f64());
    let some = std::env::var("VDSMSTORE_CAUSE").unwrap_or_default();
    let mut cases = Vec::new();
    for ((_, cause), mut places) in states {
        if !cause.contains(&some) {
            continue;
        }
        let length = places.len();
        places.rotate_left(number(seed, cause) as usize % length);
        cases.extend(
            places.into_iter().take(if long() { length } else { STATES }).map(|place| (cause, place)),
        );
    }
    let outcomes = share(&cases, |_, (cause, place)| {
        let job = &jobs[place.job];
        let (scene, crash) = job.interrupted(place.cut, place.after, place.keep);
        let seed = number(job.seed, cause);
        Case { job, place, scene, returned: crash.returned, cause, seed }.meet()
    });
    let mut by_action: BTreeMap<&str, Counts> = BTreeMap::new();
    let mut failed = Vec::new();
    for ((_, place), (counts, failures)) in cases.iter().zip(outcomes) {
        by_action.entry(action(&place.fix)).or_default().add(&counts);
        failed.extend(failures);
    }
    let mut whole = Counts::default();
    for (action, counts) in &by_action {
        println!("{action}: {counts:?}");
        whole.add(counts);
    }
    println!("{} states, {whole:?}, {:.1} s", cases.len(), begun.elapsed().as_secs_f64());
    assert!(failed.is_empty(), "{} of {} schedules failed: {failed:#?}", failed.len(), whole.schedules);
    if some.is_empty() {
        for (action, _) in CAUSES {
            let counts = &by_action[action];
            let tried = counts.schedules > 0 && counts.both > 0 && counts.died > 0;
            assert!(tried, "{action} was hardly tried: {counts:?}");
        }
        assert!(whole.in_use > 0 && whole.both > 0, "{whole:?}");
    }
}

/// Where something was found once: each step.
const KNOWN: [(&str, Storage, &str); 3] = [
    // Who worked on what it is built on was waited for as long as he lived.
    ("create on a snapshot of another repository", Storage::Clones, "clone, announced"),
    // The object was removed after it was looked for.
    (
        "bring back a removed snapshot whose volume's record was lost",
        Storage::Overlays,
        "its record was lost",
    ),
    // A header that a dead host may still write was to be corrected for ever.
    (
        "give a snapshot a volume of its own",
        Storage::Doubts,
        "a snapshot that is to have a volume of its own",
    ),
];

#[test]
fn what_was_found_once() {
    let outcomes = share(&KNOWN, |_, (name, storage, cause)| {
        let mut operations = making::OPERATIONS.iter().chain(changing::OPERATIONS);
        let operation = operations.find(|operation| operation.name == *name).unwrap();
        let job = Job::new(operation, *storage, 1);
        let (_, place) = job.causes(0).into_iter().find(|((_, found), _)| found == cause).unwrap().1;
        let (scene, crash) = job.interrupted(place.cut, place.after, place.keep);
        let case = Case { job: &job, place: &place, scene, returned: crash.returned, cause, seed: 1 };
        let (_, steps) = case.steps().unwrap();
        let mut counts = Counts::default();
        for step in 1..=steps {
            case.both(How::Held(step), &mut counts);
            case.both(How::Dies(step), &mut counts);
        }
        println!("{name}, {cause}: {counts:?}");
        counts
    });
    assert!(outcomes.iter().all(|counts| counts.both > 0 && counts.in_use > 0), "{outcomes:?}");
}
