//! A life of images in two repositories, each acknowledged step of it marked.

use std::path::Path;
use std::time::Instant;

use vdsmstore_core::options::{
    AutoFix, CheckOptions, CopyOptions, CreateOptions, FixOptions, RemoveOptions, ResizeOptions, Strategy,
};
use vdsmstore_core::{ErrorKind, Image, Store};
use vdsmstore_tests::{PATIENCE, new_repo, settle, store};

use crate::Random;
use crate::journal::Journal;
use crate::judge;
use crate::state::{BLOCK, Expected, State, content};

/// Blocks of a new disk: 2 MiB.
const BLOCKS: usize = 512;
/// Flushes of one session of a guest.
const FLUSHES: u64 = 3;
/// Writes before each of them, in so many parts of the disk.
const PARTS: u64 = 4;
/// In blocks.
const LONGEST: u64 = 24;

struct Workload {
    store: Store,
    state: State,
    journal: Journal,
    random: Random,
    /// Of the last write.
    tag: u32,
}

/// Runs it; what is in the repositories in the end is judged.
pub fn run(root: &Path, journal: &Path, seed: u64, device: Option<&str>) {
    let start = Instant::now();
    let store = store("recorded");
    for repo in judge::REPOS {
        new_repo(&store, root, repo);
    }
    let state = judge::REPOS.iter().map(|repo| ((*repo).to_owned(), <_>::default())).collect();
    let journal = Journal::new(journal, device);
    let mut work = Workload { store, state, journal, random: Random::new(seed), tag: 0 };
    work.journal.mark("format", &work.state);
    work.live();
    work.live_again();
    judge::images(&work.store, [&work.state; 2], true);
    let marks = work.journal.marks;
    work.journal.finish();
    let images: usize = work.state.values().map(std::collections::BTreeMap::len).sum();
    work.store.close().unwrap();
    println!("{marks} marks, {images} images in the end, {:.1} s", start.elapsed().as_secs_f64());
}

impl Workload {
    /// Snapshots, and copies that build on each other.
    fn live(&mut self) {
        let disk = self.create("A", None, Strategy::Space);
        self.guest("A", &disk);
        let first = self.snapshot("A", &disk);
        self.guest("A", &disk);
        let copy = self.copy("B", "A", &disk, None, true);
        self.guest("A", &disk);
        let second = self.snapshot("A", &disk);
        self.guest("A", &disk);
        let nightly = self.copy("B", "A", &disk, Some(&copy), true);
        let other = self.create("A", Some(&first), Strategy::Space);
        self.guest("A", &other);
        self.user_data("A", &other, r#"{"name":"a small one"}"#);
        self.resize("A", &other);
        self.guest("A", &other);
        // Its disk's difference is merged down or up.
        self.remove("A", &second);
        self.fixes("A");
        self.copy("B", "A", &first, None, false);
        self.user_data("B", &nightly, &format!("[{:?}]", "x".repeat(40_000)));
        self.user_data("B", &nightly, &format!("[{:?}]", "y".repeat(50_000)));
        self.remove("B", &copy);
        self.fixes("B");
        self.guest("B", &nightly);
    }

    /// Disks get volumes of their own; of what was removed all goes.
    fn live_again(&mut self) {
        let disk = self.create("B", None, Strategy::Performance);
        self.guest("B", &disk);
        let snapshots: Vec<String> = (0..3)
            .map(|_| {
                let snapshot = self.snapshot("B", &disk);
                self.guest("B", &disk);
                snapshot
            })
            .collect();
        let child = self.create("B", Some(&snapshots[1]), Strategy::Space);
        self.guest("B", &child);
        self.remove("B", &snapshots[0]);
        self.fixes("B");
        self.store.set_image_strategy("B", &child, Strategy::Performance).unwrap();
        self.mark("strategy");
        self.fixes("B");
        self.guest("B", &child);
        self.remove("B", &disk);
        self.fixes("B");
        self.copy("A", "B", &child, None, true);
    }

    fn mark(&mut self, done: &str) {
        self.journal.mark(done, &self.state);
    }

    fn image(&mut self, repo: &str, id: &str) -> &mut Expected {
        self.state.get_mut(repo).unwrap().get_mut(id).unwrap()
    }

    /// The call that makes it has returned; then its work ends.
    fn made(&mut self, repo: &str, id: String, image: Expected, done: &str) -> String {
        self.state.get_mut(repo).unwrap().insert(id.clone(), image);
        self.mark(done);
        settle(&self.store, repo, &id);
        self.image(repo, &id).whole = true;
        self.mark(&format!("{done}, whole"));
        id
    }

    fn create(&mut self, repo: &str, base: Option<&str>, strategy: Strategy) -> String {
        let options = CreateOptions { strategy, auto_fix: AutoFix::Optimized, ..CreateOptions::default() };
        let size = base.is_none().then_some((BLOCKS * BLOCK) as i64);
        let user_data = r#"{"by":"create"}"#;
        let id = self.store.create_virtual_disk(repo, size, base, user_data, &options).unwrap().to_string();
        let blocks = base.map_or_else(|| vec![0; BLOCKS], |base| self.image(repo, base).blocks.clone());
        let image = Expected { mutable: true, user_data: user_data.into(), whole: false, blocks };
        self.made(repo, id, image, "create")
    }

    fn snapshot(&mut self, repo: &str, disk: &str) -> String {
        let user_data = r#"{"by":"snapshot"}"#;
        let id =
            self.store.create_snapshot(repo, disk, user_data, &CreateOptions::default()).unwrap().to_string();
        let disk = self.image(repo, disk).clone();
        // Its moment is fixed: it is there whenever its disk is.
        let image = Expected { mutable: false, user_data: user_data.into(), ..disk };
        self.made(repo, id, image, "snapshot")
    }

    fn copy(&mut self, to: &str, from: &str, id: &str, base: Option<&str>, mutable: bool) -> String {
        let user_data = r#"{"by":"copy"}"#;
        let copy =
            self.store.copy_image(to, id, base, user_data, &CopyOptions::default()).unwrap().to_string();
        let blocks = self.image(from, id).blocks.clone();
        let image = Expected { mutable, user_data: user_data.into(), whole: false, blocks };
        self.made(to, copy, image, "copy")
    }

    /// A guest writes and flushes, several times.
    fn guest(&mut self, repo: &str, disk: &str) {
        let image = self.store.open_image(repo, disk, true).unwrap();
        for round in 0..FLUSHES {
            let blocks = self.image(repo, disk).blocks.len() as u64;
            for part in 0..PARTS {
                // No block twice before a flush: a sector has its old or its one new content.
                let first = (part * blocks / PARTS + self.random.below(blocks / PARTS - LONGEST)) as usize;
                // Some writes are smaller than a cluster, some cross its border.
                let count = 1 + self.random.below(LONGEST) as usize;
                self.tag += 1;
                self.write(&image, repo, disk, first..first + count, if round == 2 { 0 } else { self.tag });
            }
            image.flush().unwrap();
            self.mark("flush");
        }
        image.close().unwrap();
        self.mark("close");
    }

    fn write(&mut self, image: &Image, repo: &str, disk: &str, blocks: std::ops::Range<usize>, tag: u32) {
        let offset = (blocks.start * BLOCK) as i64;
        if tag == 0 {
            image.write_zeroes(offset, (blocks.len() * BLOCK) as i64).unwrap();
        } else {
            let data: Vec<u8> = blocks.clone().flat_map(|block| content(block, tag)).collect();
            image.write(offset, &data).unwrap();
        }
        self.image(repo, disk).blocks[blocks].fill(tag);
    }

    fn user_data(&mut self, repo: &str, id: &str, user_data: &str) {
        self.store.set_image_user_data(repo, id, user_data).unwrap();
        user_data.clone_into(&mut self.image(repo, id).user_data);
        self.mark("user data");
    }

    fn resize(&mut self, repo: &str, id: &str) {
        let blocks = self.image(repo, id).blocks.len() + 100;
        let size = (blocks * BLOCK) as i64;
        self.store.resize_virtual_disk(repo, id, size, &ResizeOptions::default()).unwrap();
        self.image(repo, id).blocks.resize(blocks, 0);
        self.mark("resize");
    }

    fn remove(&mut self, repo: &str, id: &str) {
        self.store.remove_image(repo, id, &RemoveOptions::default()).unwrap();
        self.state.get_mut(repo).unwrap().remove(id);
        self.mark("remove");
        judge::quiet(&self.store);
    }

    /// What a check lists, until it lists nothing.
    fn fixes(&mut self, repo: &str) {
        for _ in 0..10 {
            let fixes = self.store.check_storage_repository(repo, &CheckOptions::default()).unwrap();
            if fixes.is_empty() {
                return;
            }
            for fix in fixes {
                match self.store.fix_storage_repository(repo, &fix, &FixOptions::default()) {
                    Err(error) if error.kind() == ErrorKind::FixRefused => continue,
                    task => self.store.wait_task(&task.unwrap(), Some(PATIENCE)).unwrap(),
                }
                self.mark(&format!("fix {:?}", fix.fix_type));
            }
        }
        panic!("the fixes of {repo} do not end");
    }
}
