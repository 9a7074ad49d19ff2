//! What is taken for left over, and is not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vdsmstore_core::id::{Incarnation, VolumeId};
use vdsmstore_core::options::{AutoFix, CreateOptions, Strategy};
use vdsmstore_core::repository::{Marker, RecordKey};
use vdsmstore_core::sim::Unknown;
use vdsmstore_core::{ErrorKind, FixType, Store};
use vdsmstore_io::device::sim::Fault;
use vdsmstore_io::device::sim::hosts::{self, Act};

use super::{Works, begin, does, held, listed, lose, prepare, repaired, stays};
use crate::operation::{copy, remove};
use crate::raw::text;
use crate::scene::{SIZE, Scene, Storage, named, off, pattern, read};
use crate::{judge, operations};

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
                &does(move |store, scene| {
                    let _ = remove(store, 1, scene, "snapshot");
                    let size = Some(SIZE as i64);
                    let _ = store.create_virtual_disk("B", size, None, "{}", &named(scene, "snapshot"));
                }),
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
                &does(move |store, scene| {
                    let base = Some(scene.id("snapshot"));
                    let _ = store.create_virtual_disk("A", None, base, "{}", &named(scene, "new"));
                }),
                &does(move |store, scene| {
                    scene.worlds[0].inject_unknown(lost, Unknown::Lost);
                    judge::repair_politely(store, "the other host");
                }),
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

/// User data that is being set, and the blob of which another host takes for left over meanwhile.
#[test]
fn a_blob_that_is_named_by_now() {
    let start = begin("set user data", Storage::Overlays);
    for step in 1.. {
        for pauses in 1..60 {
            let scene = start.copy();
            let works: Works<'_> = [
                &does(move |store, scene| {
                    let _ = store.set_image_user_data("A", scene.id("disk"), r#"{"new":1}"#);
                }),
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

/// A host has seen that an image has no volume, as another one was about to delete that; which then saw the
/// image, and kept it. And a repeated call is answered with the id of the image before the first host removes
/// what it takes for left over.
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
            &does(move |store, scene| {
                let fix = listed(store, 0, FixType::Clean, Some(scene.id("new")));
                let _ = fix.map(|fix| judge::fix(store, 0, &fix));
            }),
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

/// Of what a check lists only what is left over.
fn clean(store: &Store) {
    for fix in judge::check(store, 0).iter().filter(|fix| fix.fix_type == FixType::Clean) {
        let _ = judge::fix(store, 0, fix);
    }
}

/// The new volume of a disk, or of its snapshot, is taken for garbage by a host that sees nobody point at it; the one that was
/// about to has lost its locks. `then`: what the other host does after that; and what is to be so in the end.
fn a_new_volume_is_garbage(
    storage: Storage,
    then: impl Fn(&Store, &Scene) + Clone + Send + 'static,
    mut so: impl FnMut(&Store, &Scene, &str),
) {
    let start = begin("resize", storage);
    for step in 1.. {
        let scene = start.copy();
        let what = format!("{storage:?}, held at step {step}");
        let then = then.clone();
        let works: Works<'_> = [
            &does(move |store, scene| {
                let _ = store.create_snapshot("A", scene.id("child"), "{}", &CreateOptions::default());
            }),
            &does(move |store, scene| {
                clean(store);
                then(store, scene);
            }),
        ];
        if held(&scene, step, None, works, lose).is_none() {
            assert!(step > 30, "{step}");
            break;
        }
        hosts::alone(3, || {
            // Before anything is mended.
            clean(&scene.join("cleaner").0);
            let store = repaired(&scene, &what);
            let images = scene.raw(0).images;
            for id in images.iter().filter(|(_, image)| image["state"] == "live").map(|(id, _)| id) {
                read(&store, "A", id).unwrap_or_else(|error| panic!("{what}: {error:?}"));
            }
            let data = read(&store, "A", scene.id("child")).unwrap();
            assert!(data == scene.data(0, "child"), "{what}: it is wrong");
            so(&store, &scene, &what);
            store.close().unwrap();
        });
    }
}

#[test]
fn a_snapshot_whose_volume_is_taken_for_garbage() {
    for storage in [Storage::Overlays, Storage::Clones] {
        a_new_volume_is_garbage(storage, |_, _| {}, |_, _, _| {});
    }
}

/// The same, and the disk is to be frozen once more by then: that snapshot is promised, whatever becomes of the first one.
#[test]
fn a_snapshot_that_is_announced_while_another_one_is_taken_back() {
    let (announced, mut kept) = (Arc::new(Mutex::new(None)), 0);
    let announce = {
        let announced = announced.clone();
        move |store: &Store, scene: &Scene| {
            *announced.lock().unwrap() = store.create_snapshot("A", scene.id("child"), "{}", &off()).ok();
        }
    };
    a_new_volume_is_garbage(Storage::Overlays, announce, |store, scene, what| {
        let Some(id) = announced.lock().unwrap().take() else { return };
        kept += 1;
        let data = read(store, "A", &id.to_string()).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert!(data == scene.data(0, "child"), "{what}: the snapshot is wrong");
    });
    assert!(kept > 10, "{kept}");
}

/// An import that is removed by another host, at each step of whoever fills it, which has lost its locks, ends as work that
/// nobody wants any more.
#[test]
fn an_import_that_is_removed_meanwhile() {
    std::fs::write(crate::file_to_import(), pattern(6)).unwrap();
    let mut start = begin("import", Storage::Overlays);
    prepare(&mut start, |store, scene| {
        store.import_image("A", crate::file_to_import(), "raw", "{}", &named_off(scene)).unwrap();
    });
    let mut ended = 0;
    for step in 1.. {
        let scene = start.copy();
        let found = Arc::new(Mutex::new(None));
        let works: Works<'_> = [
            &|scene| {
                let (scene, found) = (scene.clone(), found.clone());
                Box::new(move |store| {
                    let fix = listed(store, 0, FixType::Mend, Some(scene.id("new")));
                    *found.lock().unwrap() = fix.map(|fix| judge::fix(store, 0, &fix));
                })
            },
            &does(move |store, scene| drop(remove(store, 0, scene, "new"))),
        ];
        if held(&scene, step, None, works, lose).is_none() {
            assert!(step > 20, "{step}");
            break;
        }
        if let Some(Err(error)) = &*found.lock().unwrap() {
            ended += 1;
            assert!(judge::is_polite(error.kind()), "held at step {step}: {error:?}");
        }
    }
    assert!(ended > 10, "{ended}");
}

fn named_off(scene: &Scene) -> CreateOptions {
    CreateOptions { auto_fix: AutoFix::Off, ..named(scene, "new") }
}
