//! A host loses power in the middle of an operation, and another one goes on working before anybody repairs anything:
//! nothing that was whole is in its way, and when all is repaired, every image is what it must be.
//!
//! In each state one second operation, chosen by `VDSMSTORE_SEED`; with `VDSMSTORE_LONG=1` all of them.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::field_reassign_with_default,
    clippy::needless_range_loop,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

#[path = "crash/invariants.rs"]
mod invariants;
#[allow(dead_code, reason = "what was made is judged elsewhere")]
#[path = "crash/operation.rs"]
mod operation;
#[path = "crash/scene.rs"]
mod scene;

use std::collections::BTreeMap;

use vdsmstore_core::options::{
    CopyOptions, CreateOptions, ForceOptions, PrepareOptions, RemoveOptions, ResizeOptions, Strategy,
};
use vdsmstore_core::{ErrorKind, Result, Status, Store};

use operation::{OPERATIONS, Operation};
use scene::{Ids, LOSSES, NAMES, SIZE, Scene, join, read, recover, repair};

const SECOND: &str = "87654321-4321-4321-8321-cba987654321";
const BLOCK: usize = 64 * 1024;

/// By repository and id, what an image holds.
type Model = BTreeMap<(usize, String), Vec<u8>>;

/// What the second host does.
struct Then {
    name: &'static str,
    /// The image without which it cannot be done.
    on: fn(&Ids) -> &String,
    run: fn(&Store, &Ids) -> Result<()>,
    /// How it changes what the images hold.
    change: fn(&mut Model, &Ids),
}

fn nothing(_: &mut Model, _: &Ids) {}

fn made(model: &mut Model, repo: usize, from: &str) {
    let data = model[&(0, from.to_owned())].clone();
    model.insert((repo, SECOND.to_owned()), data);
}

fn create() -> CreateOptions {
    CreateOptions { image_id: Some(SECOND.to_owned()), ..CreateOptions::default() }
}

fn copy() -> CopyOptions {
    CopyOptions { image_id: Some(SECOND.to_owned()), ..CopyOptions::default() }
}

fn write(store: &Store, id: &str) -> Result<()> {
    let image = store.open_image("A", id, true)?;
    image.write(BLOCK as i64 / 2, &vec![201; BLOCK * 2])?;
    image.write_zeroes(5 * BLOCK as i64, BLOCK as i64)?;
    image.close()
}

fn written(model: &mut Model, id: &str) {
    let data = model.get_mut(&(0, id.to_owned())).unwrap();
    data[BLOCK / 2..BLOCK / 2 + BLOCK * 2].fill(201);
    data[5 * BLOCK..6 * BLOCK].fill(0);
}

const THEN: &[Then] = &[
    Then {
        name: "snapshot of the upper disk",
        on: |ids| &ids.child,
        run: |store, ids| store.create_snapshot("A", &ids.child, "{}", &create()).map(drop),
        change: |model, ids| made(model, 0, &ids.child),
    },
    Then {
        name: "snapshot of the disk, which is then written",
        on: |ids| &ids.disk,
        run: |store, ids| {
            store.create_snapshot("A", &ids.disk, "{}", &create())?;
            write(store, &ids.disk)
        },
        change: |model, ids| {
            made(model, 0, &ids.disk);
            written(model, &ids.disk);
        },
    },
    Then {
        name: "write to the upper disk",
        on: |ids| &ids.child,
        run: |store, ids| write(store, &ids.child),
        change: |model, ids| written(model, &ids.child),
    },
    Then {
        name: "create on the snapshot",
        on: |ids| &ids.snapshot,
        run: |store, ids| {
            store.create_virtual_disk("A", None, Some(&ids.snapshot), "{}", &create()).map(drop)
        },
        change: |model, ids| made(model, 0, &ids.snapshot),
    },
    Then {
        name: "copy of the upper disk",
        on: |ids| &ids.child,
        run: |store, ids| {
            store.copy_image("B", &ids.child, None, "{}", &copy())?;
            store.run_tasks();
            Ok(())
        },
        change: |model, ids| made(model, 1, &ids.child),
    },
    Then {
        name: "copy of the disk on its copy",
        on: |ids| &ids.disk,
        run: |store, ids| {
            store.copy_image("B", &ids.disk, Some(&ids.copy), "{}", &copy())?;
            store.run_tasks();
            Ok(())
        },
        change: |model, ids| made(model, 1, &ids.disk),
    },
    Then {
        name: "snapshot of the upper disk, a disk on that, and the upper disk removed",
        on: |ids| &ids.child,
        run: |store, ids| {
            let snapshot =
                store.create_snapshot("A", &ids.child, "{}", &CreateOptions::default())?.to_string();
            store.create_virtual_disk("A", None, Some(&snapshot), "{}", &create())?;
            store.remove_image("A", &snapshot, &RemoveOptions::default())?;
            store.remove_image("A", &ids.child, &RemoveOptions::default())
        },
        change: |model, ids| {
            made(model, 0, &ids.child);
            model.remove(&(0, ids.child.clone()));
        },
    },
    Then {
        name: "remove the disk",
        on: |ids| &ids.disk,
        run: |store, ids| store.remove_image("A", &ids.disk, &RemoveOptions::default()),
        change: |model, ids| drop(model.remove(&(0, ids.disk.clone()))),
    },
    Then {
        name: "resize the upper disk, and write it",
        on: |ids| &ids.child,
        run: |store, ids| {
            store.resize_virtual_disk("A", &ids.child, 3 * SIZE as i64, &ResizeOptions::default())?;
            write(store, &ids.child)
        },
        change: |model, ids| written(model, &ids.child),
    },
    Then {
        name: "the upper disk gets a volume of its own",
        on: |ids| &ids.child,
        run: |store, ids| {
            store.set_image_strategy("A", &ids.child, Strategy::Performance)?;
            repair(store, "A")
        },
        change: nothing,
    },
    Then {
        name: "prepare the upper disk, and let it go",
        on: |ids| &ids.child,
        run: |store, ids| {
            store.prepare_image("A", &ids.child, &PrepareOptions::default())?;
            store.teardown_image("A", &ids.child, &ForceOptions::default())
        },
        change: nothing,
    },
    Then {
        name: "copy of the snapshot",
        on: |ids| &ids.snapshot,
        run: |store, ids| {
            store.copy_image("B", &ids.snapshot, None, "{}", &CopyOptions::default())?;
            store.run_tasks();
            Ok(())
        },
        change: |model, ids| {
            let data = model[&(0, ids.snapshot.clone())].clone();
            model.insert((1, ids.snapshot.clone()), data);
        },
    },
];

/// What the second host finds after the crash it works with, and after it nothing has been lost.
fn go_on(mut scene: Scene, operation: &Operation, then: &Then, ids: &Ids, what: &str) -> bool {
    invariants::hold(&scene.worlds, what);
    let (store, _) = join(&scene, "next");
    let removes = (operation.removes)(ids);
    let gone = |repo: usize, id: &str| match store.get_image_status(NAMES[repo], id) {
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ImageNotFound, "{what}: {error:?}");
            assert!(removes.contains(&(repo, id.to_owned())), "{what}: {id} is lost");
            true
        }
        Ok(_) => false,
    };
    let keys: Vec<_> = scene.model.keys().cloned().collect();
    for (repo, id) in keys {
        if gone(repo, &id) {
            scene.model.remove(&(repo, id));
        }
    }
    let possible = scene.model.contains_key(&(0, (then.on)(ids).clone()));
    let done = (then.run)(&store, ids);
    if possible {
        done.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        (then.change)(&mut scene.model, ids);
    } else {
        assert!(done.is_err(), "{what}: done without {}", (then.on)(ids));
    }
    let holds = |when: &str| {
        for ((repo, id), data) in &scene.model {
            let status = store.get_image_status(NAMES[*repo], id).unwrap();
            assert_ne!(status.status, Status::Broken, "{what}: {when}, {id} in {repo}: {status:?}");
            let found = read(&store, NAMES[*repo], id).unwrap_or_else(|error| panic!("{what}: {error:?}"));
            assert!(found == *data, "{what}: {when}, {id} in {} is wrong", NAMES[*repo]);
        }
    };
    holds("at once");
    invariants::hold(&scene.worlds, what);
    // What never came to be may have lost what it was made from.
    for repo in NAMES {
        if store.get_image_status(repo, &ids.new).is_ok_and(|status| status.status == Status::Broken) {
            store.remove_image(repo, &ids.new, &RemoveOptions::default()).unwrap();
            store.run_tasks();
        }
    }
    recover(&scene, &store, what);
    holds("after all fixes");
    invariants::hold(&scene.worlds, what);
    store.close().unwrap();
    possible
}

/// Small and repeatable.
fn mix(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn everywhere(reflink: bool) {
    let long = std::env::var_os("VDSMSTORE_LONG").is_some();
    let seed: u64 = std::env::var("VDSMSTORE_SEED")
        .map_or_else(|_| u64::from(std::process::id()), |text| text.parse().unwrap());
    println!("VDSMSTORE_SEED={seed}");
    let (start, ids) = scene::scene(reflink);
    let mut counts = BTreeMap::<&str, (u32, u32)>::new();
    let mut number = seed;
    for operation in OPERATIONS {
        for cut in 0..2 {
            for after in 0.. {
                number = mix(number);
                let chosen = number as usize % THEN.len();
                let seconds = if long { 0..THEN.len() } else { chosen..chosen + 1 };
                let mut finished = false;
                for then in &THEN[seconds] {
                    let (loss, keep) = LOSSES[(number >> 32) as usize % LOSSES.len()];
                    let scene = start.copy();
                    let (store, me) = join(&scene, "victim");
                    let power = scene.worlds[cut].power(me.incarnation);
                    power.cut_after(Some(after));
                    let _ = (operation.run)(&store, &ids);
                    finished = !power.is_off();
                    for world in &scene.worlds {
                        world.crash(me.incarnation, &mut *keep(after));
                    }
                    let what = format!(
                        "{}, reflink {reflink}, {} cut after {after}, {loss}, then {} (seed {seed})",
                        operation.name, NAMES[cut], then.name
                    );
                    let possible = go_on(scene, operation, then, &ids, &what);
                    let count = counts.entry(then.name).or_default();
                    count.0 += 1;
                    count.1 += u32::from(possible);
                }
                if finished {
                    break;
                }
            }
        }
    }
    for then in THEN {
        let (states, done) = counts.get(then.name).copied().unwrap_or_default();
        println!("{}: in {states} states, done in {done}", then.name);
        assert!(done > 3, "{}: it was not tried", then.name);
    }
}

#[test]
fn overlays() {
    everywhere(false);
}

#[test]
fn clones() {
    everywhere(true);
}
