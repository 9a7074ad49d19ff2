//! Every operation on simulated storage, its host losing power after every single step: another host then finds each
//! image as it was before or as it was to become, or broken with its intent readable. Nothing that was whole is lost.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::field_reassign_with_default,
    clippy::needless_range_loop,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

#[path = "crash/invariants.rs"]
mod invariants;
#[path = "crash/line.rs"]
mod line;
#[path = "crash/operation.rs"]
mod operation;
#[path = "crash/scene.rs"]
mod scene;

use std::sync::Arc;

use vdsmstore_core::options::ListOptions;
use vdsmstore_core::{ErrorKind, Status};

use operation::{OPERATIONS, Operation};
use scene::{Ids, LOSSES, NAMES, Scene, content, join, read, recover};

/// Judges what another host finds. `returned`: the call had come back, so what it made must be there.
fn judge(scene: &Scene, operation: &Operation, ids: &Ids, returned: bool, what: &str) -> Status {
    invariants::hold(&scene.worlds, what);
    let (store, _) = join(scene, "next");
    let made = (operation.made)(ids, scene);
    let removes = (operation.removes)(ids);
    for ((repo, id), data) in &scene.model {
        let gone = removes.contains(&(*repo, id.clone()));
        match store.get_image_status(NAMES[*repo], id) {
            Err(error) if gone && error.kind() == ErrorKind::ImageNotFound => continue,
            status => {
                assert!(!(gone && returned), "{what}: {id} is still there");
                let status = status.unwrap_or_else(|error| panic!("{what}: {id}: {error:?}"));
                assert_ne!(status.status, Status::Broken, "{what}: {id} was whole before");
            }
        }
        let now = read(&store, NAMES[*repo], id).unwrap_or_else(|error| panic!("{what}: {id}: {error:?}"));
        assert!(now == *data, "{what}: the data of {id} in {} changed", NAMES[*repo]);
        store.get_image_info(NAMES[*repo], id).unwrap_or_else(|error| panic!("{what}: {id}: {error:?}"));
    }
    // Whatever else is listed can be asked about, and is right if it is said to be whole.
    let mut found = None;
    for (index, repo) in NAMES.iter().enumerate() {
        for id in store.list_images(repo, &ListOptions::default()).unwrap() {
            let id = id.to_string();
            let status = store.get_image_status(repo, &id).unwrap();
            store.get_image_info(repo, &id).unwrap();
            if scene.model.contains_key(&(index, id.clone())) {
                continue;
            }
            match &made {
                Some((at, new, data)) if (*at, new) == (index, &id) => {
                    found = Some(status.status);
                    if status.status != Status::Broken {
                        assert!(
                            read(&store, repo, &id).unwrap() == *data,
                            "{what}: {id} is not what was to be made"
                        );
                    }
                }
                // The base that was brought along.
                _ if id == ids.snapshot => {
                    if status.status != Status::Broken {
                        assert!(
                            read(&store, repo, &id).unwrap() == content(scene, 0, &id),
                            "{what}: the base is wrong"
                        );
                    }
                }
                _ => panic!("{what}: {id} in {repo} is nobody's"),
            }
        }
    }
    if returned && made.is_some() {
        assert!(found.is_some(), "{what}: an id that was returned is lost");
    }
    recover(scene, &store, what);
    if let (Some((at, new, data)), Some(_)) = (&made, found) {
        match store.get_image_status(NAMES[*at], new) {
            // What no call had returned may vanish.
            Err(error) => assert!(!returned && error.kind() == ErrorKind::ImageNotFound, "{what}: {error:?}"),
            Ok(status) => {
                assert_ne!(status.status, Status::Broken, "{what}: {new} is broken after all fixes");
                assert!(
                    read(&store, NAMES[*at], new).unwrap() == *data,
                    "{what}: {new} is wrong after all fixes"
                );
            }
        }
    }
    for ((repo, id), data) in &scene.model {
        if !removes.contains(&(*repo, id.clone())) {
            assert!(read(&store, NAMES[*repo], id).unwrap() == *data, "{what}: the fixes changed {id}");
        }
    }
    store.close().unwrap();
    found.unwrap_or(Status::Optimized)
}

fn crash_everywhere(reflink: bool) {
    let (start, ids) = scene::scene(reflink);
    let storage = if reflink { "reflink" } else { "overlay" };
    crash_each(&start, &ids, OPERATIONS.iter(), storage);
}

fn crash_each<'a>(start: &Scene, ids: &Ids, operations: impl Iterator<Item = &'a Operation>, storage: &str) {
    for operation in operations {
        let (mut points, mut broken, mut whole) = (0, 0, 0);
        for cut in 0..2 {
            for after in 0.. {
                let mut finished = false;
                for (loss, keep) in LOSSES {
                    let scene =
                        Scene { worlds: start.worlds.clone().map(|world| world.snapshot()), ..start.clone() };
                    let (store, me) = join(&scene, "victim");
                    let power = scene.worlds[cut].power(me.incarnation);
                    power.cut_after(Some(after));
                    let returned = (operation.run)(&store, ids).is_ok();
                    finished = !power.is_off();
                    for world in &scene.worlds {
                        world.crash(me.incarnation, &mut *keep(after));
                    }
                    let what =
                        format!("{}, {storage}, {} cut after {after}, {loss}", operation.name, NAMES[cut]);
                    match judge(&scene, operation, ids, returned, &what) {
                        Status::Broken => broken += 1,
                        _ => whole += 1,
                    }
                    points += 1;
                    drop(Arc::new(store));
                }
                if finished {
                    break;
                }
            }
        }
        println!("{}: {points} crashes, {broken} with a broken image, {whole} without", operation.name);
        assert!(points > 6, "{}: the power was never cut", operation.name);
    }
}

#[test]
fn overlays() {
    crash_everywhere(false);
}

#[test]
fn clones() {
    crash_everywhere(true);
}
