//! The operations on images that exist: what goes, moves, is merged, is lost.

use vdsmstore_core::Store;
use vdsmstore_core::options::{AutoFix, CopyOptions, CreateOptions, Strategy};

use crate::operation::{
    ALL, COPIES, DOUBTS, OVERLAYS, Operation, chain, chain_too, copy, copy_to_b, disk, family, line, remove,
    remove_later, remove_line, repair,
};
use crate::scene::{Scene, Want, dot, named_copy, off, pattern};

/// A copy that has begun, and then its host died.
fn announced_copy(store: &Store, scene: &mut Scene) {
    family(store, scene);
    scene.expect(1, "new", pattern(2));
    scene.interrupted(
        1,
        |store, scene| copy_to_b(store, scene, "child", None, "new"),
        |scene| scene.raw(1).progress.contains_key(scene.id("new")),
    );
}

pub const OPERATIONS: &[Operation] = &[
    Operation {
        name: "remove an announced copy",
        storages: COPIES,
        setup: announced_copy,
        run: |store, scene| remove(store, 1, scene, "new"),
        removes: &[(1, "new")],
    },
    Operation {
        name: "remove a disk",
        storages: ALL,
        setup: family,
        run: |store, scene| remove(store, 0, scene, "child"),
        removes: &[(0, "child")],
    },
    Operation {
        name: "remove a disk, then what it is on",
        storages: ALL,
        setup: family,
        run: |store, scene| {
            remove_later(store, 0, scene, "snapshot")?;
            remove(store, 0, scene, "disk")?;
            remove(store, 0, scene, "child")?;
            repair(store, "A")
        },
        removes: &[(0, "child"), (0, "disk"), (0, "snapshot")],
    },
    Operation {
        name: "remove a snapshot and merge down",
        storages: OVERLAYS,
        setup: |store, scene| chain(store, scene, false),
        run: |store, scene| {
            remove(store, 0, scene, "upper")?;
            repair(store, "A")
        },
        removes: &[(0, "upper")],
    },
    Operation {
        name: "remove a snapshot and merge up",
        storages: OVERLAYS,
        setup: |store, scene| chain(store, scene, true),
        run: |store, scene| {
            remove(store, 0, scene, "upper")?;
            repair(store, "A")
        },
        removes: &[(0, "upper")],
    },
    Operation {
        name: "remove three snapshots in a row and merge down",
        storages: OVERLAYS,
        setup: |store, scene| line(store, scene, false),
        run: remove_line,
        removes: &[(0, "first"), (0, "second"), (0, "third")],
    },
    Operation {
        name: "remove three snapshots in a row and merge up",
        storages: OVERLAYS,
        setup: |store, scene| line(store, scene, true),
        run: remove_line,
        removes: &[(0, "first"), (0, "second"), (0, "third")],
    },
    Operation {
        name: "remove a copy whose base was frozen",
        storages: ALL,
        setup: |store, scene| {
            family(store, scene);
            copy(store, scene, "base", "child", None);
            copy(store, scene, "copied", "disk", Some("base"));
        },
        run: |store, scene| {
            remove(store, 1, scene, "copied")?;
            repair(store, "B")
        },
        removes: &[(1, "copied")],
    },
    Operation {
        name: "give a disk a volume of its own",
        storages: DOUBTS,
        setup: family,
        run: |store, scene| {
            store.set_image_strategy("A", scene.id("child"), Strategy::Performance)?;
            repair(store, "A")
        },
        removes: &[],
    },
    Operation {
        name: "give a snapshot a volume of its own",
        storages: DOUBTS,
        setup: |store, scene| chain(store, scene, true),
        run: |store, scene| {
            store.set_image_strategy("A", scene.id("upper"), Strategy::Performance)?;
            repair(store, "A")
        },
        removes: &[],
    },
    Operation {
        name: "open a disk that is being replaced",
        storages: OVERLAYS,
        setup: |store, scene| {
            family(store, scene);
            store.set_image_strategy("A", scene.id("child"), Strategy::Performance).unwrap();
            scene.interrupted(
                0,
                |store, _| repair(store, "A"),
                |scene| scene.raw(0).images[scene.id("child")]["next"].is_string(),
            );
        },
        run: |store, scene| store.open_image("A", scene.id("child"), true)?.close(),
        removes: &[],
    },
    Operation {
        name: "hold a disk open whose chain could be merged or replaced",
        storages: OVERLAYS,
        setup: |store, scene| {
            family(store, scene);
            chain_too(store, scene);
            store.set_image_strategy("A", scene.id("child"), Strategy::Performance).unwrap();
            remove(store, 0, scene, "base").unwrap();
            scene.wants.remove(&(0, scene.id("base").to_owned()));
        },
        run: |store, scene| {
            for name in ["child", "top"] {
                std::mem::forget(store.open_image("A", scene.id(name), true)?);
            }
            Ok(())
        },
        removes: &[],
    },
    Operation {
        name: "set user data",
        storages: ALL,
        setup: |store, scene| {
            disk(store, scene, 0, "disk", dot(1));
            store.set_image_user_data("A", scene.id("disk"), r#"{"old":1}"#).unwrap();
        },
        run: |store, scene| store.set_image_user_data("A", scene.id("disk"), r#"{"new":1}"#),
        removes: &[],
    },
    Operation {
        name: "fetch a snapshot whose data object was lost",
        storages: COPIES,
        setup: |store, scene| {
            family(store, scene);
            copy(store, scene, "snapshot", "snapshot", None);
            scene.lose_object(1, "snapshot");
        },
        run: |store, _| repair(store, "B"),
        removes: &[],
    },
    Operation {
        name: "bring a removed snapshot back",
        storages: ALL,
        setup: |store, scene| {
            family(store, scene);
            copy(store, scene, "snapshot", "snapshot", None);
            let id = scene.id("snapshot").to_owned();
            let other = store.create_virtual_disk("B", None, Some(&id), "{}", &CreateOptions::default());
            scene.keep(1, "other", other.unwrap().to_string(), pattern(1));
            remove(store, 1, scene, "snapshot").unwrap();
            scene.wants.insert((1, id), Want::unfinished(pattern(1)));
        },
        run: |store, scene| copy_to_b(store, scene, "snapshot", None, "snapshot"),
        removes: &[],
    },
    Operation {
        name: "bring back a removed snapshot whose volume's record was lost",
        storages: OVERLAYS,
        setup: |store, scene| {
            family(store, scene);
            copy(store, scene, "snapshot", "snapshot", None);
            let id = scene.id("snapshot").to_owned();
            let other = store.create_virtual_disk("B", None, Some(&id), "{}", &CreateOptions::default());
            scene.keep(1, "other", other.unwrap().to_string(), pattern(1));
            remove(store, 1, scene, "snapshot").unwrap();
            scene.lose_volume_record(1, "snapshot");
            scene.doubt(1, "other", true);
        },
        run: |store, scene| copy_to_b(store, scene, "snapshot", None, "snapshot"),
        removes: &[],
    },
    Operation {
        name: "announce a copy, whose volume's record is lost",
        storages: OVERLAYS,
        setup: |store, scene| {
            family(store, scene);
            let id = scene.expect(1, "new", pattern(2));
            let options = CopyOptions { auto_fix: AutoFix::Off, ..named_copy(scene, "new") };
            store.copy_image("B", scene.id("child"), None, "{}", &options).unwrap();
            scene.lose_volume_record(1, "new");
            // Nothing can complete it.
            scene.wants.remove(&(1, id));
        },
        run: |_, _| Ok(()),
        removes: &[(1, "new")],
    },
    Operation {
        name: "flag a removed image, something being built on it",
        storages: OVERLAYS,
        setup: |store, scene| {
            family(store, scene);
            remove(store, 0, scene, "snapshot").unwrap();
            scene.flag(0, "snapshot");
        },
        run: |_, _| Ok(()),
        removes: &[(0, "snapshot")],
    },
    Operation {
        name: "doom the volume of a disk that came to want it",
        storages: OVERLAYS,
        setup: |store, scene| {
            family(store, scene);
            scene.doom(0, "child");
        },
        run: |_, _| Ok(()),
        removes: &[],
    },
    Operation {
        name: "doom the volume of an announced copy that came to want it",
        storages: COPIES,
        setup: |store, scene| {
            announced_copy(store, scene);
            scene.doom(1, "new");
        },
        run: |store, _| repair(store, "B"),
        removes: &[],
    },
    Operation {
        name: "take 65 snapshots of a disk",
        storages: OVERLAYS,
        setup: |store, scene| {
            disk(store, scene, 0, "disk", dot(1));
            for _ in 0..65 {
                let id = store.create_snapshot("A", scene.id("disk"), "{}", &off());
                let _ = id.unwrap();
                store.open_image("A", scene.id("disk"), true).unwrap().close().unwrap();
            }
            scene.all_snapshots(0, &dot(1));
        },
        run: |_, _| Ok(()),
        removes: &[],
    },
];
