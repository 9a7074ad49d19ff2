//! The operations in which a host loses its power.

use vdsmstore_core::options::{AutoFix, CopyOptions, CreateOptions, RemoveOptions, ResizeOptions, Strategy};
use vdsmstore_core::{Result, Store};

use crate::scene::{Ids, SIZE, Scene, content, repair};

/// What a call was to make: an id that it chose beforehand, in a repository, with this content. None: nothing new.
pub type Made = Option<(usize, String, Vec<u8>)>;

pub struct Operation {
    pub name: &'static str,
    /// Runs the verb; may fail when the power goes.
    pub run: fn(&Store, &Ids) -> Result<()>,
    pub made: fn(&Ids, &Scene) -> Made,
    /// The images that it removes.
    pub removes: fn(&Ids) -> Vec<(usize, String)>,
}

pub fn chosen(ids: &Ids) -> CreateOptions {
    CreateOptions { image_id: Some(ids.new.clone()), ..CreateOptions::default() }
}

pub fn chosen_copy(ids: &Ids) -> CopyOptions {
    CopyOptions { image_id: Some(ids.new.clone()), ..CopyOptions::default() }
}

pub fn none(_: &Ids, _: &Scene) -> Made {
    None
}

pub fn keeps(_: &Ids) -> Vec<(usize, String)> {
    Vec::new()
}

pub const OPERATIONS: &[Operation] = &[
    Operation {
        name: "create",
        run: |store, ids| {
            store.create_virtual_disk("A", Some(SIZE as i64), None, r#"{"a":1}"#, &chosen(ids)).map(drop)
        },
        made: |ids, _| Some((0, ids.new.clone(), vec![0; SIZE as usize])),
        removes: keeps,
    },
    Operation {
        name: "create on a snapshot",
        run: |store, ids| {
            store.create_virtual_disk("A", None, Some(&ids.snapshot), "{}", &chosen(ids)).map(drop)
        },
        made: |ids, scene| Some((0, ids.new.clone(), content(scene, 0, &ids.snapshot))),
        removes: keeps,
    },
    Operation {
        name: "create on a snapshot of another repository",
        run: |store, ids| {
            store.create_virtual_disk("B", None, Some(&ids.snapshot), "{}", &chosen(ids))?;
            store.run_tasks();
            Ok(())
        },
        made: |ids, scene| Some((1, ids.new.clone(), content(scene, 0, &ids.snapshot))),
        removes: keeps,
    },
    Operation {
        name: "snapshot",
        run: |store, ids| store.create_snapshot("A", &ids.disk, "{}", &chosen(ids)).map(drop),
        made: |ids, scene| Some((0, ids.new.clone(), content(scene, 0, &ids.disk))),
        removes: keeps,
    },
    Operation {
        name: "snapshot announced, then the disk opened",
        run: |store, ids| {
            let options = CreateOptions { auto_fix: AutoFix::Off, ..chosen(ids) };
            store.create_snapshot("A", &ids.child, "{}", &options)?;
            store.open_image("A", &ids.child, true)?.close()
        },
        made: |ids, scene| Some((0, ids.new.clone(), content(scene, 0, &ids.child))),
        removes: keeps,
    },
    Operation {
        name: "copy of a disk",
        run: |store, ids| {
            store.copy_image("B", &ids.child, None, "{}", &chosen_copy(ids))?;
            store.run_tasks();
            Ok(())
        },
        made: |ids, scene| Some((1, ids.new.clone(), content(scene, 0, &ids.child))),
        removes: keeps,
    },
    Operation {
        name: "copy of a disk with a disk as base",
        run: |store, ids| {
            store.copy_image("B", &ids.disk, Some(&ids.copy), "{}", &chosen_copy(ids))?;
            store.run_tasks();
            Ok(())
        },
        made: |ids, scene| Some((1, ids.new.clone(), content(scene, 0, &ids.disk))),
        removes: keeps,
    },
    Operation {
        name: "verified copy of a disk",
        run: |store, ids| {
            let verified = CopyOptions { verify: true, ..chosen_copy(ids) };
            store.copy_image("B", &ids.disk, None, "{}", &verified)?;
            store.run_tasks();
            Ok(())
        },
        made: |ids, scene| Some((1, ids.new.clone(), content(scene, 0, &ids.disk))),
        removes: keeps,
    },
    Operation {
        name: "difference to a verified copy",
        run: |store, ids| {
            let verified = CopyOptions { verify: true, ..CopyOptions::default() };
            store.copy_image("B", &ids.snapshot, None, "{}", &verified)?;
            store.run_tasks();
            store.copy_image("B", &ids.child, Some(&ids.snapshot), "{}", &chosen_copy(ids))?;
            store.run_tasks();
            Ok(())
        },
        made: |ids, scene| Some((1, ids.new.clone(), content(scene, 0, &ids.child))),
        removes: keeps,
    },
    Operation {
        name: "copy of a snapshot",
        run: |store, ids| {
            store.copy_image("B", &ids.snapshot, None, "{}", &CopyOptions::default())?;
            store.run_tasks();
            Ok(())
        },
        made: |ids, scene| Some((1, ids.snapshot.clone(), content(scene, 0, &ids.snapshot))),
        removes: keeps,
    },
    Operation {
        name: "remove a snapshot that a disk is built on",
        run: |store, ids| {
            store.remove_image("A", &ids.snapshot, &RemoveOptions::default())?;
            store.run_tasks();
            Ok(())
        },
        made: none,
        removes: |ids| vec![(0, ids.snapshot.clone())],
    },
    Operation {
        name: "remove a disk",
        run: |store, ids| {
            store.remove_image("A", &ids.child, &RemoveOptions::default())?;
            store.run_tasks();
            Ok(())
        },
        made: none,
        removes: |ids| vec![(0, ids.child.clone())],
    },
    Operation {
        name: "remove a snapshot and merge",
        run: |store, ids| {
            store.remove_image("A", &ids.snapshot, &RemoveOptions::default())?;
            repair(store, "A")
        },
        made: none,
        removes: |ids| vec![(0, ids.snapshot.clone())],
    },
    Operation {
        name: "remove the disk on a snapshot, then the snapshot, and merge",
        run: |store, ids| {
            store.remove_image("A", &ids.child, &RemoveOptions::default())?;
            store.run_tasks();
            store.remove_image("A", &ids.snapshot, &RemoveOptions::default())?;
            store.run_tasks();
            repair(store, "A")
        },
        made: none,
        removes: |ids| vec![(0, ids.child.clone()), (0, ids.snapshot.clone())],
    },
    Operation {
        name: "give a disk a volume of its own",
        run: |store, ids| {
            store.set_image_strategy("A", &ids.child, Strategy::Performance)?;
            repair(store, "A")
        },
        made: none,
        removes: keeps,
    },
    Operation {
        name: "give a snapshot a volume of its own",
        run: |store, ids| {
            store.set_image_strategy("A", &ids.snapshot, Strategy::Performance)?;
            repair(store, "A")
        },
        made: none,
        removes: keeps,
    },
    Operation {
        name: "resize",
        run: |store, ids| {
            store.resize_virtual_disk("A", &ids.child, 2 * SIZE as i64, &ResizeOptions::default())
        },
        made: none,
        removes: keeps,
    },
    Operation {
        name: "set user data",
        run: |store, ids| store.set_image_user_data("A", &ids.disk, r#"{"new":true}"#),
        made: none,
        removes: keeps,
    },
];
