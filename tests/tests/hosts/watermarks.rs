//! Work that is slow enough to say how far it is. Whatever a watermark says is durable, at every step (I13); and who was
//! displaced says nothing more.

use std::sync::{Arc, Mutex};

use serde_json::Value;
use vdsmstore_core::options::{Bandwidth, CheckOptions, CopyOptions, FixOptions, Strategy};
use vdsmstore_core::repository::Liveness;
use vdsmstore_core::{Result, Store};
use vdsmstore_io::device::sim::hosts::{self, Act, Turn};

use crate::judge;
use crate::long;
use crate::operation::{ALL, OVERLAYS, Operation, disk, family, remove_later, rewrite, snapshot};
use crate::operations;
use crate::raw::text;
use crate::scene::{CLUSTER, NAMES, Scene, Storage, named_copy, pattern};

/// A cluster takes longer than a watermark waits.
const SLOW: Option<Bandwidth> = Some(Bandwidth(24 << 10));

fn fix_slowly(store: &Store) -> Result<()> {
    for fix in store.check_storage_repository("A", &CheckOptions::default())? {
        let options = FixOptions { bandwidth: SLOW, ..FixOptions::default() };
        let task = store.fix_storage_repository("A", &fix, &options)?;
        store.run_tasks();
        store.wait_task(&task, None)?;
    }
    Ok(())
}

/// A disk on a removed snapshot, which has two clusters of its own, on another one. `above`: what the disk has.
fn removed(store: &Store, scene: &mut Scene, above: &[usize]) {
    let mut data = pattern(1);
    let mut fill = |clusters: &[usize], byte| {
        for cluster in clusters {
            data[cluster * CLUSTER..][..CLUSTER].fill(byte);
        }
        data.clone()
    };
    disk(store, scene, 0, "disk", fill(&[], 0));
    snapshot(store, scene, 0, "lower", "disk");
    rewrite(store, scene, 0, "disk", fill(&[2, 3], 7));
    snapshot(store, scene, 0, "upper", "disk");
    rewrite(store, scene, 0, "disk", fill(above, 8));
    remove_later(store, 0, scene, "upper").unwrap();
    let id = scene.id("upper").to_owned();
    scene.wants.remove(&(0, id));
}

const OPERATIONS: [Operation; 4] = [
    Operation {
        name: "copy slowly",
        storages: ALL,
        setup: |store, scene| {
            family(store, scene);
            scene.expect(1, "new", pattern(2));
        },
        run: |store, scene| {
            let options = CopyOptions { bandwidth: SLOW, ..named_copy(scene, "new") };
            store.copy_image("B", scene.id("child"), None, "{}", &options)?;
            store.run_tasks();
            Ok(())
        },
        removes: &[],
    },
    Operation {
        name: "merge down slowly",
        storages: OVERLAYS,
        setup: |store, scene| removed(store, scene, &[0]),
        run: |store, _| fix_slowly(store),
        removes: &[],
    },
    Operation {
        name: "merge up slowly",
        storages: OVERLAYS,
        setup: |store, scene| removed(store, scene, &[0, 1, 4, 5]),
        run: |store, _| fix_slowly(store),
        removes: &[],
    },
    Operation {
        name: "replace slowly",
        storages: OVERLAYS,
        setup: |store, scene| {
            family(store, scene);
            store.set_image_strategy("A", scene.id("child"), Strategy::Performance).unwrap();
        },
        run: |store, _| fix_slowly(store),
        removes: &[],
    },
];

#[test]
fn what_is_below_a_watermark_is_durable_at_every_step() {
    for operation in &OPERATIONS {
        let scene = operations::start(operation, Storage::Overlays, 1).copy();
        let (store, _) = hosts::alone(2, || scene.join("host"));
        let (run, working) = (operation.run, scene.clone());
        let work: hosts::Work<()> = Box::new(move || run(&store, &working).unwrap());
        let counts = Arc::new(Mutex::new((0, 0)));
        let counted = counts.clone();
        let decide = Box::new(move |turn: &Turn<'_>| {
            let mut counts = counted.lock().unwrap();
            for moment in judge::moments(&scene) {
                let violations = moment.violations(None);
                let lost = violations.iter().find(|violation| violation.starts_with("I13"));
                assert!(lost.is_none(), "{}, step {}: {lost:?}", operation.name, turn.step());
                counts.1 += moment.believed().count();
            }
            counts.0 += 1;
            0
        });
        hosts::run(3, vec![work], decide);
        let (steps, believed) = *counts.lock().unwrap();
        println!("{}: {steps} steps, at {believed} of them there is a watermark", operation.name);
        assert!(believed > 0, "{}: there was none", operation.name);
    }
}

/// What a store said of how far it is.
fn said(scene: &Scene, store: &str) -> Vec<(usize, String, Value)> {
    let all = (0..2).flat_map(|repo| {
        scene.raw(repo).progress.into_iter().map(move |(image, progress)| (repo, image, progress))
    });
    all.filter(|(_, _, progress)| progress["incarnation"] == store).collect()
}

/// A host is frozen and loses its locks, another one goes on, and the first comes back. True: it was displaced, and came
/// back.
fn displaced(begin: &Scene, operation: &'static Operation, step: u64) -> bool {
    let what = format!("{}, frozen at step {step}", operation.name);
    let scene = begin.copy();
    let ((first, me), (second, _)) = hosts::alone(4, || (scene.join("first"), scene.join("second")));
    let before = judge::moments(&scene);
    // What each record says when the first comes back, and what it had said.
    let thawed = Arc::new(Mutex::new(None));
    let (run, working) = (operation.run, scene.clone());
    let works: Vec<hosts::Work<()>> = vec![
        Box::new(move || {
            let _ = run(&first, &working);
            let _ = first.close();
        }),
        Box::new({
            let what = what.clone();
            move || {
                judge::repair_politely(&second, &what);
                second.close().unwrap();
            }
        }),
    ];
    let decide = {
        let (scene, thawed) = (scene.clone(), thawed.clone());
        let mut frozen = None;
        Box::new(move |turn: &Turn<'_>| {
            if turn.host == 0 && turn.step() == step && turn.act != Act::End {
                frozen = Some(turn.act);
                for world in &scene.worlds {
                    world.revoke(me, false);
                    world.set_liveness(me, Liveness::LikelyDead);
                }
            }
            if turn.host == 1 && turn.act == Act::End {
                *thawed.lock().unwrap() =
                    frozen.map(|act| (act, [scene.raw(0), scene.raw(1)], said(&scene, &me.to_string())));
            }
            usize::from(frozen.is_some() && !turn.ended[1])
        })
    };
    hosts::run(5, works, decide);
    hosts::alone(6, || {
        judge::hold(&scene, &before, &what);
        let model = judge::model(&scene, &[(operation, false)]);
        let (store, _) = scene.join("judge");
        judge::look(&scene, &store, &model, false, &what);
        store.close().unwrap();
    });
    let Some((act, records, told)) = thawed.lock().unwrap().take() else { return false };
    let me = me.to_string();
    let mut was_displaced = false;
    for (repo, image, progress) in said(&scene, &me) {
        let is_merge = text(&progress["stage"]).starts_with("merge");
        let volume = text(&progress["volume"]);
        let mine =
            if is_merge { records[repo].images.get(&image) } else { records[repo].volumes.get(volume) };
        let lost = mine.is_none_or(|mine| mine["owner"]["incarnation"] != *me);
        let is_new = !told.contains(&(repo, image.clone(), progress.clone()));
        // What was on its way arrives.
        let late = matches!(act, Act::Name | Act::Sync);
        assert!(!lost || !is_new || late, "{what}: in {}: image {image}: {progress}", NAMES[repo]);
    }
    for raw in &records {
        let owned = |record: &Value| record["owner"]["incarnation"] == *me;
        was_displaced |= !raw.images.values().any(owned) && !raw.volumes.values().any(owned);
    }
    was_displaced
}

#[test]
fn who_was_displaced_says_no_more_how_far_it_is() {
    for operation in &OPERATIONS {
        let begin = operations::start(operation, Storage::Overlays, 1);
        let stride = if long() > 0 { 1 } else { 7 };
        let (mut schedules, mut count) = (0, 0);
        for step in (1..400).step_by(stride) {
            schedules += 1;
            count += u64::from(displaced(&begin, operation, step));
        }
        println!("{}: {schedules} schedules, displaced in {count}", operation.name);
        assert!(count > 10, "{}: nobody was displaced", operation.name);
    }
}

/// Before a snapshot has a record, the marker that says what it will be on looks left over.
#[test]
fn a_snapshot_is_taken_by_a_host_that_was_displaced() {
    let operation = operations::named("snapshot");
    let begin = operations::start(operation, Storage::Overlays, 1);
    let count = (1..80).filter(|step| displaced(&begin, operation, *step)).count();
    assert!(count > 10, "nobody was displaced");
}
