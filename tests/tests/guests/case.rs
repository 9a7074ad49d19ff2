//! The operations, the chains that they work on, and what must become of them beside a guest.

use std::collections::BTreeMap;

use vdsmstore_core::options::{
    AutoFix, CheckOptions, CreateOptions, FixOptions, RemoveOptions, ResizeOptions, Strategy,
};
use vdsmstore_core::{Fix, FixType, Result, Store};
use vdsmstore_tests::PATIENCE;
use vdsmstore_tests::scene::{SIZE, Scene, bytes};
use vdsmstore_tests::write;

use crate::Outcome;
use crate::guest::{ALL, READERS, Use};

/// A chain of images, and the fix that is to be run.
#[derive(Default)]
pub struct Images {
    /// Id and content by name.
    pub chain: BTreeMap<&'static str, (String, Vec<u8>)>,
    fix: Option<Fix>,
}

pub struct Case {
    pub name: &'static str,
    pub setup: fn(&Scene, &mut Images),
    /// What happens once the guest is there.
    pub then: Option<fn(&Scene, &mut Images)>,
    pub run: fn(&Scene, &Images) -> Result<()>,
    /// It is done.
    pub done: fn(&Scene, &Images) -> bool,
    pub guests: &'static [(&'static str, &'static [Use])],
    pub expected: fn(&str, Use) -> Outcome,
    pub removes: &'static [&'static str],
}

/// All that is listed, until nothing is.
pub fn finish(store: &Store) {
    for round in 0.. {
        let fixes = store.check_storage_repository("A", &CheckOptions::default()).unwrap();
        if fixes.is_empty() {
            return;
        }
        assert!(round < 8, "still listed: {fixes:#?}");
        for fix in fixes {
            if let Ok(task) = store.fix_storage_repository("A", &fix, &FixOptions::default()) {
                let _ = store.wait_task(&task, Some(PATIENCE));
            }
        }
    }
}

/// `low`, on it `middle`, on that `disk`: so many blocks of 64 KiB each.
fn chain(scene: &Scene, images: &mut Images, blocks: [usize; 3]) {
    let id = scene.disk("A", 1, blocks[0]);
    let mut data = bytes(1, blocks[0]);
    for (index, name) in ["low", "middle"].into_iter().enumerate() {
        images.chain.insert(name, (scene.snapshot("A", &id), data.clone()));
        let (byte, length) = (index as u8 + 2, blocks[index + 1] * 65536);
        data[..length].fill(byte);
        write(&scene.store, "A", &id, |image| image.write(0, &vec![byte; length]));
    }
    images.chain.insert("disk", (id, data));
}

fn id<'a>(images: &'a Images, name: &str) -> &'a str {
    &images.chain[name].0
}

/// Removes an image of which something is built, and remembers the merge that is listed.
fn remove_and_list(scene: &Scene, images: &mut Images, name: &str) {
    scene.remove("A", id(images, name));
    images.chain.remove(name);
    scene.quiet();
    list(scene, images, FixType::Merge);
}

fn list(scene: &Scene, images: &mut Images, kind: FixType) {
    let fixes = scene.store.check_storage_repository("A", &CheckOptions::default()).unwrap();
    let [fix] = &fixes.iter().filter(|fix| fix.fix_type == kind).cloned().collect::<Vec<_>>()[..] else {
        panic!("listed: {fixes:#?}");
    };
    images.fix = Some(fix.clone());
}

fn fix(scene: &Scene, images: &Images) -> Result<()> {
    let fix = images.fix.as_ref().unwrap();
    let task = scene.store.fix_storage_repository("A", fix, &FixOptions::default())?;
    scene.store.wait_task(&task, Some(PATIENCE))
}

/// The fix is not listed.
fn unlisted(scene: &Scene, images: &Images) -> bool {
    let fixes = scene.store.check_storage_repository("A", &CheckOptions::default()).unwrap();
    let fix = images.fix.as_ref().unwrap();
    fixes
        .iter()
        .all(|other| other.data["action"] != fix.data["action"] || other.data["ids"] != fix.data["ids"])
}

fn depth(scene: &Scene, images: &Images, name: &str) -> u32 {
    scene.store.get_image_info("A", id(images, name)).unwrap().depth
}

fn perform(scene: &Scene, images: &mut Images, name: &str) {
    scene.store.set_image_strategy("A", id(images, name), Strategy::Performance).unwrap();
    list(scene, images, FixType::Optimize);
}

fn on_top(on: &str, how: Use) -> Outcome {
    match (on, how) {
        ("low" | "middle", _) => Outcome::Done,
        _ => Outcome::Refused,
    }
}

fn always(_: &str, _: Use) -> Outcome {
    Outcome::Refused
}

const MERGES_ABOVE: &[(&str, &[Use])] = &[("disk", ALL), ("low", READERS)];
const MERGES_BELOW: &[(&str, &[Use])] = &[("disk", ALL), ("middle", READERS)];
/// What `qemu_locks.rs` does not have.
const OTHERS: &[Use] = &[Use::PreparedToRead, Use::OpenToRead, Use::OpenToWrite];

pub const CASES: &[Case] = &[
    Case {
        name: "merge down under the disk",
        setup: |scene, images| {
            chain(scene, images, [60, 40, 10]);
            remove_and_list(scene, images, "middle");
        },
        then: None,
        run: fix,
        done: |scene, images| depth(scene, images, "disk") == 2,
        guests: MERGES_ABOVE,
        expected: on_top,
        removes: &[],
    },
    Case {
        name: "merge up under the disk",
        setup: |scene, images| {
            chain(scene, images, [60, 10, 40]);
            remove_and_list(scene, images, "middle");
        },
        then: None,
        run: fix,
        done: |scene, images| depth(scene, images, "disk") == 2,
        guests: MERGES_ABOVE,
        expected: on_top,
        removes: &[],
    },
    Case {
        name: "merge down in the middle",
        setup: |scene, images| {
            chain(scene, images, [60, 10, 20]);
            remove_and_list(scene, images, "low");
        },
        then: None,
        run: fix,
        done: |scene, images| depth(scene, images, "disk") == 2,
        guests: MERGES_BELOW,
        expected: always,
        removes: &[],
    },
    Case {
        name: "merge up in the middle",
        setup: |scene, images| {
            chain(scene, images, [10, 50, 20]);
            remove_and_list(scene, images, "low");
        },
        then: None,
        run: fix,
        done: |scene, images| depth(scene, images, "disk") == 2,
        guests: MERGES_BELOW,
        expected: always,
        removes: &[],
    },
    Case {
        name: "replace the disk",
        setup: |scene, images| {
            chain(scene, images, [60, 10, 20]);
            perform(scene, images, "disk");
        },
        then: None,
        run: fix,
        done: |scene, images| depth(scene, images, "disk") == 1,
        guests: &[("disk", ALL), ("middle", READERS)],
        // Who reads goes on with the old volume.
        expected: |on, how| if how.writes() { on_top(on, how) } else { Outcome::Done },
        removes: &[],
    },
    Case {
        name: "replace a snapshot",
        setup: |scene, images| {
            chain(scene, images, [60, 10, 20]);
            perform(scene, images, "middle");
        },
        then: None,
        run: fix,
        done: |scene, images| depth(scene, images, "middle") == 1 && depth(scene, images, "disk") == 2,
        guests: &[("disk", ALL), ("middle", READERS), ("low", READERS)],
        expected: |_, _| Outcome::Done,
        removes: &[],
    },
    Case {
        name: "clean what was replaced",
        setup: |scene, images| {
            chain(scene, images, [60, 10, 20]);
            perform(scene, images, "disk");
        },
        then: Some(|scene, images| {
            fix(scene, images).unwrap();
            list(scene, images, FixType::Clean);
        }),
        run: fix,
        done: unlisted,
        guests: &[("disk", READERS)],
        expected: always,
        removes: &[],
    },
    Case {
        name: "clean what was removed",
        setup: |scene, images| chain(scene, images, [60, 10, 20]),
        then: Some(|scene, images| {
            for name in ["middle", "disk", "low"] {
                scene.remove("A", id(images, name));
            }
            scene.quiet();
            list(scene, images, FixType::Clean);
        }),
        run: fix,
        done: unlisted,
        guests: &[("middle", &[Use::QemuReads])],
        expected: always,
        removes: &["disk", "middle", "low"],
    },
    Case {
        name: "resize",
        setup: |scene, images| chain(scene, images, [60, 10, 20]),
        then: None,
        run: |scene, images| {
            let options = ResizeOptions::default();
            scene.store.resize_virtual_disk("A", id(images, "disk"), 2 * SIZE, &options)
        },
        done: |scene, images| {
            scene.store.get_image_info("A", id(images, "disk")).unwrap().size == 2 * SIZE as u64
        },
        guests: &[("disk", ALL), ("middle", READERS)],
        expected: |on, _| if on == "disk" { Outcome::Refused } else { Outcome::Done },
        removes: &[],
    },
    Case {
        name: "createSnapshot",
        setup: |scene, images| chain(scene, images, [60, 10, 20]),
        then: None,
        run: |scene, images| {
            scene.store.create_snapshot("A", id(images, "disk"), "{}", &CreateOptions::default()).map(drop)
        },
        done: |scene, images| depth(scene, images, "disk") == 4,
        guests: &[("disk", OTHERS), ("middle", READERS)],
        expected: |on, _| if on == "disk" { Outcome::Refused } else { Outcome::Done },
        removes: &[],
    },
    Case {
        name: "removeImage of the disk",
        setup: |scene, images| chain(scene, images, [60, 10, 20]),
        then: None,
        run: |scene, images| remove(scene, images, "disk"),
        done: |_, _| true,
        guests: &[("disk", OTHERS), ("middle", READERS)],
        expected: |on, _| if on == "disk" { Outcome::Refused } else { Outcome::Done },
        removes: &["disk"],
    },
    Case {
        name: "removeImage of a snapshot",
        setup: |scene, images| chain(scene, images, [60, 10, 20]),
        then: None,
        run: |scene, images| remove(scene, images, "middle"),
        done: |scene, images| depth(scene, images, "disk") == 2,
        guests: &[("disk", ALL), ("middle", &[Use::PreparedToRead, Use::OpenToRead]), ("low", READERS)],
        expected: |on, _| if on == "middle" { Outcome::Refused } else { Outcome::Done },
        removes: &["middle"],
    },
];

fn remove(scene: &Scene, images: &Images, name: &str) -> Result<()> {
    let options = RemoveOptions { auto_fix: AutoFix::On, ..RemoveOptions::default() };
    scene.store.remove_image("A", id(images, name), &options)?;
    scene.quiet();
    Ok(())
}
