//! Puts of which the storage does not tell whether they were done: each one of every operation, on simulated storage. The
//! operation succeeds all the same, once, and nothing is left over.

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
#[path = "crash/operation.rs"]
mod operation;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "crash/scene.rs"]
mod scene;

use vdsmstore_core::sim::Unknown;
use vdsmstore_core::{ErrorKind, Status};

use operation::{OPERATIONS, Operation};
use scene::{Ids, NAMES, Scene, join, read, recover};

fn judge(scene: &Scene, operation: &Operation, ids: &Ids, what: &str) {
    let (store, _) = join(scene, "next");
    let removes = (operation.removes)(ids);
    let made = (operation.made)(ids, scene).map(|(repo, id, data)| ((repo, id), data));
    for when in ["at once", "after all fixes"] {
        invariants::hold(&scene.worlds, what);
        for ((repo, id), data) in scene.model.clone().into_iter().chain(made.clone()) {
            let status = store.get_image_status(NAMES[repo], &id);
            if removes.contains(&(repo, id.clone())) {
                let error = status.err().unwrap_or_else(|| panic!("{what}: {when}, {id} is still there"));
                assert_eq!(error.kind(), ErrorKind::ImageNotFound, "{what}");
                continue;
            }
            let status = status.unwrap_or_else(|error| panic!("{what}: {when}, {id}: {error:?}"));
            assert_ne!(status.status, Status::Broken, "{what}: {when}, {id}: {status:?}");
            assert!(read(&store, NAMES[repo], &id).unwrap() == data, "{what}: {when}, {id} is wrong");
        }
        recover(scene, &store, what);
    }
    store.close().unwrap();
}

fn everywhere(reflink: bool) {
    let (start, ids) = scene::scene(reflink);
    for operation in OPERATIONS {
        let mut puts = 0;
        for world in 0..2 {
            for after in 0.. {
                let mut met = false;
                for outcome in [Unknown::Lost, Unknown::Done, Unknown::BuiltUpon] {
                    let scene = start.copy();
                    let (store, _) = join(&scene, "here");
                    scene.worlds[world].inject_unknown(after, outcome);
                    let what = format!(
                        "{}, reflink {reflink}, put {after} of {}: {outcome:?}",
                        operation.name, NAMES[world]
                    );
                    (operation.run)(&store, &ids).unwrap_or_else(|error| panic!("{what}: {error:?}"));
                    store.close().unwrap();
                    met = !scene.worlds[world].awaits_unknown();
                    if met {
                        puts += 1;
                        judge(&scene, operation, &ids, &what);
                    }
                }
                if !met {
                    break;
                }
            }
        }
        println!("{}: {puts} puts of unknown outcome", operation.name);
        assert!(puts > 0, "{}: there was no put", operation.name);
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
