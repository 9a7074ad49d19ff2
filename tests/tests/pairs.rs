//! Two operations of two hosts at the same time, on simulated storage: one host is held after each of its steps, the
//! other one runs its whole operation, and then the first goes on, or dies there.
//!
//! In a normal run some of the steps are chosen, by `VDSMSTORE_SEED`; with `VDSMSTORE_LONG=1` it is every one.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::field_reassign_with_default,
    clippy::match_same_arms,
    clippy::needless_range_loop,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

#[path = "crash/operation.rs"]
mod operation;
#[allow(dead_code)]
#[path = "causes/raw.rs"]
mod raw;
#[allow(dead_code)]
#[path = "crash/scene.rs"]
mod scene;

#[path = "hosts/invariants.rs"]
mod invariants;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vdsmstore_core::options::{CheckOptions, FixOptions, ListOptions};
use vdsmstore_core::{ErrorKind, Result, Status, Store};
use vdsmstore_io::device::sim::hosts::{self, Act, Turn, mix};

use invariants::Moment;
use operation::{OPERATIONS, Operation};
use raw::Raw;
use scene::{Ids, NAMES, Scene, join, read};

/// The longest wait with a lock in one's hands: for another call on an image, and for a header that is corrected.
const MOMENT: Duration = Duration::from_secs(5);
/// After so long the host that is held goes on.
const PATIENCE: Duration = Duration::from_mins(1);
const SECOND: &str = "87654321-4321-4321-8321-cba987654321";

fn ids(ids: &Ids, new: &str) -> Ids {
    Ids {
        disk: ids.disk.clone(),
        snapshot: ids.snapshot.clone(),
        child: ids.child.clone(),
        copy: ids.copy.clone(),
        new: new.to_owned(),
        line: Vec::new(),
    }
}

fn moments(scene: &Scene) -> [Moment; 2] {
    [0, 1].map(|repo| {
        let driver = scene.worlds[repo].connect(scene::host("raw"));
        let raw = Raw::read(&scene.worlds[repo], &*driver);
        driver.close().unwrap();
        Moment::new(raw, &scene.worlds[repo])
    })
}

fn hold(scene: &Scene, before: &[Moment; 2], what: &str) {
    for (now, before) in moments(scene).iter().zip(before) {
        let violations = now.violations(Some(before));
        assert!(violations.is_empty(), "{what}: {violations:#?}");
    }
}

/// One of the two, and what became of it.
struct Done<'a> {
    operation: &'a Operation,
    ids: Ids,
    outcome: Result<()>,
    died: bool,
}

/// What an operation may answer because another one is under way.
fn is_polite(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ImageInUse
            | ErrorKind::FixRefused
            | ErrorKind::Stopped
            | ErrorKind::Conflict
            | ErrorKind::ImageNotFound
            | ErrorKind::ImageBroken
            | ErrorKind::ImageExists
    )
}

/// Every image is what one of the orders makes it. `complete`: all fixes were run.
fn look(scene: &Scene, store: &Store, done: &[Done<'_>], complete: bool, what: &str) {
    let mut removed = BTreeMap::new();
    for each in done {
        for key in (each.operation.removes)(&each.ids) {
            *removed.entry(key).or_insert(false) |= each.outcome.is_ok();
        }
    }
    let mut made = BTreeMap::new();
    for each in done {
        if let Some((repo, id, data)) = (each.operation.made)(&each.ids, scene) {
            let entry = made.entry((repo, id)).or_insert((data, false));
            entry.1 |= each.outcome.is_ok();
        }
    }
    let mut known = BTreeSet::new();
    for ((repo, id), (data, new, returned)) in scene
        .model
        .iter()
        .map(|(key, data)| (key, (data, false, true)))
        .chain(made.iter().map(|(key, (data, returned))| (key, (data, true, *returned))))
    {
        known.insert((*repo, id.clone()));
        let gone = removed.get(&(*repo, id.clone()));
        let status = match store.get_image_status(NAMES[*repo], id) {
            Err(error) if error.kind() == ErrorKind::ImageNotFound => {
                assert!(gone.is_some() || !returned, "{what}: {id} in {} is lost", NAMES[*repo]);
                continue;
            }
            status => status.unwrap_or_else(|error| panic!("{what}: {id}: {error:?}")),
        };
        assert!(gone != Some(&true) || new, "{what}: {id} is still there");
        if status.status == Status::Broken {
            // What it was to be made of may have been removed by the other.
            assert!(new && (!complete || !removed.is_empty()), "{what}: {id} is broken: {status:?}");
            continue;
        }
        let found = read(store, NAMES[*repo], id).unwrap_or_else(|error| panic!("{what}: {id}: {error:?}"));
        assert!(found == *data, "{what}: the data of {id} in {} is wrong", NAMES[*repo]);
    }
    for (repo, name) in NAMES.iter().enumerate() {
        for id in store.list_images(name, &ListOptions::default()).unwrap() {
            let id = id.to_string();
            // The base that was brought along.
            let base = done.iter().any(|each| each.ids.snapshot == id);
            assert!(base || known.contains(&(repo, id.clone())), "{what}: {id} in {name} is nobody's");
        }
    }
}

fn recover(scene: &Scene, store: &Store, what: &str) {
    for round in 0.. {
        let mut clean = true;
        for repo in NAMES {
            for fix in store.check_storage_repository(repo, &CheckOptions::default()).unwrap() {
                let outcome =
                    store.fix_storage_repository(repo, &fix, &FixOptions::default()).and_then(|task| {
                        store.run_tasks();
                        store.wait_task(&task, None)
                    });
                let hopeless = outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::ImageNotFound);
                // A copy of what is gone: only a person can say that it is not wanted any more.
                clean &= hopeless;
                assert!(round < 10, "{what}: round {round} still lists {fix:?}: {outcome:?}");
            }
        }
        if clean {
            break;
        }
    }
    let whole = NAMES.iter().all(|repo| {
        let infos = store.list_images(repo, &ListOptions::default()).unwrap();
        infos.iter().all(|id| store.get_image_status(repo, &id.to_string()).unwrap().status != Status::Broken)
    });
    for (moment, name) in moments(scene).iter().zip(NAMES) {
        if whole {
            moment.raw.nothing_left_over(&format!("{what}: after all fixes, {name}"));
        }
    }
}

/// How many steps the operation takes when nobody is in its way.
fn steps(start: &Scene, operation: &'static Operation, names: &Ids, seed: u64) -> u64 {
    let scene = start.copy();
    let (store, _) = hosts::alone(seed + 1, || join(&scene, "first"));
    let names = ids(names, &names.new);
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    let work: hosts::Work<()> = Box::new(move || (operation.run)(&store, &names).unwrap());
    let count_steps = Box::new(move |turn: &Turn<'_>| {
        if turn.act != Act::End {
            counted.store(turn.step(), Ordering::Relaxed);
        }
        0
    });
    hosts::run(seed + 2, vec![work], count_steps);
    count.load(Ordering::Relaxed)
}

#[derive(Default)]
struct Counts {
    schedules: u64,
    both: u64,
    polite: u64,
    died: u64,
    states: BTreeSet<u64>,
}

/// False: the first has fewer steps.
fn together(
    start: &Scene,
    first: (&'static Operation, &Ids),
    second: (&'static Operation, &Ids),
    held: u64,
    dies: bool,
    seed: u64,
    counts: &mut Counts,
) -> bool {
    let what = format!(
        "{} held at step {held}{}, meanwhile {} (seed {seed})",
        first.0.name,
        if dies { " and dead there" } else { "" },
        second.0.name
    );
    let scene = start.copy();
    let begun = hosts::alone(seed, || moments(&scene));
    let ((one, me), (other, him)) =
        hosts::alone(seed + 1, || (join(&scene, "first"), join(&scene, "second")));
    let reached = Arc::new(AtomicU64::new(0));
    let outcomes: Arc<Mutex<[Option<Result<()>>; 2]>> = Arc::default();
    let work =
        |store: Store, (operation, names): (&'static Operation, &Ids), index: usize| -> hosts::Work<()> {
            let (names, outcomes) = (ids(names, &names.new), outcomes.clone());
            Box::new(move || {
                let outcome = (operation.run)(&store, &names);
                let _ = store.close();
                outcomes.lock().unwrap()[index] = Some(outcome);
            })
        };
    let works = vec![work(one, first, 0), work(other, second, 1)];
    let decide = {
        let (scene, reached, what) = (scene.clone(), reached.clone(), what.clone());
        let mut waits: [Option<Duration>; 2] = [None; 2];
        let mut since = Duration::ZERO;
        Box::new(move |turn: &Turn<'_>| {
            // I14: who waits with a lock in its hands does it for a moment.
            let host = [&me, &him][turn.host].incarnation;
            let holds = scene.worlds.iter().any(|world| world.holds_locks(host));
            match turn.act {
                Act::Pause if holds => {
                    let from = *waits[turn.host].get_or_insert(turn.now);
                    let long = turn.now.saturating_sub(from);
                    assert!(long < MOMENT, "{what}: host {} waits with a lock in its hands", turn.host);
                }
                Act::Read | Act::Lock if holds => {}
                _ => waits[turn.host] = None,
            }
            // Who waits for the one that is held, and lives, waits for it.
            if turn.host == 1 && turn.act == Act::Pause && turn.now.saturating_sub(since) > PATIENCE {
                reached.store(2, Ordering::Relaxed);
            }
            if turn.host == 0 && turn.step() == held && turn.act != Act::End {
                since = turn.now;
                reached.store(1, Ordering::Relaxed);
                if dies {
                    for world in &scene.worlds {
                        world.crash(me.incarnation, &mut || true);
                    }
                }
            }
            let holding = reached.load(Ordering::Relaxed) == 1 && !turn.ended[1];
            usize::from(holding || turn.ended[0])
        })
    };
    hosts::run(seed + 2, works, decide);
    if reached.load(Ordering::Relaxed) == 0 {
        return false;
    }
    let [a, b] = std::mem::take(&mut *outcomes.lock().unwrap()).map(Option::unwrap);
    for (outcome, mortal) in [(&a, dies), (&b, false)] {
        if let Err(error) = outcome {
            assert!(mortal || is_polite(error.kind()), "{what}: {error:?}");
        }
    }
    counts.schedules += 1;
    counts.both += u64::from(a.is_ok() && b.is_ok());
    counts.polite += u64::from(b.is_err());
    counts.died += u64::from(dies);
    counts.states.extend(scene.worlds.iter().map(vdsmstore_core::sim::SimWorld::digest));
    let done = [
        Done { operation: first.0, ids: ids(first.1, &first.1.new), outcome: a, died: dies },
        Done { operation: second.0, ids: ids(second.1, &second.1.new), outcome: b, died: false },
    ];
    hosts::alone(seed + 3, || {
        hold(&scene, &begun, &what);
        let (store, _) = join(&scene, "judge");
        look(&scene, &store, &done, false, &what);
        recover(&scene, &store, &what);
        look(&scene, &store, &done, true, &what);
        store.close().unwrap();
        hold(&scene, &begun, &what);
    });
    done.iter().all(|each| !each.died || dies)
}

fn pairs(reflink: bool, part: usize) {
    let seed: u64 = std::env::var("VDSMSTORE_SEED").map_or(1, |text| text.parse().unwrap());
    println!("VDSMSTORE_SEED={seed}");
    let long = std::env::var_os("VDSMSTORE_LONG").is_some();
    let begun = Instant::now();
    let (start, names) = hosts::alone(seed, || scene::scene(reflink));
    let mine = ids(&names, &names.new);
    let other = ids(&names, SECOND);
    let mut all = Counts::default();
    for (index, first) in OPERATIONS.iter().enumerate().filter(|(index, _)| index % 2 == part) {
        let mut counts = Counts::default();
        let steps = steps(&start, first, &mine, seed * 1000);
        for (number, second) in OPERATIONS.iter().enumerate() {
            let chance = mix(seed ^ mix((index * 100 + number) as u64));
            let chosen = if long { (1..=steps).collect() } else { vec![1 + chance % steps] };
            for held in chosen {
                for dies in [false, true] {
                    together(&start, (first, &mine), (second, &other), held, dies, seed * 1000, &mut counts);
                }
            }
        }
        println!(
            "{}: {} schedules, both done in {}, {} answers of busy, {} deaths, {} distinct states",
            first.name,
            counts.schedules,
            counts.both,
            counts.polite,
            counts.died,
            counts.states.len()
        );
        assert!(counts.schedules > 10 && counts.both > 0 && counts.died > 0, "{}: hardly tried", first.name);
        all.schedules += counts.schedules;
        all.polite += counts.polite;
        all.states.extend(counts.states);
    }
    println!(
        "{} schedules, {} distinct states, {:.1} s",
        all.schedules,
        all.states.len(),
        begun.elapsed().as_secs_f64()
    );
    assert!(all.polite > 0, "nobody was ever in the way");
}

#[test]
fn overlays_first_half() {
    pairs(false, 0);
}

#[test]
fn overlays_second_half() {
    pairs(false, 1);
}

#[test]
fn clones_first_half() {
    pairs(true, 0);
}

#[test]
fn clones_second_half() {
    pairs(true, 1);
}
