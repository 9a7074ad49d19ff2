//! Every operation on simulated storage, its host losing power after every single step: another host then finds each
//! image as it was before or as it was to become, or broken with its intent readable. Nothing that was whole is lost.

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
#[path = "crash/line.rs"]
mod line;
#[path = "crash/operation.rs"]
mod operation;
#[path = "crash/scene.rs"]
mod scene;

use std::collections::BTreeSet;

use vdsmstore_core::options::ListOptions;
use vdsmstore_core::sim::SimWorld;
use vdsmstore_core::{ErrorKind, Status};
use vdsmstore_io::device::sim::hosts::{self, mix};

use operation::{OPERATIONS, Operation};
use scene::{Ids, NAMES, Scene, content, join, read, recover};

/// Which of the changes that were not flushed (names, sectors, lengths, in the order of the world) survive a power cut.
#[derive(Clone, Copy, Debug)]
enum Kept {
    All,
    Nothing,
    Only(usize),
    AllBut(usize),
    First(usize),
    /// A bit for each.
    Bits(u64),
    /// By chance.
    Some(u64),
}

impl Kept {
    /// All subsets of a few changes; of many, those that break things.
    fn all(count: usize, seed: u64) -> Vec<Kept> {
        let long = std::env::var_os("VDSMSTORE_LONG").is_some();
        if count <= if long { 10 } else { 3 } {
            return (0..1 << count).map(Kept::Bits).collect();
        }
        let mut all = vec![Kept::All, Kept::Nothing];
        let chosen = if long { 8 } else { 2 };
        all.extend((0..chosen).map(|number| Kept::Some(mix(seed * 8 + number))));
        let each = (0..count).step_by(if long { 1 } else { count });
        let each = each.map(|index| if long { index } else { mix(seed) as usize % count });
        for index in each {
            all.extend([Kept::Only(index), Kept::AllBut(index), Kept::First(index)]);
        }
        all
    }

    fn keeps(self, index: usize) -> bool {
        match self {
            Kept::All => true,
            Kept::Nothing => false,
            Kept::Only(only) => index == only,
            Kept::AllBut(lost) => index != lost,
            Kept::First(count) => index < count,
            Kept::Bits(bits) => bits >> index & 1 == 1,
            Kept::Some(seed) => mix(seed ^ index as u64) & 1 == 1,
        }
    }
}

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
    let (start, ids) = hosts::alone(0, || scene::scene(reflink));
    let storage = if reflink { "reflink" } else { "overlay" };
    crash_each(&start, &ids, OPERATIONS.iter(), storage);
}

fn crash_each<'a>(start: &Scene, ids: &Ids, operations: impl Iterator<Item = &'a Operation>, storage: &str) {
    for operation in operations {
        let (mut crashes, mut broken, mut whole) = (0, 0, 0);
        // States are the same if the same bytes survive: then they are judged once.
        let mut seen = BTreeSet::new();
        for cut in 0..2 {
            for after in 0.. {
                let copy = |scene: &Scene, fork: bool| {
                    let copy = |world: SimWorld| if fork { world.fork() } else { world.snapshot() };
                    Scene { worlds: scene.worlds.clone().map(copy), ..scene.clone() }
                };
                let scene = copy(start, false);
                // The same chance each time: what differs is what the power cut makes of it.
                let (me, returned, finished) = hosts::alone(1, || {
                    let (store, me) = join(&scene, "victim");
                    let power = scene.worlds[cut].power(me.incarnation);
                    power.cut_after(Some(after));
                    let returned = (operation.run)(&store, ids).is_ok();
                    (me.incarnation, returned, !power.is_off())
                });
                let unflushed = scene.worlds.iter().map(|world| world.unflushed(me)).sum();
                for kept in Kept::all(unflushed, after) {
                    let scene = copy(&scene, true);
                    let mut index = 0;
                    let mut keep = || {
                        index += 1;
                        kept.keeps(index - 1)
                    };
                    for world in &scene.worlds {
                        world.crash(me, &mut keep);
                    }
                    assert_eq!(index, unflushed, "everything that was not flushed was asked for");
                    crashes += 1;
                    let state: Vec<u64> = scene.worlds.iter().map(SimWorld::digest).collect();
                    if !seen.insert((state, returned)) {
                        continue;
                    }
                    let what = format!(
                        "{}, {storage}, {} cut after {after}, {kept:?} of {unflushed}",
                        operation.name, NAMES[cut]
                    );
                    match hosts::alone(2, || judge(&scene, operation, ids, returned, &what)) {
                        Status::Broken => broken += 1,
                        _ => whole += 1,
                    }
                }
                if finished {
                    break;
                }
            }
        }
        println!(
            "{}: {crashes} crashes, {} distinct states, {broken} with a broken image, {whole} without",
            operation.name,
            seen.len()
        );
        assert!(crashes > 2 && seen.len() > 1, "{}: the power was never cut", operation.name);
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
