//! Disks that somebody takes between two steps of another host.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vdsmstore_core::FixType;
use vdsmstore_core::id::Incarnation;
use vdsmstore_core::options::{AutoFix, CreateOptions, Strategy};
use vdsmstore_core::repository::QemuUse;
use vdsmstore_io::device::sim::hosts::{self};

use super::{Works, begin, does, held, listed, lose, repaired, stays};
use crate::judge;
use crate::operation::remove;
use crate::raw::text;
use crate::scene::{CLUSTER, Storage, named, pattern, read};

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

/// Who announces a replacement has lost its locks, and another host takes the disk for writing meanwhile;
/// which then loses its own.
#[test]
fn a_disk_that_is_taken_while_its_replacement_is_announced() {
    let start = begin("give a disk a volume of its own", Storage::Overlays);
    let mut taken = 0;
    for step in 1.. {
        for pauses in [50, 60] {
            let scene = start.copy();
            let wrote = Arc::new(AtomicBool::new(false));
            let works: Works<'_> = [
                &does(move |store, scene| {
                    let _ = store.set_image_strategy("A", scene.id("child"), Strategy::Performance);
                    let fix = listed(store, 0, FixType::Optimize, Some(scene.id("child")));
                    let _ = fix.map(|fix| judge::fix(store, 0, &fix));
                }),
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
