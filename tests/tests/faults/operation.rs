//! The operations that meet faults, and what must come of each.

use std::path::Path;
use std::time::Duration;

use vdsmstore_core::options::{
    AutoFix, CheckOptions, CopyOptions, CreateOptions, ExportOptions, FixOptions, ForceOptions,
    FormatOptions, ListOptions, MeasureOptions, PrepareOptions, RemoveOptions, ResizeOptions, Strategy,
};
use vdsmstore_core::{ErrorKind, FixType, Result, Store};
use vdsmstore_tests::at;

use crate::scene::{NAMES, NEW, SIZE, Scene, TASK, connect, pattern, read};
use crate::writing::{self, Writes};

/// What an operation makes: a repository, an id, the content.
pub type Made = Option<(usize, String, Vec<u8>)>;

pub struct Operation {
    pub name: &'static str,
    /// What is there beforehand.
    pub prepare: fn(&Store, &mut Scene),
    pub run: fn(&mut Run<'_>) -> Result<()>,
    pub made: fn(&Scene) -> Made,
    /// The images that it removes.
    pub removes: fn(&Scene) -> Vec<(usize, String)>,
    /// The store is connected before the fault.
    pub connected: bool,
}

/// A store at work on a scene.
pub struct Run<'a> {
    pub store: &'a Store,
    pub scene: &'a Scene,
    /// Where the scene is seen with faults.
    pub root: &'a Path,
    /// The call came back: what it made must be there.
    pub returned: bool,
    /// Its task, if it has one, began.
    pub began: bool,
    /// Of the operations that write.
    pub writes: Writes,
}

impl Run<'_> {
    /// The call came back; its task, if it started one, runs.
    fn task(&mut self) -> Result<()> {
        self.returned = true;
        self.began = true;
        self.store.run_tasks();
        match self.store.wait_task(TASK, Some(Duration::ZERO)) {
            Err(error) if error.kind() == ErrorKind::TaskNotFound => Ok(()),
            outcome => outcome,
        }
    }

    fn outside(&self, name: &str) -> String {
        self.root.join("outside").join(name).to_str().unwrap().to_owned()
    }

    fn import(&mut self, format: &str) -> Result<()> {
        self.store.import_image("A", &self.outside(format), format, "{}", &chosen())?;
        self.task()
    }

    fn export(&mut self, format: &str) -> Result<()> {
        let options = ExportOptions { task_id: Some(TASK.to_owned()), ..ExportOptions::default() };
        let path = self.outside(&format!("exported.{format}"));
        self.store.export_image("A", &self.scene.child, &path, format, &options)?;
        self.task()
    }

    fn fix(&mut self) -> Result<()> {
        let (repo, fix) = self.scene.fix.as_ref().unwrap();
        let options = FixOptions { task_id: Some(TASK.to_owned()), ..FixOptions::default() };
        self.store.fix_storage_repository(NAMES[*repo], fix, &options)?;
        let outcome = self.task();
        // A fix looks before it begins; what it cannot look at is its failure, not the image's.
        self.began = false;
        outcome
    }
}

fn chosen() -> CreateOptions {
    CreateOptions {
        image_id: Some(NEW.to_owned()),
        task_id: Some(TASK.to_owned()),
        ..CreateOptions::default()
    }
}

fn chosen_copy() -> CopyOptions {
    CopyOptions { image_id: Some(NEW.to_owned()), task_id: Some(TASK.to_owned()), ..CopyOptions::default() }
}

fn remove(run: &mut Run<'_>, id: &str) -> Result<()> {
    run.store.remove_image(
        "A",
        id,
        &RemoveOptions { task_id: Some(TASK.to_owned()), ..RemoveOptions::default() },
    )?;
    run.task()
}

fn later() -> RemoveOptions {
    RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() }
}

/// A removed snapshot under a disk: much below and little above is merged down, the contrary up.
fn merge(store: &Store, scene: &mut Scene, below: &[u8], above: &[u8]) {
    let mut data = vec![0; SIZE as usize];
    data[..below.len()].copy_from_slice(below);
    let disk = scene.disk(store, 1, data, &CreateOptions::default());
    let snapshot = scene.snap(store, 1, &disk);
    let image = store.open_image("B", &disk, true).unwrap();
    image.write(0, above).unwrap();
    image.close().unwrap();
    let content = scene.model.get_mut(&(1, disk)).unwrap();
    content[..above.len()].copy_from_slice(above);
    store.remove_image("B", &snapshot, &later()).unwrap();
    scene.model.remove(&(1, snapshot));
    scene.find_fix(store, 1, FixType::Merge);
}

const PLAIN: Operation = Operation {
    name: "",
    prepare: |_, _| {},
    run: |_| Ok(()),
    made: |_| None,
    removes: |_| Vec::new(),
    connected: true,
};

pub const OPERATIONS: &[Operation] = &[
    Operation {
        name: "format",
        run: |run| {
            let place = at(&run.root.join("C"));
            run.store.format_storage_repository("localfs-1.0", &place, &FormatOptions::default())?;
            run.returned = true;
            Ok(())
        },
        connected: false,
        ..PLAIN
    },
    Operation { name: "connect", run: |run| connect(run.store, run.root), connected: false, ..PLAIN },
    Operation {
        name: "create, thin",
        run: |run| {
            run.store.create_virtual_disk("A", Some(SIZE as i64), None, r#"{"a":1}"#, &chosen())?;
            run.task()
        },
        made: |_| Some((0, NEW.to_owned(), vec![0; SIZE as usize])),
        ..PLAIN
    },
    Operation {
        name: "create, preallocated",
        run: |run| {
            let options = CreateOptions { strategy: Strategy::Performance, ..chosen() };
            run.store.create_virtual_disk("A", Some(SIZE as i64), None, "{}", &options)?;
            run.task()
        },
        made: |_| Some((0, NEW.to_owned(), vec![0; SIZE as usize])),
        ..PLAIN
    },
    Operation {
        name: "create on a snapshot",
        run: |run| {
            run.store.create_virtual_disk("A", None, Some(&run.scene.snapshot), "{}", &chosen())?;
            run.task()
        },
        made: |scene| Some((0, NEW.to_owned(), scene.content(0, &scene.snapshot))),
        ..PLAIN
    },
    Operation {
        name: "create on a snapshot elsewhere",
        run: |run| {
            run.store.create_virtual_disk("B", None, Some(&run.scene.snapshot), "{}", &chosen())?;
            run.task()
        },
        made: |scene| Some((1, NEW.to_owned(), scene.content(0, &scene.snapshot))),
        ..PLAIN
    },
    Operation {
        name: "snapshot by an overlay",
        run: |run| {
            run.store.create_snapshot("A", &run.scene.disk, "{}", &chosen())?;
            run.task()
        },
        made: |scene| Some((0, NEW.to_owned(), scene.content(0, &scene.disk))),
        ..PLAIN
    },
    Operation {
        name: "snapshot announced, then written",
        run: |run| {
            let options = CreateOptions { auto_fix: AutoFix::Off, ..chosen() };
            run.store.create_snapshot("A", &run.scene.disk, "{}", &options)?;
            run.returned = true;
            writing::run(run, &run.scene.disk)
        },
        made: |scene| Some((0, NEW.to_owned(), scene.content(0, &scene.disk))),
        ..PLAIN
    },
    Operation {
        name: "copy",
        run: |run| {
            run.store.copy_image("B", &run.scene.child, None, "{}", &chosen_copy())?;
            run.task()
        },
        made: |scene| Some((1, NEW.to_owned(), scene.content(0, &scene.child))),
        ..PLAIN
    },
    Operation {
        name: "copy with a base",
        run: |run| {
            run.store.copy_image("B", &run.scene.disk, Some(&run.scene.copy), "{}", &chosen_copy())?;
            run.task()
        },
        made: |scene| Some((1, NEW.to_owned(), scene.content(0, &scene.disk))),
        ..PLAIN
    },
    Operation {
        name: "copy of a snapshot",
        run: |run| {
            let options = CopyOptions { image_id: None, ..chosen_copy() };
            run.store.copy_image("B", &run.scene.snapshot, None, r#"{"b":2}"#, &options)?;
            run.task()
        },
        made: |scene| Some((1, scene.snapshot.clone(), scene.content(0, &scene.snapshot))),
        ..PLAIN
    },
    Operation {
        name: "import of raw",
        run: |run| run.import("raw"),
        made: |_| Some((0, NEW.to_owned(), pattern(6))),
        ..PLAIN
    },
    Operation {
        name: "import of qcow2",
        run: |run| run.import("qcow2"),
        made: |_| Some((0, NEW.to_owned(), pattern(6))),
        ..PLAIN
    },
    Operation { name: "export as raw", run: |run| run.export("raw"), ..PLAIN },
    Operation { name: "export as qcow2", run: |run| run.export("qcow2"), ..PLAIN },
    Operation {
        name: "merge up",
        prepare: |store, scene| merge(store, scene, &[7; 65536], &[8; 8 * 65536]),
        run: |run| run.fix(),
        ..PLAIN
    },
    Operation {
        name: "merge down",
        prepare: |store, scene| merge(store, scene, &[7; 8 * 65536], &[8; 70_000]),
        run: |run| run.fix(),
        ..PLAIN
    },
    Operation {
        name: "flatten a disk",
        prepare: |store, scene| {
            store.set_image_strategy("A", &scene.child, Strategy::Performance).unwrap();
            scene.find_fix(store, 0, FixType::Optimize);
        },
        run: |run| run.fix(),
        ..PLAIN
    },
    Operation {
        name: "flatten a snapshot",
        prepare: |store, scene| {
            scene.snap(store, 0, &scene.child.clone());
            let child = scene.snap(store, 0, &scene.child.clone());
            store.set_image_strategy("A", &child, Strategy::Performance).unwrap();
            scene.find_fix(store, 0, FixType::Optimize);
        },
        run: |run| run.fix(),
        ..PLAIN
    },
    Operation {
        name: "mend a copy",
        prepare: |store, scene| {
            let options = CopyOptions { auto_fix: AutoFix::Off, ..chosen_copy() };
            store.copy_image("B", &scene.disk, None, "{}", &options).unwrap();
            scene.find_fix(store, 1, FixType::Mend);
        },
        run: |run| {
            run.returned = true;
            run.fix()
        },
        made: |scene| Some((1, NEW.to_owned(), scene.content(0, &scene.disk))),
        ..PLAIN
    },
    Operation {
        name: "remove a disk",
        run: |run| remove(run, &run.scene.disk),
        removes: |scene| vec![(0, scene.disk.clone())],
        ..PLAIN
    },
    Operation {
        name: "remove a snapshot under disks",
        run: |run| remove(run, &run.scene.snapshot),
        removes: |scene| vec![(0, scene.snapshot.clone())],
        ..PLAIN
    },
    Operation {
        name: "clean a removed disk",
        prepare: |store, scene| {
            store.set_image_user_data("A", &scene.flat, &format!("{:?}", "x".repeat(50_000))).unwrap();
            store.remove_image("A", &scene.flat, &later()).unwrap();
            scene.model.remove(&(0, scene.flat.clone()));
            scene.find_fix(store, 0, FixType::Clean);
        },
        run: |run| run.fix(),
        ..PLAIN
    },
    Operation {
        name: "resize an overlay",
        run: |run| {
            run.store.resize_virtual_disk("A", &run.scene.disk, 2 * SIZE as i64, &ResizeOptions::default())
        },
        ..PLAIN
    },
    Operation {
        name: "resize a preallocated disk",
        run: |run| {
            run.store.resize_virtual_disk("A", &run.scene.flat, 2 * SIZE as i64, &ResizeOptions::default())
        },
        ..PLAIN
    },
    Operation {
        name: "user data",
        run: |run| {
            run.store.set_image_user_data("A", &run.scene.disk, &format!("{:?}", "y".repeat(50_000)))?;
            run.returned = true;
            run.store.set_image_user_data("A", &run.scene.disk, "[1]")
        },
        ..PLAIN
    },
    Operation {
        name: "prepare and tear down",
        run: |run| {
            let (disk, snapshot) = (&run.scene.disk, &run.scene.snapshot);
            run.store.prepare_image("A", disk, &PrepareOptions { read_only: false })?;
            run.store.prepare_image("A", snapshot, &PrepareOptions { read_only: true })?;
            run.store.teardown_image("A", disk, &ForceOptions::default())?;
            run.store.teardown_image("A", snapshot, &ForceOptions::default())
        },
        ..PLAIN
    },
    Operation { name: "write an overlay", run: |run| writing::run(run, &run.scene.disk), ..PLAIN },
    Operation { name: "write a preallocated disk", run: |run| writing::run(run, &run.scene.flat), ..PLAIN },
    Operation {
        name: "write a thin disk",
        run: |run| {
            let (store, copy) = (run.store, run.scene.copy.clone());
            writing::run_in(run, store, 1, &copy)
        },
        ..PLAIN
    },
    Operation {
        name: "read and look",
        run: |run| {
            let (store, scene) = (run.store, run.scene);
            assert!(read(store, 0, &scene.child)? == scene.content(0, &scene.child), "wrong bytes were read");
            let image = store.open_image("A", &scene.disk, false)?;
            while let Some(last) = image.extents(0, 100)?.last() {
                assert_eq!(last.offset + last.length, SIZE);
                break;
            }
            image.close()?;
            let differs = store.diff_images("A", &scene.disk, Some(&scene.child))?.next_batch(1000)?;
            assert!(!differs.is_empty());
            store.measure_image("A", &scene.disk, None, &MeasureOptions::default())?;
            store.get_storage_repository_info("A")?;
            for info in store.list_image_infos("A", &ListOptions::default())? {
                store.get_image_status("A", &info.image_id.to_string())?;
            }
            NAMES.iter().try_for_each(|repo| {
                let fixes = store.check_storage_repository(repo, &CheckOptions { exact_cost: true })?;
                assert_eq!(fixes, []);
                Ok(())
            })
        },
        ..PLAIN
    },
];
