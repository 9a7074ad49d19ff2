//! What hosts do at the same time: the operations of `causes`, and some more.

use vdsmstore_core::options::{ResizeOptions, Strategy};
use vdsmstore_io::device::sim::hosts;

use crate::operation::{ALL, OVERLAYS, Operation, copy, copy_to_b, family, remove, repair, rewrite};
use crate::scene::{CLUSTER, SIZE, Scene, Storage, pattern};
use crate::{changing, making};

/// The operation that writes a disk with what it held at the start.
pub const REWRITES: &str = "write a disk";

/// Beside those of `causes`.
const MORE: &[Operation] = &[
    Operation {
        name: "resize",
        storages: ALL,
        setup: family,
        run: |store, scene| {
            let size = 2 * SIZE as i64;
            store.resize_virtual_disk("A", scene.id("child"), size, &ResizeOptions::default())
        },
        removes: &[],
    },
    Operation {
        name: REWRITES,
        storages: ALL,
        setup: family,
        run: |store, scene| {
            // What it is anyway: so nobody can tell whether it happened.
            let data = scene.data(0, "child");
            let image = store.open_image("A", scene.id("child"), true)?;
            image.write(0, &data)?;
            image.close()
        },
        removes: &[],
    },
    Operation {
        name: "replace a disk whose snapshot goes",
        storages: OVERLAYS,
        setup: family,
        run: |store, scene| {
            store.set_image_strategy("A", scene.id("child"), Strategy::Performance)?;
            remove(store, 0, scene, "snapshot")?;
            repair(store, "A")
        },
        removes: &[(0, "snapshot")],
    },
];

/// Of which only rows are about: `focused` chooses among the others, and would choose others with each one more.
const ROWS: &[Operation] = &[Operation {
    name: "copy a disk once more onto almost the same",
    storages: OVERLAYS,
    setup: |store, scene| {
        family(store, scene);
        copy(store, scene, "base", "child", None);
        let mut data = pattern(2);
        data[..CLUSTER].fill(9);
        rewrite(store, scene, 0, "child", data.clone());
        copy(store, scene, "copied", "child", Some("base"));
        scene.expect(1, "new", data);
    },
    run: |store, scene| copy_to_b(store, scene, "child", Some("base"), "new"),
    removes: &[],
}];

pub fn all() -> impl Iterator<Item = &'static Operation> {
    making::OPERATIONS.iter().chain(changing::OPERATIONS).chain(MORE)
}

pub fn named(name: &str) -> &'static Operation {
    all()
        .chain(ROWS)
        .find(|operation| operation.name == name)
        .unwrap_or_else(|| panic!("no operation {name:?}"))
}

/// A scene in which the operation can run.
pub fn start(operation: &Operation, storage: Storage, seed: u64) -> Scene {
    hosts::alone(seed, || {
        let mut start = Scene::new(storage);
        let (store, _) = start.join("setup");
        (operation.setup)(&store, &mut start);
        store.close().unwrap();
        start
    })
}
