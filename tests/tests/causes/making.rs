//! The operations that make images.

use vdsmstore_core::options::{AutoFix, CopyOptions, CreateOptions, Strategy};

use crate::operation::{ALL, COPIES, Operation, copy, copy_to_b, family, remove, repair, snapshot};
use crate::scene::{SIZE, Want, named, named_copy, pattern};

pub const OPERATIONS: &[Operation] = &[
    Operation {
        name: "create",
        storages: ALL,
        setup: |_, scene| drop(scene.expect(0, "new", vec![0; SIZE])),
        run: |store, scene| {
            store
                .create_virtual_disk("A", Some(SIZE as i64), None, r#"{"a":1}"#, &named(scene, "new"))
                .map(drop)
        },
        removes: &[],
    },
    Operation {
        name: "clean up after a create that was interrupted",
        storages: ALL,
        setup: |_, scene| {
            scene.expect(0, "new", vec![0; SIZE]);
            scene.interrupted(
                0,
                |store, scene| {
                    let size = Some(SIZE as i64);
                    store.create_virtual_disk("A", size, None, r#"{"a":1}"#, &named(scene, "new")).map(drop)
                },
                |scene| scene.raw(0).holders.len() == 1,
            );
        },
        run: |store, _| repair(store, "A"),
        removes: &[(0, "new")],
    },
    Operation {
        name: "create, reserving its space",
        storages: ALL,
        setup: |_, scene| drop(scene.expect(0, "new", vec![0; SIZE])),
        run: |store, scene| {
            let options = CreateOptions { strategy: Strategy::Performance, ..named(scene, "new") };
            store.create_virtual_disk("A", Some(SIZE as i64), None, "{}", &options)?;
            store.run_tasks();
            Ok(())
        },
        removes: &[],
    },
    Operation {
        name: "create on a snapshot",
        storages: ALL,
        setup: |store, scene| {
            family(store, scene);
            scene.expect(0, "new", pattern(1));
        },
        run: |store, scene| {
            let base = Some(scene.id("snapshot"));
            store.create_virtual_disk("A", None, base, r#"{"a":1}"#, &named(scene, "new")).map(drop)
        },
        removes: &[],
    },
    Operation {
        name: "create on a snapshot of another repository",
        storages: ALL,
        setup: |store, scene| {
            family(store, scene);
            scene.expect(1, "new", pattern(1));
            let id = scene.id("snapshot").to_owned();
            let want = Want::unfinished(pattern(1));
            scene.wants.insert((1, id), want);
        },
        run: |store, scene| {
            store.create_virtual_disk("B", None, Some(scene.id("snapshot")), "{}", &named(scene, "new"))?;
            store.run_tasks();
            Ok(())
        },
        removes: &[],
    },
    Operation {
        name: "announce disks and copies (AutoFix=False)",
        storages: ALL,
        setup: |store, scene| {
            family(store, scene);
            copy(store, scene, "base", "disk", None);
            for (name, data) in [
                ("blank", vec![0; SIZE]),
                ("on base", pattern(1)),
                ("copied", pattern(3)),
                ("diff", pattern(2)),
            ] {
                scene.expect(usize::from(name != "blank" && name != "on base"), name, data);
            }
        },
        run: |store, scene| {
            let create = |name| CreateOptions { auto_fix: AutoFix::Off, ..named(scene, name) };
            let copy = |name| CopyOptions { auto_fix: AutoFix::Off, ..named_copy(scene, name) };
            store.create_virtual_disk("A", Some(SIZE as i64), None, "{}", &create("blank"))?;
            store.create_virtual_disk("A", None, Some(scene.id("snapshot")), "{}", &create("on base"))?;
            store.copy_image("B", scene.id("disk"), None, "{}", &copy("copied"))?;
            store.copy_image("B", scene.id("child"), Some(scene.id("base")), "{}", &copy("diff")).map(drop)
        },
        removes: &[],
    },
    Operation {
        name: "snapshot",
        storages: ALL,
        setup: |store, scene| {
            family(store, scene);
            scene.expect(0, "new", pattern(3));
        },
        run: |store, scene| {
            store.create_snapshot("A", scene.id("disk"), r#"{"a":1}"#, &named(scene, "new")).map(drop)
        },
        removes: &[],
    },
    Operation {
        name: "two snapshots announced, then the disk opened",
        storages: ALL,
        setup: |store, scene| {
            family(store, scene);
            scene.expect(0, "new", pattern(2));
            scene.expect(0, "second", pattern(2));
        },
        run: |store, scene| {
            for name in ["new", "second"] {
                let options = CreateOptions { auto_fix: AutoFix::Off, ..named(scene, name) };
                store.create_snapshot("A", scene.id("child"), "{}", &options)?;
            }
            store.open_image("A", scene.id("child"), true)?.close()
        },
        removes: &[],
    },
    Operation {
        name: "snapshot announced, then the disk removed",
        storages: ALL,
        setup: |store, scene| {
            family(store, scene);
            scene.expect(0, "new", pattern(2));
        },
        run: |store, scene| {
            let options = CreateOptions { auto_fix: AutoFix::Off, ..named(scene, "new") };
            store.create_snapshot("A", scene.id("child"), "{}", &options)?;
            remove(store, 0, scene, "child")
        },
        removes: &[(0, "child")],
    },
    Operation {
        name: "copy a disk",
        storages: COPIES,
        setup: |store, scene| {
            family(store, scene);
            scene.expect(1, "new", pattern(2));
        },
        run: |store, scene| copy_to_b(store, scene, "child", None, "new"),
        removes: &[],
    },
    Operation {
        name: "copy a snapshot",
        storages: COPIES,
        setup: |store, scene| {
            family(store, scene);
            let id = scene.id("snapshot").to_owned();
            scene.wants.insert((1, id), Want::unfinished(pattern(1)));
        },
        run: |store, scene| copy_to_b(store, scene, "snapshot", None, "snapshot"),
        removes: &[],
    },
    Operation {
        name: "copy a disk onto a disk",
        storages: COPIES,
        setup: |store, scene| {
            family(store, scene);
            copy(store, scene, "base", "child", None);
            scene.expect(1, "new", pattern(3));
        },
        run: |store, scene| copy_to_b(store, scene, "disk", Some("base"), "new"),
        removes: &[],
    },
    Operation {
        name: "copy a disk onto a snapshot",
        storages: COPIES,
        setup: |store, scene| {
            family(store, scene);
            copy(store, scene, "snapshot", "snapshot", None);
            scene.expect(1, "new", pattern(3));
        },
        run: |store, scene| copy_to_b(store, scene, "disk", Some("snapshot"), "new"),
        removes: &[],
    },
    Operation {
        name: "partial copy, then its base",
        storages: COPIES,
        setup: |store, scene| {
            family(store, scene);
            snapshot(store, scene, 0, "second", "child");
            for (name, data) in [("second", pattern(2)), ("snapshot", pattern(1))] {
                let id = scene.id(name).to_owned();
                scene.wants.insert((1, id), Want::unfinished(data));
            }
        },
        run: |store, scene| {
            let base = Some(scene.id("snapshot"));
            let partial = CopyOptions { partial: true, ..CopyOptions::default() };
            store.copy_image("B", scene.id("second"), base, "{}", &partial)?;
            store.run_tasks();
            copy_to_b(store, scene, "snapshot", None, "snapshot")
        },
        removes: &[],
    },
    Operation {
        name: "import",
        storages: COPIES,
        setup: |_, scene| {
            scene.expect(0, "new", pattern(6));
        },
        run: |store, scene| {
            let path = crate::file_to_import();
            store.import_image("A", path, "raw", r#"{"a":1}"#, &named(scene, "new"))?;
            store.run_tasks();
            Ok(())
        },
        removes: &[],
    },
];
