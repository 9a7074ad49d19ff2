//! Clones, and what is merged below them.

use std::sync::{Arc, Mutex};

use vdsmstore_core::options::{AutoFix, CopyOptions, CreateOptions, RemoveOptions, Strategy};
use vdsmstore_core::{ErrorKind, FixType, Store};
use vdsmstore_io::device::sim::hosts::{self};

use super::{Works, begin, does, held, listed, lose, prepare, repaired, stays};
use crate::operation::{copy, copy_to_b, remove, remove_later, rewrite};
use crate::scene::{CLUSTER, SIZE, Scene, Storage, crash, named, pattern, read};
use crate::{judge, operations};

/// The fix of a clone completes what it is a clone of, whichever of the two is run first.
#[test]
fn a_clone_is_mended_before_what_it_is_a_clone_of() {
    let mut scene = begin("create on a snapshot of another repository", Storage::Clones);
    prepare(&mut scene, |store, scene| {
        let new = CreateOptions { auto_fix: AutoFix::Off, ..named(scene, "new") };
        store.create_virtual_disk("B", None, Some(scene.id("snapshot")), "{}", &new).unwrap();
        let fix = listed(store, 1, FixType::Mend, Some(scene.id("new"))).unwrap();
        judge::fix(store, 1, &fix).unwrap();
        assert!(read(store, "B", scene.id("new")).unwrap() == pattern(1));
    });
}

/// In the second repository a disk that is announced as a clone of `second`, which is built on another
/// snapshot.
fn announced_clone() -> Scene {
    let mut scene = begin("partial copy, then its base", Storage::Clones);
    prepare(&mut scene, |store, scene| {
        (operations::named("partial copy, then its base").run)(store, scene).unwrap();
        scene.expect(1, "clone", pattern(2));
        let new = CreateOptions { auto_fix: AutoFix::Off, ..named(scene, "clone") };
        store.create_virtual_disk("B", None, Some(scene.id("second")), "{}", &new).unwrap();
    });
    scene
}

fn make_raw(store: &Store, scene: &Scene) {
    let second = scene.id("second");
    let _ = store.set_image_strategy("B", second, Strategy::Performance);
    if let Some(fix) = listed(store, 1, FixType::Optimize, Some(second)) {
        let _ = judge::fix(store, 1, &fix);
    }
}

/// What it is a clone of has another representation by the time that it is cloned.
#[test]
fn a_clone_of_what_is_another_by_now() {
    let mut scene = announced_clone();
    prepare(&mut scene, |store, scene| {
        make_raw(store, scene);
        let fix = listed(store, 1, FixType::Mend, Some(scene.id("clone"))).unwrap();
        judge::fix(store, 1, &fix).unwrap();
        assert!(read(store, "B", scene.id("clone")).unwrap() == pattern(2));
    });
}

/// The same between two steps of who clones it.
#[test]
fn a_clone_of_what_becomes_another() {
    let start = announced_clone();
    for step in 1.. {
        let scene = start.copy();
        let what = format!("held at step {step}");
        let works: Works<'_> = [
            &does(move |store, scene| {
                let fix = listed(store, 1, FixType::Mend, Some(scene.id("clone"))).unwrap();
                let _ = judge::fix(store, 1, &fix);
            }),
            &does(make_raw),
        ];
        if held(&scene, step, None, works, stays).is_none() {
            assert!(step > 30, "{step}");
            return;
        }
        hosts::alone(3, || {
            let store = repaired(&scene, &what);
            assert!(read(&store, "B", scene.id("clone")).unwrap() == pattern(2), "{what}: it is wrong");
            store.close().unwrap();
        });
    }
}

/// In the second repository a snapshot, and on it a disk that differs from it in one cluster.
fn small_difference() -> Scene {
    let mut scene = begin("create on a snapshot", Storage::Clones);
    prepare(&mut scene, |store, scene| {
        copy(store, scene, "snapshot", "snapshot", None);
        let mut data = pattern(1);
        data[..CLUSTER].fill(99);
        rewrite(store, scene, 0, "child", data);
        copy(store, scene, "small", "child", Some("snapshot"));
    });
    scene
}

/// What is left of a merge of the snapshot with the disk on it, by a host that dies at each step of that.
fn broken_merges(start: &Scene) -> Vec<(u64, Scene)> {
    let mut left = Vec::new();
    for after in 0.. {
        let scene = start.copy();
        let finished = hosts::alone(8, || crash(&scene, 1, after, merge_small, true).finished);
        if finished {
            break;
        }
        if scene.raw(1).images.get(scene.id("snapshot")).is_some_and(|image| image["state"] == "absorbed") {
            left.push((after, scene));
        }
    }
    assert!(left.len() > 5, "{}", left.len());
    left
}

/// A disk that was announced as a clone of a snapshot which is being merged away holds what that held, or
/// nothing.
#[test]
fn a_clone_of_what_is_being_merged_away() {
    let mut start = small_difference();
    prepare(&mut start, |store, scene| {
        scene.expect(1, "clone", pattern(1));
        let new = CreateOptions { auto_fix: AutoFix::Off, ..named(scene, "clone") };
        store.create_virtual_disk("B", None, Some(scene.id("snapshot")), "{}", &new).unwrap();
    });
    for (after, scene) in broken_merges(&start) {
        hosts::alone(3, || {
            let (store, _) = scene.join("judge");
            let clone = scene.id("clone");
            if let Some(fix) = listed(&store, 1, FixType::Mend, Some(clone)) {
                let _ = judge::fix(&store, 1, &fix);
            }
            if let Ok(data) = read(&store, "B", clone) {
                assert!(data == pattern(1), "cut after {after} steps: it is wrong");
            }
            store.close().unwrap();
        });
    }
}

/// While what it is built on is on its way into another volume, a disk is cloned, and that again, and merged:
/// all of it stays readable.
#[test]
fn clones_above_what_is_being_merged_away() {
    for (after, scene) in broken_merges(&small_difference()) {
        let what = format!("cut after {after} steps");
        hosts::alone(3, || {
            let (store, _) = scene.join("next");
            let whole = scene.data(1, "small");
            let plain = CreateOptions::default();
            let holds = |id: &str, data: &[u8]| {
                let now = read(&store, "B", id).unwrap_or_else(|error| panic!("{what}: {id}: {error:?}"));
                assert!(now == *data, "{what}: {id} is wrong");
            };
            let snapshot = store.create_snapshot("B", scene.id("small"), "{}", &plain).unwrap().to_string();
            holds(&snapshot, &whole);
            let on = store.create_virtual_disk("B", None, Some(&snapshot), "{}", &plain).unwrap().to_string();
            store.run_tasks();
            holds(&on, &whole);
            let copy =
                store.copy_image("B", scene.id("disk"), Some(&snapshot), "{}", &CopyOptions::default());
            let copy = copy.unwrap().to_string();
            store.run_tasks();
            holds(&copy, &scene.data(0, "disk"));
            store.remove_image("B", &snapshot, &RemoveOptions::default()).unwrap();
            store.run_tasks();
            judge::repair_politely(&store, &what);
            assert!(judge::check(&store, 1).is_empty(), "{what}: {:?}", judge::check(&store, 1));
            for (id, data) in [(scene.id("small"), &whole), (&on, &whole), (&copy, &scene.data(0, "disk"))] {
                holds(id, data);
            }
            store.close().unwrap();
        });
    }
}

/// What dies as it merges the snapshot away.
fn merge_small(store: &Store, scene: &Scene) -> vdsmstore_core::Result<()> {
    remove_later(store, 1, scene, "snapshot")?;
    let fix = listed(store, 1, FixType::Merge, None).unwrap();
    judge::fix(store, 1, &fix)
}

/// A snapshot that two hosts remove, one of which dies as it merges it away, does not come back with other
/// bytes.
#[test]
fn a_snapshot_that_is_removed_twice() {
    let start = small_difference();
    let mut back = 0;
    for (after, _) in broken_merges(&start).iter().step_by(3) {
        for step in 1.. {
            let scene = start.copy();
            let after = *after;
            let works: Works<'_> = [
                &does(move |store, scene| drop(remove_later(store, 1, scene, "snapshot"))),
                &does(move |_, scene| _ = crash(scene, 1, after, merge_small, true)),
            ];
            if held(&scene, step, None, works, lose).is_none() {
                assert!(step > 5, "{step}");
                break;
            }
            hosts::alone(3, || {
                let (store, _) = scene.join("third");
                let _ = copy_to_b(&store, &scene, "snapshot", None, "snapshot");
                if let Ok(data) = read(&store, "B", scene.id("snapshot")) {
                    back += 1;
                    assert!(data == pattern(1), "held at step {step}, cut after {after} steps: it is wrong");
                }
                store.close().unwrap();
            });
        }
    }
    println!("it came back in {back} schedules");
}

/// What is to be built on is about to get another volume, and its first one goes, between two looks.
#[test]
fn a_base_that_moves_while_it_is_built_on() {
    let start = begin("give a snapshot a volume of its own", Storage::Overlays);
    let own = operations::named("give a snapshot a volume of its own").run;
    for step in 1.. {
        let mut scene = start.copy();
        scene.expect(0, "new", scene.data(0, "upper"));
        let what = format!("held at step {step}");
        let works: Works<'_> = [
            &|scene| {
                let (scene, what) = (scene.clone(), what.clone());
                Box::new(move |store| {
                    let base = Some(scene.id("upper"));
                    let new = store.create_virtual_disk("A", None, base, "{}", &named(&scene, "new"));
                    if let Err(error) = new {
                        assert!(error.kind() != ErrorKind::ImageNotFound, "{what}: {error:?}");
                    }
                })
            },
            &does(move |store, scene| drop(own(store, scene))),
        ];
        if held(&scene, step, None, works, stays).is_none() {
            assert!(step > 20, "{step}");
            return;
        }
    }
}

/// A host that lost its locks clones a disk for a snapshot, after another one has completed that and written the disk.
#[test]
fn a_snapshot_whose_clone_comes_late() {
    let start = begin("snapshot", Storage::Clones);
    let mut complete = 0;
    for step in 1.. {
        let scene = start.copy();
        let seen = Arc::new(Mutex::new(None));
        let works: Works<'_> =
            [&does(move |store, scene| drop((operations::named("snapshot").run)(store, scene))), &|scene| {
                let (scene, seen) = (scene.clone(), seen.clone());
                Box::new(move |store| {
                    let Ok(image) = store.open_image("A", scene.id("disk"), true) else { return };
                    let _ = image.write(0, &pattern(9));
                    let _ = image.close();
                    *seen.lock().unwrap() = read(store, "A", scene.id("new")).ok();
                })
            }];
        if held(&scene, step, None, works, lose).is_none() {
            assert!(step > 30, "{step}");
            break;
        }
        let Some(data) = seen.lock().unwrap().take() else { continue };
        complete += 1;
        hosts::alone(3, || {
            let store = repaired(&scene, "late");
            assert!(read(&store, "A", scene.id("new")).unwrap() == data, "held at step {step}: it is wrong");
            store.close().unwrap();
        });
    }
    assert!(complete > 5, "{complete}");
}

/// In the second repository a disk that is announced as a clone of `second`, and longer. Then that is lost, and
/// copied once more as a difference, which cannot be cloned to the disk's size.
fn announced_longer_clone() -> Scene {
    let mut scene = begin("partial copy, then its base", Storage::Clones);
    prepare(&mut scene, |store, scene| {
        copy_to_b(store, scene, "snapshot", None, "snapshot").unwrap();
        copy_to_b(store, scene, "second", None, "second").unwrap();
        scene.expect(1, "clone", pattern(2));
        let new = CreateOptions { auto_fix: AutoFix::Off, ..named(scene, "clone") };
        let size = Some((SIZE + CLUSTER) as i64);
        store.create_virtual_disk("B", size, Some(scene.id("second")), "{}", &new).unwrap();
        scene.lose_object(1, "second");
        copy_to_b(store, scene, "second", Some("snapshot"), "second").unwrap();
        let format = scene.raw(1).volumes[&scene.volume(1, "second").to_string()]["format"].clone();
        assert_eq!(format, "qcow2");
    });
    scene
}

/// What a disk is to be built on, in place of being cloned from it, goes before that is seen.
#[test]
fn a_base_in_place_of_a_clone_that_goes() {
    let start = announced_longer_clone();
    let mut gone = 0;
    for step in 1.. {
        let scene = start.copy();
        let works: Works<'_> = [
            &does(move |store, scene| {
                if let Some(fix) = listed(store, 1, FixType::Mend, Some(scene.id("clone"))) {
                    let _ = judge::fix(store, 1, &fix);
                }
            }),
            &does(move |store, scene| drop(remove(store, 1, scene, "second"))),
        ];
        if held(&scene, step, None, works, stays).is_none() {
            assert!(step > 30, "{step}");
            break;
        }
        let raw = scene.raw(1);
        if raw.images.contains_key(scene.id("second")) {
            continue;
        }
        gone += 1;
        let volume = &raw.volumes[&scene.volume(1, "clone").to_string()];
        assert!(
            volume["backing"].is_null(),
            "held at step {step}: it is built on what is not there: {volume}"
        );
    }
    assert!(gone > 5, "{gone}");
}
