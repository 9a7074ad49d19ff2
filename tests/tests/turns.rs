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

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use vdsmstore_core::id::{Incarnation, VolumeId};
use vdsmstore_core::options::{
    AutoFix, CheckOptions, CopyOptions, CreateOptions, FixOptions, ForceOptions, PrepareOptions,
    RemoveOptions, ResizeOptions,
};
use vdsmstore_core::repository::{HostIdentity, Liveness, Read, RecordKey};
use vdsmstore_core::sim::{SimOptions, SimWorld};
use vdsmstore_core::{FixType, Store};
use vdsmstore_io::device::sim::hosts::{self, Act, Turn};
use vdsmstore_io::mutation;

use beside::beside;
use operation::{OPERATIONS, Operation};
use scene::{CLUSTER, Ids, NAMES, SIZE, Scene, fill, join, read, repair};

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
        let ((one, _), (two, HostIdentity { incarnation: me, .. })) =
            hosts::alone(1, || (join(&scene, "machine"), join(&scene, "machine")));
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
        let (gone, HostIdentity { incarnation: me, .. }) = join(&start, "machine");
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
        let (store, _) = join(&scene, "setup");
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
const CHOSEN: &[&str] = &["create on a snapshot", "copy of a snapshot", "give a disk a volume of its own"];

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
    let (one, two) = hosts::alone(1, || (join(scene, "one"), join(scene, "two")));
    let ((one, me), (two, other)) = ((one.0, one.1.incarnation), (two.0, two.1.incarnation));
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
    invariants::hold(&scene.worlds, what);
    let (store, _) = join(scene, "judge");
    for ((repo, id), data) in scene.model.iter().filter(|(key, _)| !removes.contains(*key)) {
        let now = read(&store, NAMES[*repo], id);
        let now = now.unwrap_or_else(|error| panic!("{what}: {id} was whole: {error:?}"));
        assert!(now == *data, "{what}: {id} is something else");
    }
    store.close().unwrap();
}

/// A disk of five clusters, of which it has the first, on a longer base; its id, and what it holds.
fn short_disk(scene: &Scene) -> (String, Vec<u8>) {
    let (store, _) = join(scene, "setup");
    let plain = CreateOptions::default();
    let make = |data: &[u8]| {
        let size = Some(data.len() as i64);
        let id = store.create_virtual_disk("A", size, None, "{}", &plain).unwrap().to_string();
        fill(&store, "A", &id, data);
        id
    };
    let long = make(&vec![1; SIZE as usize]);
    let base = store.create_snapshot("A", &long, "{}", &plain).unwrap().to_string();
    let mut data = vec![1; 5 * CLUSTER];
    data[..CLUSTER].fill(2);
    let source = make(&data);
    let disk = store.copy_image("A", &source, Some(&base), "{}", &CopyOptions::default()).unwrap();
    store.run_tasks();
    store.close().unwrap();
    (disk.to_string(), data)
}

/// The number of the step before which a host that works alone comes to the place of that switch, and how many it makes.
fn place(start: &Scene, name: &'static str, work: impl FnOnce(&Store) + Send + 'static) -> (u64, u64) {
    let scene = start.copy();
    let (store, _) = hosts::alone(1, || join(&scene, "alone"));
    let found = Arc::new(Mutex::new((None, 0)));
    let decide = {
        let found = found.clone();
        move |turn: &Turn<'_>| {
            let (place, steps) = &mut *found.lock().unwrap();
            *steps = turn.step();
            if mutation::watched().contains(name) {
                place.get_or_insert(*steps);
            }
            0
        }
    };
    let run: hosts::Work<()> = Box::new(move || {
        mutation::watch();
        work(&store);
        let _ = store.close();
    });
    hosts::run(1, vec![run], Box::new(decide));
    let (place, steps) = *found.lock().unwrap();
    (place.unwrap(), steps)
}

/// A host that lost its locks, and does not know it, is about to write into a volume to make its disk larger. Another one takes
/// the disk for writing and is held so many steps after it came to `taker`. Then the first makes so many steps as there are, then the
/// second all of its own.
fn larger_under_a_writer(taker: &'static str, later: RangeInclusive<u64>) {
    let start = hosts::alone(0, || Scene {
        worlds: [(); 2].map(|()| SimWorld::new(SimOptions::default())),
        model: BTreeMap::new(),
    });
    let (id, data) = hosts::alone(0, || short_disk(&start));
    let grow = |id: String| {
        move |store: &Store| {
            let _ = store.resize_virtual_disk("A", &id, SIZE as i64, &ResizeOptions::default());
        }
    };
    let overwrite = |id: String, done: Arc<AtomicBool>| {
        move |store: &Store| {
            let Ok(image) = store.open_image("A", &id, true) else { return };
            image.write(2 * CLUSTER as i64, &vec![3; CLUSTER]).unwrap();
            image.close().unwrap();
            done.store(true, Ordering::Relaxed);
        }
    };
    // The same schedules with a switch on as without it.
    mutation::keep_all();
    let (begins, steps) = place(&start, "in-place.begin", grow(id.clone()));
    let (second, _) = place(&start, taker, overwrite(id.clone(), Arc::default()));
    mutation::as_told();
    let (mut refused, mut written) = (0, 0);
    for (goes, later) in (1..=steps - begins).flat_map(|goes| later.clone().map(move |later| (goes, later))) {
        let scene = start.copy();
        let ((one, HostIdentity { incarnation: me, .. }), (two, _)) =
            hosts::alone(1, || (join(&scene, "one"), join(&scene, "two")));
        let done = Arc::<AtomicBool>::default();
        let works: Vec<hosts::Work<()>> = vec![
            {
                let grow = grow(id.clone());
                Box::new(move || {
                    grow(&one);
                    let _ = one.close();
                })
            },
            {
                let overwrite = overwrite(id.clone(), done.clone());
                Box::new(move || {
                    overwrite(&two);
                    let _ = two.close();
                })
            },
        ];
        let decide = {
            let worlds = scene.worlds.clone();
            let mut turns = 0;
            move |turn: &Turn<'_>| {
                let over = match turns {
                    0 => turn.host == 0 && turn.step() == begins,
                    1 => turn.host == 1 && turn.step() == second + later,
                    2 => turn.host == 0 && turn.step() == begins + goes,
                    _ => false,
                };
                if over {
                    turns += 1;
                    if turns == 1 {
                        worlds[0].revoke(me, false);
                    }
                }
                usize::from(turns == 1 || turns == 3 && !turn.ended[1])
            }
        };
        hosts::run(1, works, Box::new(decide));
        let wrote = done.load(Ordering::Relaxed);
        (refused, written) = (refused + u32::from(!wrote), written + u32::from(wrote));
        let mut wanted = data.clone();
        if wrote {
            wanted[2 * CLUSTER..3 * CLUSTER].fill(3);
        }
        hosts::alone(2, || {
            let (store, _) = join(&scene, "judge");
            let image = store.open_image("A", &id, false).unwrap();
            let mut now = vec![0xaa; image.size().unwrap() as usize];
            image.read(0, &mut now).unwrap();
            image.close().unwrap();
            wanted.resize(now.len(), 0);
            assert!(
                now == wanted,
                "{taker} and {later} steps: {goes} steps after {begins}, wrote {wrote}: the disk is wrong"
            );
            invariants::hold(&scene.worlds, taker);
            store.close().unwrap();
        });
    }
    println!("{taker}: refused {refused} times, written {written} times");
    assert!(refused + written > 10);
}

/// Who takes a disk sees who has begun to write into its volume since it was looked at.
#[test]
fn who_takes_a_disk_looks_at_its_volume_again() {
    larger_under_a_writer("lease.token", 0..=0);
}

/// Who begins to write into a volume sees who has taken its disk.
#[test]
fn who_writes_a_volume_looks_at_its_disk_again() {
    larger_under_a_writer("in-place.look", 1..=12);
}
