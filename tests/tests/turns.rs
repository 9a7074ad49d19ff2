//! Two stores on simulated storage: one is held at each of its steps in turn, and the other does something whole meanwhile.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::field_reassign_with_default,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

#[path = "hosts/beside.rs"]
mod beside;
#[path = "crash/invariants.rs"]
mod invariants;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "crash/operation.rs"]
mod operation;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "crash/scene.rs"]
mod scene;

use std::sync::{Arc, Mutex};

use serde_json::Value;
use vdsmstore_core::id::{Incarnation, VolumeId};
use vdsmstore_core::options::{
    AutoFix, CheckOptions, FixOptions, ForceOptions, PrepareOptions, RemoveOptions,
};
use vdsmstore_core::repository::{HostIdentity, Liveness, Read, RecordKey};
use vdsmstore_core::sim::SimOptions;
use vdsmstore_core::{FixType, Store, StoreOptions};
use vdsmstore_io::device::sim::hosts::{self, Act, Turn};

use beside::beside;
use operation::{OPERATIONS, Operation};
use scene::{Ids, NAMES, Scene, join, read, repair};

/// A process of that machine.
fn process(scene: &Scene, machine: &str) -> (Store, Incarnation) {
    let mut options = StoreOptions::default();
    options.host_id = Some(machine.into());
    options.threads = Some(0);
    let store = Store::new(options).unwrap();
    let incarnation = Incarnation::random();
    let identity = HostIdentity { host_id: machine.into(), incarnation, boot_id: machine.into() };
    for (world, repo) in scene.worlds.iter().zip(NAMES) {
        store.connect_driver(repo, world.connect(identity.clone())).unwrap();
    }
    (store, incarnation)
}

/// The record of an image in the first repository.
fn record(scene: &Scene, id: &str) -> Value {
    let driver = scene.worlds[0].connect(scene::host("looker"));
    let is_it = |key: &RecordKey| matches!(key, RecordKey::Image(image) if image.to_string() == id);
    let key = scene.worlds[0].records().into_iter().find(is_it).unwrap();
    let found = driver.get(key, Read::Relaxed).unwrap().unwrap();
    driver.close().unwrap();
    serde_json::from_slice(&found.bytes).unwrap()
}

/// Two processes of one machine: the second prepares the disk `child`, and is gone if it `dies`. `first` is what the other
/// one does; what the second was told stays true. Returns at how many steps the first was held.
fn beside_who_prepares(
    start: &Scene,
    ids: &Ids,
    dies: bool,
    first: fn(&Store, &str),
    judge: fn(&Scene, &str, Incarnation, &Value),
) -> u64 {
    for step in 1.. {
        let scene = start.copy();
        let ((one, _), (two, me)) =
            hosts::alone(1, || (process(&scene, "machine"), process(&scene, "machine")));
        let told = Arc::new(Mutex::new(None));
        let run_first: hosts::Work<()> = {
            let child = ids.child.clone();
            Box::new(move || {
                first(&one, &child);
                let _ = one.close();
            })
        };
        let run_second: hosts::Work<()> = {
            let (child, told, scene) = (ids.child.clone(), told.clone(), scene.clone());
            Box::new(move || {
                let prepared = two.prepare_image("A", &child, &PrepareOptions::default());
                // What it has recorded and the program that it prepared the disk for stay.
                for world in scene.worlds.iter().filter(|_| dies) {
                    world.crash(me, &mut || true);
                }
                *told.lock().unwrap() = prepared.ok().map(|prepared| (prepared, two));
            })
        };
        if beside(step, run_first, run_second).is_none() {
            return step - 1;
        }
        if let Some((prepared, two)) = told.lock().unwrap().take() {
            hosts::alone(2, || judge(&scene, &ids.child, me, &prepared.blockdev));
            drop(two);
        }
    }
    0
}

#[test]
fn a_disk_that_was_prepared_once_more_is_not_given_back() {
    let (start, ids) = hosts::alone(0, || scene::scene(false));
    // Another process of the machine had prepared it, and has gone.
    hosts::alone(0, || {
        let (gone, me) = process(&start, "machine");
        gone.prepare_image("A", &ids.child, &PrepareOptions::default()).unwrap();
        for world in &start.worlds {
            world.crash(me, &mut || true);
        }
    });
    let give_back = |store: &Store, child: &str| {
        let _ = store.teardown_image("A", child, &ForceOptions::default());
    };
    let steps = beside_who_prepares(&start, &ids, false, give_back, |scene, child, me, _| {
        let open = &record(scene, child)["open"];
        assert_eq!(open["incarnation"], me.to_string(), "who prepared it does not hold it");
    });
    println!("held at {steps} steps");
    assert!(steps > 5);
}

/// On storage of one host, where no record tells who writes into a volume.
#[test]
fn a_disk_that_was_prepared_keeps_its_volumes() {
    let options = SimOptions { several_hosts: false, ..SimOptions::default() };
    let (start, ids) = hosts::alone(0, || {
        let (scene, ids) = scene::scene_on(options);
        let (store, _) = process(&scene, "setup");
        store.remove_image("A", &ids.disk, &RemoveOptions::default()).unwrap();
        store.run_tasks();
        let later = RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() };
        store.remove_image("A", &ids.snapshot, &later).unwrap();
        store.close().unwrap();
        (scene, ids)
    });
    let merge = |store: &Store, _: &str| {
        let fixes = store.check_storage_repository("A", &CheckOptions::default()).unwrap();
        if let Some(fix) = fixes.iter().find(|fix| fix.fix_type == FixType::Merge) {
            let _ = store.fix_storage_repository("A", fix, &FixOptions::default());
            store.run_tasks();
        }
    };
    let steps = beside_who_prepares(&start, &ids, true, merge, |scene, child, _, blockdev| {
        let objects = scene.worlds[0].objects();
        let mut node = blockdev;
        let mut depth = 0;
        while let Some(path) = node["file"]["filename"].as_str() {
            let volume = VolumeId(path.rsplit('/').next().unwrap().parse().unwrap());
            assert!(objects.contains(&volume), "volume {volume} of a prepared disk is not there any more");
            if depth == 0 {
                assert_eq!(record(scene, child)["volume"], volume.to_string(), "a prepared disk moved");
            }
            node = &node["backing"];
            depth += 1;
        }
        assert!(depth > 0);
    });
    println!("held at {steps} steps");
    assert!(steps > 20);
}

/// Those that are tried in a short run.
const CHOSEN: &[&str] = &["create on a snapshot", "copy of a snapshot"];

/// What a host builds on what another one has put, and not yet made durable, does not stand without it after a power cut.
#[test]
fn what_others_have_put_is_durable_before_something_is_built_on_it() {
    let (start, ids) = hosts::alone(0, || scene::scene(false));
    let ids = Arc::new(ids);
    let long = std::env::var_os("VDSMSTORE_LONG").is_some();
    let mut cuts = 0;
    for operation in OPERATIONS.iter().filter(|operation| long || CHOSEN.contains(&operation.name)) {
        'steps: for step in 1.. {
            for syncs in 1.. {
                let scene = start.copy();
                match cut_beside(&scene, &ids, operation, step, syncs) {
                    Cut::NoSuchStep => break 'steps,
                    Cut::NotThere => break,
                    Cut::Done => cuts += 1,
                }
                let what = format!(
                    "{}, held before step {step}, cut after {syncs} syncs of the other host",
                    operation.name
                );
                hosts::alone(2, || judge(&scene, &(operation.removes)(&ids), &what));
            }
        }
        println!("{}: {cuts} power cuts in all", operation.name);
    }
    assert!(cuts > 50, "{cuts}");
}

#[derive(Debug, PartialEq, Eq)]
enum Cut {
    /// The first host has fewer steps.
    NoSuchStep,
    /// It makes nothing durable there, or the second not so often.
    NotThere,
    Done,
}

/// The first host is held where it is about to make something durable, and never heard of again. Another one makes the same
/// call, and repairs what it finds; when it has made so much durable, all hosts lose power.
fn cut_beside(scene: &Scene, ids: &Arc<Ids>, operation: &'static Operation, step: u64, syncs: u64) -> Cut {
    let ((one, me), (two, other)) = hosts::alone(1, || (process(scene, "one"), process(scene, "two")));
    let run_first: hosts::Work<()> = {
        let ids = ids.clone();
        Box::new(move || {
            let _ = (operation.run)(&one, &ids);
            let _ = one.close();
        })
    };
    let run_second: hosts::Work<()> = {
        let ids = ids.clone();
        Box::new(move || {
            // As after a timeout.
            let _ = (operation.run)(&two, &ids);
            two.run_tasks();
            let _ = repair(&two, "A");
            let _ = two.close();
        })
    };
    let cut = Arc::new(Mutex::new(Cut::NoSuchStep));
    let decide = {
        let (worlds, cut) = (scene.worlds.clone(), cut.clone());
        let (mut holding, mut done) = (false, 0);
        move |turn: &Turn<'_>| {
            let mut cut = cut.lock().unwrap();
            if turn.host == 0 && turn.step() == step && turn.act != Act::End {
                *cut = Cut::NotThere;
                holding = turn.act == Act::Sync;
                for world in worlds.iter().filter(|_| holding) {
                    world.revoke(me, true);
                    world.set_liveness(me, Liveness::CertainlyDead);
                }
            }
            if holding && turn.host == 1 {
                if done == syncs {
                    *cut = Cut::Done;
                    for world in &worlds {
                        for host in [me, other] {
                            world.power(host).cut();
                            world.crash(host, &mut || false);
                        }
                    }
                }
                done += u64::from(turn.act == Act::Sync);
                holding = *cut != Cut::Done && turn.act != Act::End;
            }
            usize::from(holding)
        }
    };
    hosts::run(step, vec![run_first, run_second], Box::new(decide));
    Arc::try_unwrap(cut).unwrap().into_inner().unwrap()
}

fn judge(scene: &Scene, removes: &[(usize, String)], what: &str) {
    invariants::hold_but_for_garbage(&scene.worlds, what);
    let (store, _) = join(scene, "judge");
    for ((repo, id), data) in scene.model.iter().filter(|(key, _)| !removes.contains(*key)) {
        let now = read(&store, NAMES[*repo], id);
        let now = now.unwrap_or_else(|error| panic!("{what}: {id} was whole: {error:?}"));
        assert!(now == *data, "{what}: {id} is something else");
    }
    store.close().unwrap();
}
