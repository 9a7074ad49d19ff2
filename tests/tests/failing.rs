//! Each step of each operation fails once, or from there on, on simulated storage: what was whole stays whole, and when the
//! fault has gone, another host brings everything in order. The same as `faults` without a file system, and so with
//! every step that changes something, each time. Of those that only look, a normal run takes every third;
//! `VDSMSTORE_LONG=1` takes all.

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

use std::collections::BTreeMap;

use vdsmstore_core::{ErrorKind, Status};
use vdsmstore_io::device::sim::Fault;
use vdsmstore_io::device::sim::hosts::Act;

use operation::{OPERATIONS, Operation};
use scene::{Ids, NAMES, Scene, join, read, recover};

/// Each lets a host do something to the storage, and can fail.
const ACTS: &[Act] = &[Act::Read, Act::Lock, Act::Record, Act::Name, Act::Sync, Act::Write, Act::Flush];
/// So many steps of one kind fail.
const TIMES: &[(u64, &str)] = &[(1, "once"), (u64::MAX, "from there on")];

/// What another host finds, before it repairs anything and after.
fn judge(scene: &Scene, operation: &Operation, ids: &Ids, succeeded: bool, what: &str) {
    let (store, _) = join(scene, "next");
    let removes = (operation.removes)(ids);
    let made = (operation.made)(ids, scene).map(|(repo, id, data)| ((repo, id), data));
    for repaired in [false, true] {
        let what = format!("{what}, {}", if repaired { "after all fixes" } else { "at once" });
        invariants::hold(&scene.worlds, &what);
        for ((repo, id), data) in &scene.model {
            let gone = removes.contains(&(*repo, id.clone()));
            match store.get_image_status(NAMES[*repo], id) {
                Err(error) if gone && error.kind() == ErrorKind::ImageNotFound => continue,
                Ok(_) if gone && succeeded => panic!("{what}: {id} is still there"),
                status => {
                    let status = status.unwrap_or_else(|error| panic!("{what}: {id}: {error:?}"));
                    assert_ne!(status.status, Status::Broken, "{what}: {id} was whole: {status:?}");
                }
            }
            let found =
                read(&store, NAMES[*repo], id).unwrap_or_else(|error| panic!("{what}: {id}: {error:?}"));
            assert!(found == *data, "{what}: {id} is wrong");
        }
        if let Some(((repo, id), data)) = &made {
            match store.get_image_status(NAMES[*repo], id) {
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::ImageNotFound, "{what}: {error:?}");
                    assert!(!succeeded, "{what}: what was made is lost");
                }
                Ok(status) if status.status == Status::Broken => {
                    assert!(!repaired, "{what}: {status:?}");
                }
                Ok(_) => assert!(
                    read(&store, NAMES[*repo], id).unwrap() == *data,
                    "{what}: what was made is wrong"
                ),
            }
        }
        if !repaired {
            recover(scene, &store, &what);
        }
    }
    store.close().unwrap();
}

/// Runs the operation with that fault. Whether it happened.
fn attempt(start: &Scene, ids: &Ids, operation: &Operation, world: usize, fault: Fault, what: &str) -> bool {
    let scene = start.copy();
    let (store, identity) = join(&scene, "here");
    let power = scene.worlds[world].power(identity.incarnation);
    power.fail(fault);
    let result = (operation.run)(&store, ids);
    let fired = power.heal() > 0;
    // Whether it can end in order, nobody knows.
    let _ = store.close();
    drop(store);
    if fired {
        judge(&scene, operation, ids, result.is_ok(), what);
    }
    fired
}

fn everywhere(reflink: bool) {
    let (start, ids) = scene::scene(reflink);
    let long = std::env::var_os("VDSMSTORE_LONG").is_some();
    for operation in OPERATIONS {
        let mut counts = BTreeMap::new();
        for (world, repo) in NAMES.iter().enumerate() {
            for &act in ACTS {
                for &(times, lasts) in TIMES {
                    for after in (0..).step_by(if act == Act::Read && !long { 3 } else { 1 }) {
                        let fault = Fault { act, after, times, kind: vdsmstore_io::ErrorKind::Io };
                        let what = format!(
                            "{}, reflink {reflink}: {act:?} {after} of {repo} {lasts}",
                            operation.name
                        );
                        if !attempt(&start, &ids, operation, world, fault, &what) {
                            break;
                        }
                        *counts.entry(act).or_insert(0_u64) += 1;
                    }
                }
            }
        }
        println!("{}: {counts:?} failed", operation.name);
        for act in [Act::Read, Act::Record] {
            assert!(counts.contains_key(&act), "{}: no {act:?} failed", operation.name);
        }
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
