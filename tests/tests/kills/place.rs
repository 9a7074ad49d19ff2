//! Two repositories on a file system, files that say what their images must hold, and the host that survives.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vdsmstore_core::options::{
    Bandwidth, CheckOptions, CopyOptions, CreateOptions, ExportOptions, FixOptions, RemoveOptions,
    ResizeOptions,
};
use vdsmstore_core::{ErrorKind, Fix, Status, Store};
use vdsmstore_tests::dying::Said;
use vdsmstore_tests::mounts::Mounted;
use vdsmstore_tests::tree::disk_usage;
use vdsmstore_tests::{new_repo, qemu_equal, run, scratch, settle, store, write};

use crate::left::nothing_left_over;
use crate::operation::{Case, clones};

pub const MIB: u64 = 1 << 20;
const NAMES: [&str; 2] = ["A", "B"];
const BLOCK: usize = 64 << 10;
/// Rounds of a check and all its fixes that must suffice.
const ROUNDS: u32 = 10;

enum Root {
    Directory(TempDir),
    Mounted(Mounted),
}

pub struct Place {
    kind: &'static str,
    root: Root,
    models: TempDir,
    pub store: Store,
    /// In A: a disk, a snapshot of it as it was before (in B too), a disk on the snapshot, a large one, a sparse one.
    pub disk: String,
    pub snapshot: String,
    pub other: String,
    pub large: String,
    pub sparse: String,
    /// A snapshot of the sparse one, as it is.
    pub kept: String,
    /// Bytes that the empty file system counts as used.
    empty: i64,
    turn: Cell<usize>,
}

/// What a check lists, to be compared: type, image, and the opaque part.
pub type Listed = BTreeSet<(String, String)>;

impl Place {
    /// In the directory for temporary files.
    pub fn in_a_directory() -> Place {
        Place::new("ext4", Root::Directory(tempfile::tempdir().unwrap()))
    }

    /// On a file system of its own.
    pub fn mounted(kind: &'static str) -> Place {
        Place::new(kind, Root::Mounted(Mounted::new(kind, 1024)))
    }

    fn new(kind: &'static str, root: Root) -> Place {
        let none = String::new;
        let mut place = Place {
            kind,
            root,
            models: scratch(),
            store: store("second"),
            disk: none(),
            snapshot: none(),
            other: none(),
            large: none(),
            sparse: none(),
            kept: none(),
            empty: 0,
            turn: Cell::new(0),
        };
        place.empty = place.used();
        for name in NAMES {
            new_repo(&place.store, place.root(), name);
        }
        place.disk = place.new_disk("disk", 16 * MIB, |n| n % 5 != 0);
        let plain = CreateOptions::default();
        place.snapshot = place.store.create_snapshot("A", &place.disk, "{}", &plain).unwrap().to_string();
        fs::copy(place.model("disk"), place.model("snapshot")).unwrap();
        place.fill("disk", &place.disk, 64..96, 2);
        let base = Some(place.snapshot.as_str());
        place.other = place.store.create_virtual_disk("A", None, base, "{}", &plain).unwrap().to_string();
        fs::copy(place.model("snapshot"), place.model("other")).unwrap();
        place.fill("other", &place.other, 100..200, 3);
        place.large = place.new_disk("large", 32 * MIB, |n| n % 3 != 0);
        // What it has is the same on the others, but for what was written there since.
        place.sparse = place.new_disk("sparse", 16 * MIB, |n| n % 40 == 1);
        place.kept = place.store.create_snapshot("A", &place.sparse, "{}", &plain).unwrap().to_string();
        place.copied("B", &place.snapshot.clone(), None, &CopyOptions::default());
        let path = |name| place.model(name).to_str().unwrap().to_owned();
        run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &path("other"), &path("other.qcow2")]);
        place
    }

    pub fn kind(&self) -> &'static str {
        self.kind
    }

    pub fn root(&self) -> &Path {
        match &self.root {
            Root::Directory(directory) => directory.path(),
            Root::Mounted(mounted) => mounted.path(),
        }
    }

    /// The file that says what an image must hold.
    pub fn model(&self, name: &str) -> PathBuf {
        self.models.path().join(name)
    }

    fn new_disk(&self, name: &str, size: u64, has_data: impl Fn(usize) -> bool) -> String {
        let plain = CreateOptions::default();
        let id =
            self.store.create_virtual_disk("A", Some(size as i64), None, "{}", &plain).unwrap().to_string();
        fs::File::create(self.model(name)).unwrap().set_len(size).unwrap();
        for block in (0..size as usize / BLOCK).filter(|n| has_data(*n)) {
            self.fill(name, &id, block..block + 1, 1);
        }
        id
    }

    /// Writes blocks to the image and to its model.
    fn fill(&self, name: &str, id: &str, blocks: std::ops::Range<usize>, seed: u64) {
        let words = (blocks.start * BLOCK / 8..blocks.end * BLOCK / 8)
            .map(|n| ((n as u64 + seed * 7) * 0x9e37_79b9) | 1);
        let data: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        let offset = (blocks.start * BLOCK) as u64;
        let file = fs::OpenOptions::new().write(true).open(self.model(name)).unwrap();
        file.write_all_at(&data, offset).unwrap();
        write(&self.store, "A", id, |image| image.write(offset as i64, &data));
    }

    /// Bytes of a model in blocks that are not zero.
    pub fn data(&self, name: &str) -> i64 {
        let data = fs::read(self.model(name)).unwrap();
        (data.chunks(BLOCK).filter(|block| block.iter().any(|byte| *byte != 0)).count() * BLOCK) as i64
    }

    /// Bytes in blocks in which two models of one size differ.
    pub fn difference(&self, one: &str, other: &str) -> i64 {
        let (one, other) = (fs::read(self.model(one)).unwrap(), fs::read(self.model(other)).unwrap());
        let differ = one.chunks(BLOCK).zip(other.chunks(BLOCK)).filter(|(one, other)| one != other);
        (differ.count() * BLOCK) as i64
    }

    pub fn size(&self, name: &str) -> i64 {
        fs::metadata(self.model(name)).unwrap().len() as i64
    }

    pub fn allocated(&self, repo: &str, id: &str) -> i64 {
        self.store.get_image_info(repo, id).unwrap().allocated as i64
    }

    pub fn settled(&self, repo: &str, id: &str) {
        settle(&self.store, repo, id);
    }

    pub fn copied(&self, repo: &str, id: &str, base: Option<&str>, options: &CopyOptions) -> String {
        let copy = self.store.copy_image(repo, id, base, "{}", options).unwrap().to_string();
        self.settled(repo, &copy);
        copy
    }

    pub fn fixes(&self, repo: &str) -> Vec<Fix> {
        self.store.check_storage_repository(repo, &CheckOptions::default()).unwrap()
    }

    /// What is unfinished. That a dead store's registration is to be swept says nothing of its work.
    pub fn listed(&self) -> Listed {
        let fixes = NAMES.iter().flat_map(|repo| self.fixes(repo));
        let told = fixes.filter(|fix| fix.data["action"] != "sweep");
        told.map(|fix| (format!("{:?} {:?}", fix.fix_type, fix.image_id), fix.data.to_string())).collect()
    }

    /// Bytes that all of it takes: on a file system of its own by its own count, so that clones count once.
    pub fn used(&self) -> i64 {
        match &self.root {
            Root::Directory(directory) => disk_usage(directory.path()) as i64,
            Root::Mounted(mounted) => {
                let path = mounted.path().to_str().unwrap();
                run("sync", &["-f", path]);
                let output = run("df", &["--block-size=1", "--output=used", path]);
                let text = String::from_utf8(output.stdout).unwrap();
                text.lines().last().unwrap().trim().parse::<i64>().unwrap() - self.empty
            }
        }
    }

    /// Checks and runs all fixes until nothing is listed; how many rounds that took.
    pub fn recover(&self, what: &str) -> u32 {
        for round in 0..=ROUNDS {
            let listed = |repo| self.fixes(repo).into_iter().map(move |fix| (repo, fix));
            let fixes: Vec<_> = NAMES.into_iter().flat_map(listed).collect();
            if fixes.is_empty() {
                return round;
            }
            assert!(round < ROUNDS, "{what}: after {ROUNDS} rounds there is still {fixes:#?}");
            for (repo, fix) in fixes {
                let options = FixOptions { bandwidth: Some(Bandwidth(1 << 40)), ..FixOptions::default() };
                let outcome = self
                    .store
                    .fix_storage_repository(repo, &fix, &options)
                    .and_then(|task| self.store.wait_task(&task, None));
                match outcome {
                    // What was done before it changed what it is about.
                    Err(error) if error.kind() == ErrorKind::FixRefused => {}
                    outcome => outcome.unwrap_or_else(|error| panic!("{what}: {fix:?}: {error:?}")),
                }
            }
        }
        ROUNDS
    }

    /// All images are what they must be; by how many bytes the operation has grown what is stored.
    pub fn judge(&self, case: &Case, said: &Said, what: &str) -> i64 {
        let around = [
            ("A", &self.disk, "disk"),
            ("A", &self.snapshot, "snapshot"),
            ("A", &self.other, "other"),
            ("A", &self.large, "large"),
            ("A", &self.sparse, "sparse"),
            ("A", &self.kept, "sparse"),
            ("B", &self.snapshot, "snapshot"),
        ];
        // Those that had a part in it, and the rest in turn.
        self.turn.set(self.turn.get() + 1);
        for (index, (repo, id, model)) in around.into_iter().enumerate() {
            let took_part = [&case.job["image"], &case.job["base"]].iter().any(|name| *name == id);
            if took_part || self.turn.get() % around.len() == index {
                self.holds(repo, id, model, what);
            }
        }
        if case.job["call"] == "export" {
            self.export_again(case);
        }
        if let Some(size) = case.job["size"].as_i64() {
            // Whoever asked for it asks again: it is not for a check to know.
            let options = ResizeOptions::default();
            self.store.resize_virtual_disk(case.repo, &case.image, size, &options).unwrap();
        }
        let status = self.store.get_image_status(case.repo, &case.image);
        let found = !matches!(&status, Err(error) if error.kind() == ErrorKind::ImageNotFound);
        match &case.model {
            Some(model) if found => {
                self.holds(case.repo, &case.image, model, what);
                if ["user data", "copy"].contains(&case.job["call"].as_str().unwrap())
                    && case.job["userData"].is_string()
                    && said.returned
                {
                    let now = self.store.get_image_info(case.repo, &case.image).unwrap();
                    assert_eq!(Some(now.user_data.get()), case.job["userData"].as_str(), "{what}");
                }
                case.grows
            }
            Some(_) => {
                assert!(!said.returned, "{what}: an id that was returned is lost");
                0
            }
            None if found => {
                assert!(!said.returned, "{what}: a removed image is still there");
                // It goes another time.
                self.store.remove_image(case.repo, &case.image, &RemoveOptions::default()).unwrap();
                self.quiet();
                self.recover(what);
                case.grows
            }
            None => case.grows,
        }
    }

    /// Whoever wanted the file makes it again, over what was left.
    fn export_again(&self, case: &Case) {
        let text = |key: &str| case.job[key].as_str().unwrap();
        let options = ExportOptions { overwrite: true, ..ExportOptions::default() };
        let (path, format) = (text("path"), text("format"));
        let task = self.store.export_image(case.repo, &case.image, path, format, &options).unwrap();
        self.store.wait_task(&task, None).unwrap();
        assert!(!fs::exists(format!("{path}.part")).unwrap(), "{path}.part is left");
        let model = self.model(case.model.as_deref().unwrap());
        run("qemu-img", &["compare", "-f", format, "-F", "raw", path, model.to_str().unwrap()]);
        fs::remove_file(path).unwrap();
    }

    fn holds(&self, repo: &str, id: &str, model: &str, what: &str) {
        let status = self.store.get_image_status(repo, id).unwrap();
        assert_ne!(status.status, Status::Broken, "{what}: image {id} ({model}) in {repo}: {status:?}");
        let image = self.store.open_image(repo, id, false).unwrap();
        let wanted = fs::read(self.model(model)).unwrap();
        assert_eq!(image.size().unwrap(), wanted.len() as u64, "{what}: image {id} ({model}) in {repo}");
        let mut found = vec![0xaa; wanted.len()];
        image.read(0, &mut found).unwrap();
        image.close().unwrap();
        let differs = found.iter().zip(&wanted).position(|(one, other)| one != other);
        assert!(found == wanted, "{what}: image {id} ({model}) in {repo} is wrong from byte {differs:?} on");
    }

    /// No object, record or marker too many, and about as many bytes as there must be.
    pub fn nothing_left(&self, used: i64, grown: i64, what: &str) {
        for name in NAMES {
            nothing_left_over(&self.root().join(name), 1, &format!("{what}: {name}"));
        }
        let now = self.used();
        let (low, high) = if clones(self.kind) {
            // What is shared counts once: it may take less, or give back less.
            (used + grown.min(0), used + grown.max(0))
        } else {
            (used + grown, used + grown)
        };
        let slack = self.slack(high);
        let range = low - slack..=high + slack;
        assert!(
            range.contains(&now),
            "{what}: {now} bytes are taken, there must be {range:?}: {:#?}",
            self.objects()
        );
    }

    /// Of each data object its length and what it takes.
    fn objects(&self) -> Vec<(String, u64, u64)> {
        let rooms = NAMES.map(|name| self.root().join(name).join("data"));
        let entries = rooms.iter().flat_map(|room| fs::read_dir(room).unwrap().flatten());
        entries
            .map(|entry| {
                let metadata = entry.metadata().unwrap();
                (entry.path().display().to_string(), metadata.len(), metadata.blocks() * 512)
            })
            .collect()
    }

    /// Tables, and what a file system keeps for itself.
    fn slack(&self, bytes: i64) -> i64 {
        bytes / 20 + if self.kind == "btrfs" { 4 * MIB } else { MIB } as i64
    }

    /// As many bytes are taken as before the case.
    pub fn nothing_gained(&self, used: i64, what: &str) {
        let now = self.used();
        let more = now - used;
        assert!(
            more <= self.slack(used),
            "{what}: with all of it removed {now} bytes are taken, before {used}"
        );
    }

    /// Removes what the case has made.
    pub fn clear(&self, case: &Case) {
        for (repo, id) in &case.clear {
            match self.store.remove_image(repo, id, &RemoveOptions::default()) {
                Err(error) if error.kind() == ErrorKind::ImageNotFound => {}
                removed => removed.unwrap(),
            }
            self.quiet();
        }
        self.quiet();
        self.recover("afterwards");
    }

    fn quiet(&self) {
        while let Some(task) = self.store.list_tasks().unwrap().first() {
            self.store.wait_task(&task.task_id, None).unwrap();
        }
    }

    /// QEMU reads the same.
    pub fn qemu_agrees(&self) {
        for (repo, id, model) in
            [("A", &self.disk, "disk"), ("A", &self.other, "other"), ("B", &self.snapshot, "snapshot")]
        {
            qemu_equal(&self.store, repo, id, &self.model(model));
        }
    }
}
