//! A host is frozen in the middle of an operation, loses its locks without notice, and counts as dead; another one repairs
//! everything and goes on working; then the first is thawed and runs to its end. Whatever it still writes is refused, or
//! lands where nobody reads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use vdsmstore_core::Store;
use vdsmstore_core::id::Incarnation;
use vdsmstore_io::device::sim::hosts::{self, Act, Turn, mix};

use crate::displaced::{Displaced, WAYS, walk};
use crate::judge;
use crate::operation::Operation;
use crate::scene::{Scene, Storage, pattern};
use crate::writing::{self, Written, work};
use crate::{file_to_import, long, operations};

/// What late hosts did.
#[derive(Debug, Default)]
struct Late {
    schedules: u64,
    writes: u64,
    records: u64,
}

fn writes(scene: &Scene, host: Incarnation, act: Act) -> u64 {
    scene.worlds.iter().map(|world| world.power(host).count(act)).sum()
}

/// How many steps the operation takes alone.
fn steps(start: &Scene, operation: &'static Operation, seed: u64) -> u64 {
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    let run = |store: &Store, scene: &Scene| (operation.run)(store, scene).unwrap();
    walk(&start.copy(), seed, run, move |turn, _| counted.store(turn.step(), Ordering::Relaxed));
    count.load(Ordering::Relaxed)
}

fn freeze(
    start: &Scene,
    operation: &'static Operation,
    hold: u64,
    displaced: Displaced,
    repairs: bool,
    seed: u64,
    late: &mut Late,
    what: &str,
) {
    let scene = start.copy();
    let begun = judge::moments(&scene);
    let ((first, me), (second, _)) = hosts::alone(seed, || (scene.join("first"), scene.join("second")));
    let returned = Arc::new(AtomicBool::new(false));
    let thaw = Arc::new(AtomicBool::new(false));
    let written = Arc::new(Mutex::new(Written::new()));
    let before = Arc::new(Mutex::new((0, 0)));
    let run_first: hosts::Work<()> = {
        let (scene, returned) = (scene.clone(), returned.clone());
        Box::new(move || {
            returned.store((operation.run)(&first, &scene).is_ok(), Ordering::Relaxed);
            first.close().unwrap();
        })
    };
    let run_second: hosts::Work<()> = {
        let (scene, thaw, written, what) = (scene.clone(), thaw.clone(), written.clone(), what.to_owned());
        Box::new(move || {
            if repairs {
                judge::repair_politely(&second, &what);
            }
            *written.lock().unwrap() = work(&scene, &second, &thaw);
            second.close().unwrap();
        })
    };
    let decide = {
        let (scene, before) = (scene.clone(), before.clone());
        let mut frozen = false;
        Box::new(move |turn: &Turn<'_>| {
            if turn.host == 0 && turn.step() == hold {
                frozen = true;
                displaced.displace(&scene, me);
                *before.lock().unwrap() = (writes(&scene, me, Act::Write), writes(&scene, me, Act::Record));
            }
            if frozen && thaw.load(Ordering::Relaxed) {
                frozen = false;
            }
            usize::from(frozen || turn.ended[0])
        })
    };
    hosts::run(seed + 1, vec![run_first, run_second], decide);
    late.schedules += 1;
    let before = *before.lock().unwrap();
    late.writes += writes(&scene, me, Act::Write) - before.0;
    late.records += writes(&scene, me, Act::Record) - before.1;
    let mut model = judge::model(&scene, &[(operation, returned.load(Ordering::Relaxed))]);
    for (repo, id, states) in written.lock().unwrap().drain(..) {
        writing::rewritten(&mut model, repo, &id, &states);
    }
    hosts::alone(seed + 2, || {
        judge::hold(&scene, &begun, what);
        let (store, _) = scene.join("judge");
        judge::look(&scene, &store, &model, false, what);
        judge::recover(&scene, &store, &model, what);
        judge::look(&scene, &store, &model, true, what);
        store.close().unwrap();
        judge::hold(&scene, &begun, what);
    });
}

/// The operation, frozen at its steps. In a normal run at most `points` of them.
fn frozen_everywhere(name: &str, storage: Storage, points: u64, moves: bool) {
    let operation = operations::named(name);
    std::fs::write(file_to_import(), pattern(6)).unwrap();
    let seed = 1000;
    let start = operations::start(operation, storage, seed);
    let begun = Instant::now();
    let all = steps(&start, operation, seed + 1);
    let stride = if long() > 0 { 1 } else { all.div_ceil(points).max(1) };
    let mut late = Late::default();
    for (way, displaced) in WAYS.iter().enumerate() {
        for repairs in [true, false] {
            let first = 1 + mix(way as u64 * 2 + u64::from(repairs)) % stride;
            for hold in (first..=all).step_by(stride as usize) {
                let what =
                    format!("{name}, {storage:?}, frozen at step {hold}, {displaced:?}, repairs {repairs}");
                freeze(&start, operation, hold, *displaced, repairs, seed + 10, &mut late, &what);
            }
        }
    }
    println!(
        "{name} ({storage:?}): {all} steps, {} schedules, {} late writes of data, {} of records, {:.1} s",
        late.schedules,
        late.writes,
        late.records,
        begun.elapsed().as_secs_f64()
    );
    assert!((late.writes > 0 || !moves) && late.records > 0, "{name}: nobody came back: {late:?}");
}

macro_rules! fencing {
    ($($test:ident: $name:literal, $storage:ident, $moves:literal;)*) => {
        $(#[test]
        fn $test() {
            frozen_everywhere($name, Storage::$storage, 24, $moves);
        })*
    };
}

fencing! {
    copy_of_a_disk: "copy a disk", Overlays, true;
    copy_of_a_snapshot: "copy a snapshot", Overlays, true;
    copy_onto_a_disk: "copy a disk onto a disk", Overlays, true;
    merge_up: "remove a snapshot and merge up", Overlays, true;
    merge_down: "remove a snapshot and merge down", Overlays, true;
    merge_line_down: "remove three snapshots in a row and merge down", Overlays, true;
    merge_line_up: "remove three snapshots in a row and merge up", Overlays, true;
    replace: "give a disk a volume of its own", Overlays, true;
    replace_a_snapshot: "give a snapshot a volume of its own", Overlays, true;
    switch: "snapshot", Overlays, true;
    clone: "snapshot", Clones, true;
    resize: "resize", Overlays, true;
    removal: "remove a disk, then what it is on", Overlays, false;
}
