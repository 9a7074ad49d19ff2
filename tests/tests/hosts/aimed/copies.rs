//! Copies that others go on with, or that come late.

use std::sync::Arc;

use vdsmstore_core::id::Incarnation;
use vdsmstore_core::options::{Bandwidth, CopyOptions};
use vdsmstore_core::repository::Liveness;
use vdsmstore_core::{FixType, Store};
use vdsmstore_io::device::sim::hosts::{self, Act, Turn};

use super::{Works, begin, does, held, listed, lose, prepare, repaired};
use crate::operation::{copy_to_b, disk};
use crate::scene::{CLUSTER, Scene, Storage, named, named_copy, pattern, read};
use crate::{judge, operations};

/// A slow copy whose host has gone, with a watermark.
fn begun_copy(storage: Storage) -> Scene {
    let mut scene = begin("copy a disk", storage);
    prepare(&mut scene, |_, scene| {
        let new = scene.id("new").to_owned();
        let is_begun = move |scene: &Scene| {
            let progress =
                scene.raw(1).progress.get(&new).and_then(|progress| progress["watermark"].as_u64());
            progress.is_some_and(|watermark| watermark >= 2 * CLUSTER as u64)
        };
        scene.interrupted(1, copy_slowly, is_begun);
    });
    scene
}

fn copy_slowly(store: &Store, scene: &Scene) -> vdsmstore_core::Result<()> {
    let options = CopyOptions { bandwidth: Some(Bandwidth(24 << 10)), ..named_copy(scene, "new") };
    store.copy_image("B", scene.id("child"), None, "{}", &options)?;
    store.run_tasks();
    Ok(())
}

/// What is left of the copy is completed, by another host; it holds what it is to hold.
fn is_completed(scene: &Scene, what: &str) {
    let (store, _) = scene.join("judge");
    let model = judge::model(scene, &[(operations::named("copy a disk"), false)]);
    judge::recover(scene, &store, &model, what);
    judge::look(scene, &store, &model, true, what);
    store.close().unwrap();
}

/// A host dies after so many steps in the second repository, all it wrote stays. Whether it came to the end before, and who it was.
fn cut(scene: &Scene, after: u64, work: impl FnOnce(&Store)) -> (bool, Incarnation) {
    hosts::alone(8, || {
        let (store, me) = scene.join("victim");
        let power = scene.worlds[1].power(me);
        power.cut_after(Some(after));
        work(&store);
        let finished = !power.is_off();
        for world in &scene.worlds {
            world.crash(me, &mut || true);
        }
        (finished, me)
    })
}

/// Whoever takes over a copy dies at any step, and another one takes over from it.
#[test]
fn a_copy_that_is_taken_over_twice() {
    let mend = |store: &Store, scene: &Scene| {
        let fix = listed(store, 1, FixType::Mend, Some(scene.id("new"))).unwrap();
        judge::fix(store, 1, &fix)
    };
    // What is said of the one that dies.
    for (storage, said) in
        [(Storage::Doubts, Liveness::CertainlyDead), (Storage::Overlays, Liveness::LikelyDead)]
    {
        let start = begun_copy(storage);
        for after in 0.. {
            let scene = start.copy();
            let what = format!("{storage:?}, cut after {after} steps");
            let (finished, dead) = cut(&scene, after, |store| drop(mend(store, &scene)));
            for world in &scene.worlds {
                world.set_liveness(dead, said);
            }
            if finished {
                assert!(after > 15, "{after}");
                break;
            }
            hosts::alone(3, || is_completed(&scene, &what));
        }
    }
}

/// What a host that lost the volume says of how far it is arrives after another one began again, which then
/// dies.
#[test]
fn a_watermark_that_comes_late() {
    let start = begin("copy a disk", Storage::Overlays);
    let said = |scene: &Scene| {
        let progress = scene.raw(1).progress.get(scene.id("new")).and_then(|said| said["watermark"].as_u64());
        progress.unwrap_or(0)
    };
    // The step with which it says that it has come somewhere.
    let scene = start.copy();
    let found = Arc::new(std::sync::Mutex::new(None));
    crate::displaced::walk(&scene, 5, |store, scene| drop(copy_slowly(store, scene)), {
        let (scene, found) = (scene.clone(), found.clone());
        move |turn, _| {
            if said(&scene) > 0 {
                found.lock().unwrap().get_or_insert(turn.step() - 1);
            }
        }
    });
    let late = found.lock().unwrap().unwrap();
    let mut arrived = 0;
    for after in 1..200 {
        let scene = start.copy();
        let ((one, me), (two, other)) = hosts::alone(5, || (scene.join("first"), scene.join("second")));
        let works: Vec<hosts::Work<()>> = vec![
            Box::new({
                let scene = scene.clone();
                move || {
                    let _ = copy_slowly(&one, &scene);
                    let _ = one.close();
                }
            }),
            Box::new({
                let scene = scene.clone();
                move || {
                    if let Some(fix) = listed(&two, 1, FixType::Mend, Some(scene.id("new"))) {
                        let _ = judge::fix(&two, 1, &fix);
                    }
                    let _ = two.close();
                }
            }),
        ];
        let decide = {
            let scene = scene.clone();
            let (mut holding, mut over) = (false, false);
            move |turn: &Turn<'_>| {
                if turn.host == 0 && turn.step() == late && !over {
                    (holding, over) = (true, true);
                    for world in &scene.worlds {
                        world.revoke(me, true);
                        world.set_liveness(me, Liveness::CertainlyDead);
                    }
                }
                if holding && turn.host == 1 && (turn.step() == after || turn.act == Act::End) {
                    holding = false;
                    for world in &scene.worlds {
                        world.power(other).cut();
                        world.crash(other, &mut || true);
                    }
                }
                usize::from(holding && !turn.ended[1] || turn.ended[0])
            }
        };
        hosts::run(6, works, Box::new(decide));
        arrived += u32::from(said(&scene) > 0);
        let what = format!("cut after {after} steps");
        hosts::alone(3, || is_completed(&scene, &what));
    }
    println!("late in {arrived} schedules, at step {late}");
    assert!(arrived > 10, "{arrived}");
}

/// A snapshot is copied to where a call that died was about to give its id to a snapshot of another disk.
#[test]
fn a_copy_under_an_id_that_was_announced() {
    let mut scene = begin("copy a disk onto a disk", Storage::Overlays);
    prepare(&mut scene, |_, scene| {
        let key = scene.id("snapshot").to_owned();
        scene.interrupted(
            1,
            |store, scene| {
                store.create_snapshot("B", scene.id("base"), "{}", &named(scene, "snapshot")).map(drop)
            },
            move |scene| scene.raw(1).images.contains_key(&key),
        );
    });
    hosts::alone(3, || {
        let (store, _) = scene.join("next");
        let _ = copy_to_b(&store, &scene, "snapshot", None, "snapshot");
        let store = repaired(&scene, "after the copy");
        if let Ok(data) = read(&store, "B", scene.id("snapshot")) {
            assert!(data == pattern(1), "it is wrong");
        }
        store.close().unwrap();
    });
}

/// Whoever copies a disk slowly has lost its lock, and another host writes the disk meanwhile: the copy is
/// one moment of it all the same.
#[test]
fn a_copy_of_what_is_written_meanwhile() {
    let start = begin("copy a disk", Storage::Overlays);
    for step in 1.. {
        let scene = start.copy();
        let works: Works<'_> = [
            &does(move |store, scene| drop(copy_slowly(store, scene))),
            &does(move |store, scene| {
                let Ok(image) = store.open_image("A", scene.id("child"), true) else { return };
                image.write(0, &pattern(4)).unwrap();
                image.close().unwrap();
            }),
        ];
        if held(&scene, step, None, works, lose).is_none() {
            assert!(step > 50, "{step}");
            return;
        }
        hosts::alone(3, || {
            let what = format!("held at step {step}");
            let store = repaired(&scene, &what);
            if let Ok(data) = read(&store, "B", scene.id("new")) {
                assert!(data == pattern(2) || data == pattern(4), "{what}: it is no moment of the disk");
            }
            store.close().unwrap();
        });
    }
}

/// A host dies as it takes a snapshot; another one copies a snapshot that has the same id to the repository. It gets that one,
/// unless the disk is to be frozen as the first one: then it is told so.
#[test]
fn a_copy_under_the_id_of_an_abandoned_snapshot() {
    for storage in [Storage::Overlays, Storage::Clones] {
        let mut start = begin("create on a snapshot", storage);
        prepare(&mut start, |store, scene| {
            disk(store, scene, 1, "other", pattern(5));
        });
        let snapshot: fn(&Store, &Scene) -> vdsmstore_core::Result<()> = |store, scene| {
            store.create_snapshot("B", scene.id("other"), "{}", &named(scene, "snapshot")).map(drop)
        };
        let mut abandoned = 0;
        for after in 0.. {
            let scene = start.copy();
            let what = format!("{storage:?}, cut after {after} steps");
            let (finished, _) = cut(&scene, after, |store| drop(snapshot(store, &scene)));
            if finished {
                assert!(after > 15, "{after}");
                break;
            }
            let id = scene.id("snapshot");
            let raw = scene.raw(1);
            let frozen = &raw.images[scene.id("other")]["freeze"];
            let promised = frozen.as_array().is_some_and(|frozen| frozen.iter().any(|frozen| frozen == id))
                || raw.images.get(id).is_some_and(|image| image["state"] == "live");
            abandoned += u32::from(!promised && raw.images.contains_key(id));
            hosts::alone(3, || {
                let (store, _) = scene.join("next");
                copy_to_b(&store, &scene, "snapshot", None, "snapshot").unwrap();
                judge::repair_politely(&store, &what);
                let wanted = if promised { pattern(5) } else { pattern(1) };
                let data = read(&store, "B", id).unwrap_or_else(|error| panic!("{what}: {error:?}"));
                assert!(data == wanted, "{what}: it is wrong");
                assert!(read(&store, "B", scene.id("other")).unwrap() == pattern(5), "{what}");
                store.close().unwrap();
            });
        }
        assert!(abandoned > 0, "{storage:?}");
    }
}
