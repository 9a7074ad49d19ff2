//! What another store finds when the fault has gone.

use std::fs;
use std::path::Path;

use vdsmstore_core::options::{
    CheckOptions, ExportOptions, FixOptions, ForceOptions, FormatOptions, ListOptions,
};
use vdsmstore_core::{Error, ErrorKind, Status, Store};
use vdsmstore_faults::Errno;
use vdsmstore_tests::{at, run};

use crate::left::nothing_left_over;
use crate::operation::Operation;
use crate::scene::{NAMES, SIZE, Scene, connect, idle, read};
use crate::writing::Writes;

/// Rounds of a check and all its fixes that must suffice.
const ROUNDS: u32 = 10;

/// What was seen of a case.
pub struct Seen<'a> {
    pub operation: &'a Operation,
    pub scene: &'a Scene,
    /// The scene as the faults left it.
    pub root: &'a Path,
    pub returned: bool,
    pub writes: Writes,
    pub succeeded: bool,
    /// Its task failed, and could say so.
    pub told: bool,
    pub what: &'a str,
}

/// The error tells what the storage said.
pub fn explains(error: &Error, errno: Errno, what: &str) {
    let wanted = match errno {
        Errno::NOSPC | Errno::DQUOT => ErrorKind::NoSpace,
        // Holes are zeroes then, but space cannot be reserved.
        Errno::OPNOTSUPP if error.message().contains("cannot allocate") => ErrorKind::UnsupportedOperation,
        _ => ErrorKind::IoError,
    };
    assert_eq!(error.kind(), wanted, "{what}: {error:?}");
    assert!(error.details().contains_key("path"), "{what}: no path in the details of {error:?}");
}

impl Seen<'_> {
    pub fn judge(&self) {
        let what = self.what;
        let store = idle("next");
        connect(&store, self.root).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let removes = (self.operation.removes)(self.scene);
        let made = (self.operation.made)(self.scene);
        self.release(&store);
        for image in self.scene.model.keys() {
            let gone = removes.contains(image);
            match store.get_image_status(NAMES[image.0], &image.1) {
                Err(error) if gone && error.kind() == ErrorKind::ImageNotFound => {}
                Ok(_) if gone && self.returned => panic!("{what}: {image:?} is still there"),
                status => {
                    let status = status.unwrap_or_else(|error| panic!("{what}: {image:?}: {error:?}"));
                    assert_ne!(status.status, Status::Broken, "{what}: {image:?} was whole: {status:?}");
                    self.holds(&store, image, "before the fixes");
                }
            }
        }
        if let Some((repo, id, _)) = made.as_ref().filter(|_| self.told) {
            let status = store.get_image_status(NAMES[*repo], id).unwrap();
            let silent = status.status == Status::Broken && status.last_error.is_none();
            assert!(!silent, "{what}: what failed is not told: {status:?}");
        }
        for (repo, name) in NAMES.iter().enumerate() {
            for id in store.list_images(name, &ListOptions::default()).unwrap() {
                let image = (repo, id.to_string());
                let known = self.scene.model.contains_key(&image)
                    || made.as_ref().is_some_and(|(repo, id, _)| (*repo, id) == (image.0, &image.1))
                    // A base comes along.
                    || image == (1, self.scene.snapshot.clone());
                assert!(known, "{what}: {image:?} is nobody's");
            }
        }
        self.recover(&store);
        for image in self.scene.model.keys().filter(|image| !removes.contains(image)) {
            self.holds(&store, image, "after the fixes");
        }
        if let Some((repo, id, data)) = &made {
            match store.get_image_status(NAMES[*repo], id) {
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::ImageNotFound, "{what}: {error:?}");
                    assert!(!self.returned, "{what}: an id that was returned is lost");
                }
                Ok(status) => {
                    assert_ne!(status.status, Status::Broken, "{what}: after all fixes: {status:?}");
                    assert!(read(&store, *repo, id).unwrap() == *data, "{what}: what was made is wrong");
                }
            }
        }
        self.writable(&store);
        match self.operation.name {
            "format" => self.format(&store),
            "export as raw" => self.export(&store, "raw"),
            "export as qcow2" => self.export(&store, "qcow2"),
            "user data" => self.user_data(&store),
            _ => {}
        }
        self.sound();
        store.close().unwrap();
        for name in NAMES {
            nothing_left_over(&self.root.join(name), 0, &format!("{what}: {name}"));
        }
    }

    fn holds(&self, store: &Store, image: &(usize, String), when: &str) {
        let what = self.what;
        let found =
            read(store, image.0, &image.1).unwrap_or_else(|error| panic!("{what}, {when}: {error:?}"));
        let before = &self.scene.model[image];
        // What a resize added.
        assert!(
            found[SIZE as usize..].iter().all(|byte| *byte == 0),
            "{what}, {when}: no zeroes in {image:?}"
        );
        if let Err(at) = self.writes.allow(image, before, &found) {
            panic!("{what}, {when}: {image:?} is wrong from byte {at} on: {:#x}", found[at]);
        }
    }

    /// What was prepared stays so until somebody says that its host is dead.
    fn release(&self, store: &Store) {
        for (repo, id) in self.scene.model.keys() {
            match store.teardown_image(NAMES[*repo], id, &ForceOptions { force: true }) {
                Err(error) if error.kind() == ErrorKind::ImageNotFound => {}
                done => done.unwrap(),
            }
        }
    }

    fn recover(&self, store: &Store) {
        let what = self.what;
        for round in 0..=ROUNDS {
            let listed = |repo| store.check_storage_repository(repo, &CheckOptions::default()).unwrap();
            let fixes: Vec<_> =
                NAMES.iter().flat_map(|repo| listed(repo).into_iter().map(move |fix| (*repo, fix))).collect();
            if fixes.is_empty() {
                return;
            }
            assert!(round < ROUNDS, "{what}: after {ROUNDS} rounds there is still {fixes:#?}");
            for (repo, fix) in fixes {
                let outcome =
                    store.fix_storage_repository(repo, &fix, &FixOptions::default()).and_then(|task| {
                        store.run_tasks();
                        store.wait_task(&task, None)
                    });
                match outcome {
                    // What was done before it changed what it is about.
                    Err(error) if error.kind() == ErrorKind::FixRefused => {}
                    outcome => outcome.unwrap_or_else(|error| panic!("{what}: {fix:?}: {error:?}")),
                }
            }
        }
    }

    /// Every disk can be written again, by whoever comes.
    fn writable(&self, store: &Store) {
        let disks =
            [(0, &self.scene.disk), (0, &self.scene.child), (0, &self.scene.flat), (1, &self.scene.copy)];
        for (repo, id) in disks {
            match store.open_image(NAMES[repo], id, true) {
                Err(error) if error.kind() == ErrorKind::ImageNotFound => {}
                image => {
                    let image = image.unwrap_or_else(|error| panic!("{}: {error:?}", self.what));
                    image.flush().and_then(|()| image.close()).unwrap();
                }
            }
        }
    }

    /// A repository, or a place for one.
    fn format(&self, store: &Store) {
        let place = at(&self.root.join("C"));
        match store.format_storage_repository("localfs-1.0", &place, &FormatOptions::default()) {
            Err(error) if error.kind() == ErrorKind::RepositoryExists => {}
            done => {
                done.unwrap_or_else(|error| panic!("{}: {error:?}", self.what));
                assert!(!self.succeeded, "{}: it was formatted once more", self.what);
            }
        }
        store.connect_storage_repository("C", "localfs-1.0", &place).unwrap();
        let fixes = store.check_storage_repository("C", &CheckOptions::default()).unwrap();
        for fix in fixes {
            let task = store.fix_storage_repository("C", &fix, &FixOptions::default()).unwrap();
            store.run_tasks();
            store.wait_task(&task, None).unwrap();
        }
        assert_eq!(store.check_storage_repository("C", &CheckOptions::default()).unwrap(), []);
    }

    /// A file that has its name is whole; the export can be made again.
    fn export(&self, store: &Store, format: &str) {
        let path = self.root.join(format!("outside/exported.{format}"));
        let text = path.to_str().unwrap();
        let whole = || {
            let model = self.root.join("outside/model");
            fs::write(&model, self.scene.content(0, &self.scene.child)).unwrap();
            run("qemu-img", &["compare", "-f", format, "-F", "raw", text, model.to_str().unwrap()]);
        };
        let there = path.exists();
        assert!(there || !self.succeeded, "{}: no file", self.what);
        if there {
            whole();
        }
        let options = ExportOptions { overwrite: there, ..ExportOptions::default() };
        let task = store.export_image("A", &self.scene.child, text, format, &options).unwrap();
        store.run_tasks();
        store.wait_task(&task, None).unwrap_or_else(|error| panic!("{}: {error:?}", self.what));
        assert!(!fs::exists(format!("{text}.part")).unwrap(), "{}: .part is left", self.what);
        whole();
    }

    fn user_data(&self, store: &Store) {
        let found = store.get_image_info("A", &self.scene.disk).unwrap().user_data.get().to_owned();
        let right = match found.len() {
            // The second of two.
            3 => found == "[1]",
            50_002 => !self.succeeded,
            _ => found == "{}" && !self.returned,
        };
        assert!(right, "{}: user data of {} bytes", self.what, found.len());
    }

    /// QEMU finds nothing worse than leaked clusters.
    fn sound(&self) {
        const LEAKED: i32 = 3;
        if std::env::var_os("VDSMSTORE_LONG").is_none() {
            return;
        }
        for name in NAMES {
            for entry in fs::read_dir(self.root.join(name).join("data")).unwrap() {
                let path = entry.unwrap().path();
                if fs::read(&path).unwrap().starts_with(b"QFI\xfb") {
                    let output = std::process::Command::new("qemu-img")
                        .args(["check", "-f", "qcow2", path.to_str().unwrap()])
                        .output()
                        .unwrap();
                    let code = output.status.code();
                    assert!(code == Some(0) || code == Some(LEAKED), "{}: {output:?}", self.what);
                }
            }
        }
    }
}
