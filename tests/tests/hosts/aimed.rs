//! Schedules made by hand, and judged by what they are about: what takes three hosts, a fault at one step, or a call that no
//! deed makes. Each is tried at all steps of the first host.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vdsmstore_core::id::{Incarnation, VolumeId};
use vdsmstore_core::options::{
    AutoFix, Bandwidth, CheckOptions, CopyOptions, CreateOptions, RemoveOptions, Strategy,
};
use vdsmstore_core::repository::{Liveness, Marker, QemuUse, RecordKey};
use vdsmstore_core::sim::Unknown;
use vdsmstore_core::{ErrorKind, Fix, FixType, Store};
use vdsmstore_io::device::sim::Fault;
use vdsmstore_io::device::sim::hosts::{self, Act, Turn};

use crate::operation::{copy, copy_to_b, remove, remove_later, rewrite};
use crate::raw::text;
use crate::scene::{CLUSTER, NAMES, SIZE, Scene, Storage, crash, named, named_copy, off, pattern, read};
use crate::{judge, operations};

/// The scene of an operation, before it.
fn begin(operation: &str, storage: Storage) -> Scene {
    operations::start(operations::named(operation), storage, 1)
}

/// By a host of its own.
fn prepare(scene: &mut Scene, work: impl FnOnce(&Store, &mut Scene)) {
    hosts::alone(7, || {
        let (store, _) = scene.join("setup");
        work(&store, scene);
        store.close().unwrap();
    });
}

/// What two hosts do.
type Works<'a> = [&'a dyn Fn(&Scene) -> Box<dyn FnOnce(&Store) + Send>; 2];

/// The first host is held before that step, counted from 1; the second makes so many steps, if it has so many; then the first goes
/// on to its end, and the second after it. `fate`: what becomes of the first where it is held. None: it has fewer steps.
fn held(
    scene: &Scene,
    step: u64,
    pauses: Option<u64>,
    works: Works<'_>,
    mut fate: impl FnMut(&Scene, Incarnation) + Send + 'static,
) -> Option<()> {
    let ((one, me), (two, _)) = hosts::alone(1, || (scene.join("first"), scene.join("second")));
    let [first, second] = works.map(|work| work(scene));
    let works: Vec<hosts::Work<()>> = vec![
        Box::new(move || {
            first(&one);
            let _ = one.close();
        }),
        Box::new(move || {
            second(&two);
            let _ = two.close();
        }),
    ];
    let was_held = Arc::new(AtomicBool::new(false));
    let decide = {
        let (scene, was_held) = (scene.clone(), was_held.clone());
        let (mut holding, mut waited) = (false, 0);
        move |turn: &Turn<'_>| {
            if turn.host == 0 && turn.step() == step && turn.act != Act::End {
                holding = true;
                was_held.store(true, Ordering::Relaxed);
                fate(&scene, me);
            }
            if holding && turn.host == 1 {
                // One that waits for the first lets it go on.
                waited += u32::from(turn.act == Act::Pause);
                holding = turn.act != Act::End && waited < 100 && pauses != Some(turn.step());
            }
            usize::from(holding && !turn.ended[1] || turn.ended[0])
        }
    };
    hosts::run(2, works, Box::new(decide));
    was_held.load(Ordering::Relaxed).then_some(())
}

/// Its locks are lost, and it does not know it.
fn lose(scene: &Scene, host: Incarnation) {
    for world in &scene.worlds {
        world.revoke(host, false);
        world.set_liveness(host, Liveness::LikelyDead);
    }
}

fn stays(_: &Scene, _: Incarnation) {}

/// What a check lists that is of that type, and about that image if one is named.
fn listed(store: &Store, repo: usize, fix_type: FixType, image: Option<&str>) -> Option<Fix> {
    let fixes = store.check_storage_repository(NAMES[repo], &CheckOptions::default()).ok()?;
    let is_it = |fix: &Fix| image.is_none_or(|id| fix.image_id.is_some_and(|image| image.to_string() == id));
    fixes.into_iter().find(|fix| fix.fix_type == fix_type && is_it(fix))
}

/// All that a check lists, as far as it can be done.
fn repaired(scene: &Scene, what: &str) -> Store {
    let (store, _) = scene.join("judge");
    judge::repair_politely(&store, what);
    store
}

/// What a fix says is not done when its object needs something else by then.
#[test]
fn a_fix_of_what_needs_another_one_is_refused() {
    let mut scene = begin("resize", Storage::Overlays);
    prepare(&mut scene, |store, scene| {
        let child = scene.id("child");
        store.set_image_strategy("A", child, Strategy::Performance).unwrap();
        let fix = listed(store, 0, FixType::Optimize, Some(child)).unwrap();
        store.create_snapshot("A", child, "{}", &off()).unwrap();
        let error = judge::fix(store, 0, &fix).expect_err("it was run");
        assert_eq!(error.kind(), ErrorKind::FixRefused, "{error:?}");
    });
}

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

/// In the second repository a disk that is announced as a clone of `second`, which is built on another snapshot.
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
            &|scene| {
                let scene = scene.clone();
                Box::new(move |store| {
                    let fix = listed(store, 1, FixType::Mend, Some(scene.id("clone"))).unwrap();
                    let _ = judge::fix(store, 1, &fix);
                })
            },
            &|scene| {
                let scene = scene.clone();
                Box::new(move |store| make_raw(store, &scene))
            },
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

/// A disk that was announced as a clone of a snapshot which is being merged away holds what that held, or nothing.
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

/// While what it is built on is on its way into another volume, a disk is cloned, and that again, and merged: all of it stays
/// readable.
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
            let finished = hosts::alone(8, || {
                let (store, me) = scene.join("victim");
                let power = scene.worlds[1].power(me);
                power.cut_after(Some(after));
                let _ = mend(&store, &scene);
                let finished = !power.is_off();
                for world in &scene.worlds {
                    world.crash(me, &mut || true);
                    world.set_liveness(me, said);
                }
                finished
            });
            if finished {
                assert!(after > 15, "{after}");
                break;
            }
            hosts::alone(3, || {
                let (store, _) = scene.join("judge");
                let model = judge::model(&scene, &[(operations::named("copy a disk"), false)]);
                judge::recover(&scene, &store, &model, &what);
                judge::look(&scene, &store, &model, true, &what);
                store.close().unwrap();
            });
        }
    }
}

/// What a host that lost the volume says of how far it is arrives after another one began again, which then dies.
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
        hosts::alone(3, || {
            let (store, _) = scene.join("judge");
            let model = judge::model(&scene, &[(operations::named("copy a disk"), false)]);
            judge::recover(&scene, &store, &model, &what);
            judge::look(&scene, &store, &model, true, &what);
            store.close().unwrap();
        });
    }
    println!("late in {arrived} schedules, at step {late}");
    assert!(arrived > 10, "{arrived}");
}

/// A program that nobody prepared a disk for opens its new volume while the disk is about to be removed.
#[test]
fn a_disk_that_moves_under_a_program_is_not_removed() {
    let start = begin("resize", Storage::Overlays);
    for step in 1.. {
        let scene = start.copy();
        let done = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let works: Works<'_> = [
            &|scene| {
                let (scene, done) = (scene.clone(), done[0].clone());
                Box::new(move |store| {
                    done.store(remove(store, 0, &scene, "child").is_ok(), Ordering::Relaxed);
                })
            },
            &|scene| {
                let (scene, done) = (scene.clone(), done[1].clone());
                Box::new(move |store| {
                    if store.create_snapshot("A", scene.id("child"), "{}", &CreateOptions::default()).is_ok()
                    {
                        scene.worlds[0]
                            .set_qemu(scene.volume(0, "child"), QemuUse { writing: true, open: true });
                        done.store(true, Ordering::Relaxed);
                    }
                })
            },
        ];
        if held(&scene, step, None, works, stays).is_none() {
            assert!(step > 10, "{step}");
            return;
        }
        let [removed, opened] = done.map(|done| done.load(Ordering::Relaxed));
        assert!(!removed || !opened, "held at step {step}: it was removed under a program");
    }
}

/// What dies as it merges the snapshot away.
fn merge_small(store: &Store, scene: &Scene) -> vdsmstore_core::Result<()> {
    remove_later(store, 1, scene, "snapshot")?;
    let fix = listed(store, 1, FixType::Merge, None).unwrap();
    judge::fix(store, 1, &fix)
}

/// A snapshot that two hosts remove, one of which dies as it merges it away, does not come back with other bytes.
#[test]
fn a_snapshot_that_is_removed_twice() {
    let start = small_difference();
    let mut back = 0;
    for (after, _) in broken_merges(&start).iter().step_by(3) {
        for step in 1.. {
            let scene = start.copy();
            let after = *after;
            let works: Works<'_> = [
                &|scene| {
                    let scene = scene.clone();
                    Box::new(move |store| drop(remove_later(store, 1, &scene, "snapshot")))
                },
                &|scene| {
                    let scene = scene.clone();
                    Box::new(move |_| _ = crash(&scene, 1, after, merge_small, true))
                },
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

/// Who announces a snapshot has lost its locks, and another host takes the disk for writing meanwhile.
#[test]
fn a_disk_that_is_taken_while_a_snapshot_is_announced() {
    let start = begin("snapshot", Storage::Overlays);
    let (mut announced, mut opened) = (0, 0);
    for step in 1.. {
        for pauses in (20..120).step_by(7) {
            let scene = start.copy();
            let [open, beside] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
            let made = Arc::new(AtomicBool::new(false));
            let works: Works<'_> = [
                &|scene| {
                    let (scene, open, beside, made) =
                        (scene.clone(), open.clone(), beside.clone(), made.clone());
                    Box::new(move |store| {
                        let new = CreateOptions { auto_fix: AutoFix::Off, ..named(&scene, "new") };
                        let new = store.create_snapshot("A", scene.id("disk"), "{}", &new);
                        made.store(new.is_ok(), Ordering::Relaxed);
                        beside.store(open.load(Ordering::Relaxed), Ordering::Relaxed);
                    })
                },
                &|scene| {
                    let (scene, open) = (scene.clone(), open.clone());
                    Box::new(move |store| {
                        let Ok(image) = store.open_image("A", scene.id("disk"), true) else { return };
                        open.store(true, Ordering::Relaxed);
                        for cluster in 0..4 {
                            image.write(cluster * CLUSTER as i64, &vec![7; CLUSTER]).unwrap();
                        }
                        open.store(false, Ordering::Relaxed);
                        image.close().unwrap();
                    })
                },
            ];
            // The second is held while it has the disk open.
            if held(&scene, step, Some(pauses), works, lose).is_none() {
                assert!(announced > 10 && opened > 10, "{announced} {opened}");
                return;
            }
            announced += u32::from(made.load(Ordering::Relaxed));
            if !beside.load(Ordering::Relaxed) {
                continue;
            }
            opened += 1;
            hosts::alone(3, || {
                let what = format!("held at step {step}, and the other one at {pauses}");
                let store = repaired(&scene, &what);
                if made.load(Ordering::Relaxed) {
                    // The other host has seen the announcement, and completed it.
                    assert!(read(&store, "A", scene.id("new")).unwrap() == pattern(3), "{what}: it is wrong");
                }
                store.close().unwrap();
            });
        }
    }
}

/// A snapshot that is to be built on is removed for good, and a disk gets its id.
#[test]
fn a_base_whose_id_is_that_of_a_disk_by_now() {
    let mut start = begin("create on a snapshot", Storage::Overlays);
    prepare(&mut start, |store, scene| copy(store, scene, "snapshot", "snapshot", None));
    // The record of the first host that fails after that.
    for fails in 0..4 {
        for step in 1.. {
            let scene = start.copy();
            let what = format!("held at step {step}, {fails}");
            let made = Arc::new(AtomicBool::new(false));
            let works: Works<'_> = [
                &|scene| {
                    let (scene, made) = (scene.clone(), made.clone());
                    Box::new(move |store| {
                        let base = Some(scene.id("snapshot"));
                        let new = store.create_virtual_disk("B", None, base, "{}", &named(&scene, "new"));
                        made.store(new.is_ok(), Ordering::Relaxed);
                    })
                },
                &|scene| {
                    let scene = scene.clone();
                    Box::new(move |store| {
                        let _ = remove(store, 1, &scene, "snapshot");
                        let size = Some(SIZE as i64);
                        let _ = store.create_virtual_disk("B", size, None, "{}", &named(&scene, "snapshot"));
                    })
                },
            ];
            let fate = move |scene: &Scene, me: Incarnation| {
                if let Some(after) = u64::checked_sub(fails, 1) {
                    let kind = vdsmstore_io::ErrorKind::Io;
                    scene.worlds[1].power(me).fail(Fault { act: Act::Record, after, times: 1, kind });
                }
            };
            if held(&scene, step, None, works, fate).is_none() {
                assert!(step > 20, "{step}");
                break;
            }
            for moment in judge::moments(&scene) {
                let mut violations = moment.violations(None);
                // What nobody points at is garbage that is to be cleaned.
                let garbage = |id: &&String| moment.raw.held_by(id).is_empty();
                violations
                    .retain(|told| !moment.raw.volumes.keys().filter(garbage).any(|id| told.contains(id)));
                assert!(violations.is_empty(), "{what}: {violations:?}");
            }
            hosts::alone(3, || {
                let store = repaired(&scene, &what);
                if made.load(Ordering::Relaxed) {
                    let data = read(&store, "B", scene.id("new"))
                        .unwrap_or_else(|error| panic!("{what}: {error:?}"));
                    assert!(data == pattern(1), "{what}: it is wrong");
                }
                store.close().unwrap();
            });
        }
    }
}

/// A marker is taken for stale by a host whose storage does not tell what became of its tombstone.
#[test]
fn a_tombstone_that_may_not_be_there() {
    let start = begin("create on a snapshot", Storage::Overlays);
    for lost in 0..3 {
        for step in 1.. {
            let scene = start.copy();
            let works: Works<'_> = [
                &|scene| {
                    let scene = scene.clone();
                    Box::new(move |store| {
                        let base = Some(scene.id("snapshot"));
                        let _ = store.create_virtual_disk("A", None, base, "{}", &named(&scene, "new"));
                    })
                },
                &|scene| {
                    let scene = scene.clone();
                    Box::new(move |store| {
                        scene.worlds[0].inject_unknown(lost, Unknown::Lost);
                        judge::repair_politely(store, "the other host");
                    })
                },
            ];
            if held(&scene, step, None, works, stays).is_none() {
                assert!(step > 20, "{step}");
                break;
            }
            for moment in judge::moments(&scene) {
                let violations = moment.violations(None);
                assert!(violations.is_empty(), "held at step {step}, lost {lost}: {violations:?}");
            }
        }
    }
}

/// What was listed as left over, and is not by the time that its fix is run.
#[test]
fn what_was_left_over_and_is_needed_by_now() {
    let mut scene = begin("snapshot", Storage::Overlays);
    prepare(&mut scene, |store, scene| {
        // A snapshot whose host died before it had a record.
        let [new, child] = ["new", "child"].map(|name| scene.id(name));
        let new = vdsmstore_core::id::ImageId::parse(new).unwrap();
        let volume = scene.volume(0, "child");
        let driver = scene.driver(0);
        driver.mark(Marker::Holder(volume, new)).unwrap();
        let fix = listed(store, 0, FixType::Clean, None).unwrap();
        let options = CreateOptions { auto_fix: AutoFix::Off, ..named(scene, "new") };
        store.create_snapshot("A", child, "{}", &options).unwrap();
        let _ = judge::fix(store, 0, &fix);
        let there = driver.holders(volume).unwrap();
        assert!(there.contains(&new), "the marker of a snapshot that was announced since has gone");
        driver.close().unwrap();
    });
    let mut scene = begin("snapshot", Storage::Overlays);
    prepare(&mut scene, |store, scene| {
        // A volume whose record storage had lost.
        let driver = scene.driver(0);
        let volume = VolumeId::random();
        drop(driver.create_volume(volume).unwrap());
        let fix = listed(store, 0, FixType::Clean, None).unwrap();
        let other = RecordKey::Volume(scene.volume(0, "child"));
        let record = driver.get(other, vdsmstore_core::repository::Read::Fresh).unwrap().unwrap();
        let record = String::from_utf8(record.bytes).unwrap();
        let record = record.replace(&scene.volume(0, "child").to_string(), &volume.to_string());
        driver.put(RecordKey::Volume(volume), None, record.as_bytes()).unwrap();
        let _ = judge::fix(store, 0, &fix);
        assert!(scene.worlds[0].objects().contains(&volume), "the bytes of a volume with a record have gone");
        driver.close().unwrap();
    });
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

/// User data that is being set, and the blob of which another host takes for left over meanwhile.
#[test]
fn a_blob_that_is_named_by_now() {
    let start = begin("set user data", Storage::Overlays);
    for step in 1.. {
        for pauses in 1..60 {
            let scene = start.copy();
            let works: Works<'_> = [
                &|scene| {
                    let scene = scene.clone();
                    Box::new(move |store| {
                        let _ = store.set_image_user_data("A", scene.id("disk"), r#"{"new":1}"#);
                    })
                },
                &|_| Box::new(|store| judge::repair_politely(store, "the other host")),
            ];
            if held(&scene, step, Some(pauses), works, stays).is_none() {
                assert!(step > 5, "{step}");
                return;
            }
            let raw = scene.raw(0);
            let blob = text(&raw.images[scene.id("disk")]["userData"]["blob"]).to_owned();
            let there = raw.blobs.contains(&(scene.id("disk").to_owned(), blob));
            assert!(there, "held at step {step}, and the other one at {pauses}: it has gone");
        }
    }
}

/// The same of a file that is to be imported, by a host that lost its locks.
#[test]
fn a_blob_of_an_image_that_is_there_by_now() {
    let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/placed-aimed-import.raw");
    std::fs::write(file, pattern(6)).unwrap();
    let start = begin("import", Storage::Overlays);
    for step in 1.. {
        for pauses in 1..60 {
            let scene = start.copy();
            let made = Arc::new(AtomicBool::new(false));
            let works: Works<'_> = [
                &|scene| {
                    let (scene, made) = (scene.clone(), made.clone());
                    Box::new(move |store| {
                        let new = CreateOptions { auto_fix: AutoFix::Off, ..named(&scene, "new") };
                        let new = store.import_image("A", file, "raw", "{}", &new);
                        made.store(new.is_ok(), Ordering::Relaxed);
                    })
                },
                &|_| {
                    Box::new(|store| {
                        // The file is of the first host.
                        while let Some(fix) = listed(store, 0, FixType::Clean, None) {
                            if judge::fix(store, 0, &fix).is_err() {
                                break;
                            }
                        }
                    })
                },
            ];
            if held(&scene, step, Some(pauses), works, lose).is_none() {
                assert!(step > 8, "{step}");
                return;
            }
            let what = format!("held at step {step}, and the other one at {pauses}");
            hosts::alone(3, || {
                let (store, _) = scene.join("first");
                judge::repair_politely(&store, &what);
                if made.load(Ordering::Relaxed) {
                    let data = read(&store, "A", scene.id("new"));
                    assert!(data.is_ok_and(|data| data == pattern(6)), "{what}: it is not complete");
                }
                store.close().unwrap();
            });
        }
    }
}

/// Whoever copies a disk slowly has lost its lock, and another host writes the disk meanwhile: the copy is one moment of it all
/// the same.
#[test]
fn a_copy_of_what_is_written_meanwhile() {
    let start = begin("copy a disk", Storage::Overlays);
    for step in 1.. {
        let scene = start.copy();
        let works: Works<'_> = [
            &|scene| {
                let scene = scene.clone();
                Box::new(move |store| drop(copy_slowly(store, &scene)))
            },
            &|scene| {
                let scene = scene.clone();
                Box::new(move |store| {
                    let Ok(image) = store.open_image("A", scene.id("child"), true) else { return };
                    image.write(0, &pattern(4)).unwrap();
                    image.close().unwrap();
                })
            },
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

/// A host has seen that an image has no volume, as another one was about to delete that; which then saw the image, and kept it. And
/// a repeated call is answered with the id of the image before the first host removes what it takes for left over.
#[test]
fn an_image_that_was_answered_with_meanwhile() {
    let mut start = begin("create", Storage::Overlays);
    prepare(&mut start, |_, scene| {
        let new = scene.id("new").to_owned();
        scene.interrupted(0, operations::named("create").run, move |scene| {
            scene.raw(0).images.contains_key(&new)
        });
        scene.doom(0, "new");
    });
    let mut answered = 0;
    for step in 1.. {
        let scene = start.copy();
        let told = Arc::new(AtomicBool::new(false));
        let works: Works<'_> = [
            &|scene| {
                let scene = scene.clone();
                Box::new(move |store| {
                    let fix = listed(store, 0, FixType::Clean, Some(scene.id("new")));
                    let _ = fix.map(|fix| judge::fix(store, 0, &fix));
                })
            },
            &|scene| {
                let (scene, told) = (scene.clone(), told.clone());
                Box::new(move |store| {
                    let raw = scene.raw(0);
                    if raw.volume_of(scene.id("new")).is_some_and(|volume| volume["state"] == "doomed") {
                        scene.keep_volume(0, "new");
                    }
                    let outcome = (operations::named("create").run)(store, &scene);
                    told.store(outcome.is_ok(), Ordering::Relaxed);
                })
            },
        ];
        if held(&scene, step, None, works, stays).is_none() {
            assert!(step > 10 && answered > 5, "{step} {answered}");
            return;
        }
        if told.load(Ordering::Relaxed) {
            answered += 1;
            let there =
                scene.raw(0).images.get(scene.id("new")).map(|image| text(&image["state"]).to_owned());
            let there = there.filter(|state| ["pending", "live"].contains(&state.as_str()));
            assert!(there.is_some(), "held at step {step}: what was answered is lost");
        }
    }
}

/// Who announces a replacement has lost its locks, and another host takes the disk for writing meanwhile; which then loses its own.
#[test]
fn a_disk_that_is_taken_while_its_replacement_is_announced() {
    let start = begin("give a disk a volume of its own", Storage::Overlays);
    let mut taken = 0;
    for step in 1.. {
        for pauses in [50, 60] {
            let scene = start.copy();
            let wrote = Arc::new(AtomicBool::new(false));
            let works: Works<'_> = [
                &|scene| {
                    let scene = scene.clone();
                    Box::new(move |store| {
                        let _ = store.set_image_strategy("A", scene.id("child"), Strategy::Performance);
                        let fix = listed(store, 0, FixType::Optimize, Some(scene.id("child")));
                        let _ = fix.map(|fix| judge::fix(store, 0, &fix));
                    })
                },
                &|scene| {
                    let (scene, wrote) = (scene.clone(), wrote.clone());
                    Box::new(move |store| {
                        let Ok(image) = store.open_image("A", scene.id("child"), true) else { return };
                        let open = &scene.raw(0).images[scene.id("child")]["open"]["incarnation"];
                        let me = Incarnation(text(open).parse().unwrap());
                        scene.worlds[0].revoke(me, false);
                        for (index, block) in pattern(4).chunks(CLUSTER).enumerate() {
                            image.write((index * CLUSTER) as i64, block).unwrap();
                        }
                        wrote.store(image.close().is_ok(), Ordering::Relaxed);
                    })
                },
            ];
            if held(&scene, step, Some(pauses), works, lose).is_none() {
                assert!(taken > 20, "{taken}");
                return;
            }
            if !wrote.load(Ordering::Relaxed) {
                continue;
            }
            taken += 1;
            hosts::alone(3, || {
                let what = format!("held at step {step}, and the other one at {pauses}");
                let store = repaired(&scene, &what);
                let data = read(&store, "A", scene.id("child")).unwrap();
                assert!(data == pattern(4), "{what}: what was written is lost");
                store.close().unwrap();
            });
        }
    }
}
