//! Random operations by two stores on two repositories, against a model that knows nothing of the engine.
//!
//! `PROPTEST_CASES` sets how many sequences run. What failed once is kept in `model.proptest-regressions`.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::large_stack_arrays,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

mod judge;
mod operation;
mod world;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestRunner};
use tempfile::TempDir;
use vdsmstore_core::options::{
    AutoFix, CopyOptions, CreateOptions, ForceOptions, FormatOptions, ListOptions, PrepareOptions,
    RemoveOptions, Strategy as Layout,
};
use vdsmstore_core::{ErrorKind, Image, Result, Status, Store, StoreOptions};
use vdsmstore_tests::mounts::{Mounted, can_mount};
use vdsmstore_tests::qemu::qemu_io;
use vdsmstore_tests::{at, run, scratch};

use operation::{Auto, How, Op, Pick, operation};
use world::{Base, Expect, Img, Model, Open, State};

const NAMES: [&str; 2] = ["A", "B"];
const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/model/model.proptest-regressions");
/// Sequences of a normal run.
const CASES: u32 = 40;
const CASES_ON_CLONES: u32 = 25;
/// Images that stay open between operations.
const MAX_OPEN: usize = 4;

/// The stores, the model, and the open images in the order of the model's.
struct World {
    root: TempDir,
    stores: [Store; 2],
    handles: Vec<Image>,
    model: Model,
    /// Makes names and data differ.
    serial: u64,
    /// `MODEL_TRACE` is set: each operation is told.
    traced: bool,
}

/// The outcome of a call must be one that the rules allow. Some: it succeeded.
fn allowed<T, E>(what: &dyn std::fmt::Debug, result: Result<T>, expected: &Expect<E>) -> Option<T> {
    match (result, expected) {
        (Ok(value), Ok(_)) => Some(value),
        (Err(error), Err(kinds)) if kinds.contains(&error.kind()) => None,
        (Ok(_), Err(kinds)) => panic!("{what:?} succeeded, expected {kinds:?}"),
        (Err(error), Ok(_)) => panic!("{what:?} failed: {error:?}"),
        (Err(error), Err(kinds)) => panic!("{what:?} failed, expected {kinds:?}: {error:?}"),
    }
}

fn auto_fix(auto: Auto) -> AutoFix {
    match auto {
        Auto::Off => AutoFix::Off,
        Auto::On => AutoFix::On,
        Auto::Optimized => AutoFix::Optimized,
    }
}

fn layout(performance: bool) -> Layout {
    if performance { Layout::Performance } else { Layout::Space }
}

fn create_options(performance: bool, auto: Auto) -> CreateOptions {
    CreateOptions { auto_fix: auto_fix(auto), strategy: layout(performance), ..CreateOptions::default() }
}

impl World {
    fn new(place: &Path) -> World {
        let root = tempfile::tempdir_in(place).unwrap();
        let stores = ["first", "second"].map(|host| {
            let mut options = StoreOptions::default();
            options.host_id = Some(host.into());
            // Work runs only where the test says so.
            options.threads = Some(0);
            Store::new(options).unwrap()
        });
        let world = World {
            root,
            stores,
            handles: Vec::new(),
            model: Model::default(),
            serial: 0,
            traced: std::env::var("MODEL_TRACE").is_ok(),
        };
        for (repo, name) in NAMES.iter().enumerate() {
            std::fs::create_dir(world.root.path().join(name)).unwrap();
            let parameters = at(&world.root.path().join(name));
            world.stores[0]
                .format_storage_repository("localfs-1.0", &parameters, &FormatOptions::default())
                .unwrap();
            (0..2).for_each(|store| world.connect(store, repo));
        }
        world
    }

    fn connect(&self, store: usize, repo: usize) {
        let parameters = at(&self.root.path().join(NAMES[repo]));
        self.stores[store].connect_storage_repository(NAMES[repo], "localfs-1.0", &parameters).unwrap();
    }

    fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn user(&mut self) -> String {
        format!("{{\"serial\": {}, \"text\":\"\\u00e4 ä\"}}", self.serial())
    }

    /// One of the images that there are, now and then one that was.
    fn pick(&self, pick: Pick) -> Option<(usize, String)> {
        let mut all = self.model.ids();
        all.extend(self.model.removed.iter().rev().take(2).cloned());
        let picked = pick.of(&all);
        if let (Some((repo, id)), true) = (&picked, self.traced) {
            println!(
                "    {} of {}: {:?}",
                id,
                NAMES[*repo],
                self.model.get(*repo, id).map(|image| (image.disk, &image.state))
            );
        }
        picked
    }

    /// What a disk or a difference can be built on, preferably where `place` says.
    fn pick_base(&self, pick: Pick, place: Option<usize>) -> Option<(usize, String)> {
        let mut good = self.model.ids();
        good.retain(|(repo, id)| {
            !self.model.repos[*repo][id].disk && place.is_none_or(|place| place == *repo)
        });
        if good.is_empty() || pick.0.is_multiple_of(4) { self.pick(pick) } else { Pick(pick.0 / 4).of(&good) }
    }

    fn settle(&mut self) {
        for (repo, name) in NAMES.iter().enumerate() {
            let store = &self.stores[repo];
            self.model.settle(repo, |id| store.get_image_status(name, id).unwrap().status != Status::Broken);
        }
    }

    /// None: the operation says nothing here. Else its kind, and whether it succeeded.
    fn apply(&mut self, op: &Op) -> Option<(&'static str, bool)> {
        if self.traced {
            println!("{op:?}");
        }
        let outcome = match *op {
            Op::Create { store, repo, sectors, performance, auto } => {
                let size = i64::from(sectors) * 512;
                let (user, options) = (self.user(), create_options(performance, auto));
                let id =
                    self.stores[store].create_virtual_disk(NAMES[repo], Some(size), None, &user, &options);
                let id = allowed(op, id, &Ok(())).unwrap().to_string();
                let state = if auto == Auto::Off { State::Pending { then: None } } else { State::Whole };
                self.stores[store].run_tasks();
                self.model.insert(repo, id, Img { disk: true, data: vec![0; size as usize], user, state });
                ("create", true)
            }
            Op::CreateOn { store, repo, base, grow, performance, auto } => {
                let (_, base) = self.pick_base(base, None)?;
                ("create on base", self.create_on(op, store, repo, &base, grow, performance, auto))
            }
            Op::Snapshot { store, image, auto } => {
                let (repo, id) = self.pick(image)?;
                let expected = self.model.snapshot(repo, &id);
                let user = self.user();
                let made =
                    self.stores[store].create_snapshot(NAMES[repo], &id, &user, &create_options(false, auto));
                self.stores[store].run_tasks();
                let made = allowed(op, made, &expected);
                if let (Some(made), Ok(data)) = (&made, expected) {
                    let state = if auto == Auto::Off {
                        State::Announced { disk: id, may: false }
                    } else {
                        self.model.complete(repo, &id);
                        State::Whole
                    };
                    self.model.insert(repo, made.to_string(), Img { disk: false, data, user, state });
                }
                (if auto == Auto::Off { "announce snapshot" } else { "snapshot" }, made.is_some())
            }
            Op::Copy { store, target, image, performance, mutable, auto } => {
                let (_, id) = self.pick(image)?;
                let kind = if self.is_disk(&id) { "copy disk" } else { "copy snapshot" };
                let options = CopyOptions { mutable, ..copy_options(performance, auto) };
                (kind, self.copy(op, store, target, &id, None, options)?)
            }
            Op::CopyOn { store, target, image, base, performance, mutable, partial, auto } => {
                let (_, id) = self.pick(image)?;
                let (_, base) = if partial {
                    self.pick_base(base, Some(1 - target))
                } else if base.0.is_multiple_of(2) {
                    self.pick_base(Pick(base.0 / 2), Some(target))
                } else {
                    self.pick(Pick(base.0 / 2))
                }?;
                let options = CopyOptions { mutable, partial, ..copy_options(performance, auto) };
                let kind = match (self.is_disk(&base), self.model.get(target, &base).is_none()) {
                    (_, true) => "copy partial",
                    (true, _) => "copy on disk",
                    (false, _) => "copy on snapshot",
                };
                (kind, self.copy(op, store, target, &id, Some(&base), options)?)
            }
            Op::BringBack { store, pick } => {
                let mut all = Vec::new();
                for target in 0..2 {
                    let gone = |id: &&String| {
                        self.model.get(target, id).is_none() && self.model.usable(1 - target, id)
                    };
                    all.extend(self.model.were[target].iter().filter(gone).map(|id| (target, id.clone())));
                }
                let (target, id) = pick.of(&all)?;
                ("bring back", self.copy(op, store, target, &id, None, copy_options(false, Auto::On))?)
            }
            Op::Write { store, image, how, range } => {
                let (repo, id) = self.pick(image)?;
                let own = self
                    .model
                    .open
                    .iter()
                    .position(|o| o.writable && o.store == store && o.repo == repo && o.id == id);
                let open = match own {
                    Some(index) => Some(self.handles[index].clone()),
                    None => self.open(op, store, repo, &id, true),
                };
                if let Some(image) = &open {
                    self.write(image, repo, &id, how, range);
                    if own.is_none() {
                        image.close().unwrap();
                    }
                }
                ("write", open.is_some())
            }
            Op::Qemu { store, image, range, byte } => {
                let (repo, id) = self.pick(image)?;
                ("write by QEMU", self.qemu(op, store, repo, &id, range, byte))
            }
            Op::Open { store, image, writable } => {
                let (repo, id) = self.pick(image)?;
                let open = self.open(op, store, repo, &id, writable);
                if let Some(image) = &open {
                    judge::content(image, &self.model.repos[repo][&id].data, &id);
                    if self.handles.len() < MAX_OPEN {
                        self.handles.push(image.clone());
                        self.model.open.push(Open { store, repo, id, writable });
                    }
                }
                (if writable { "open for writing" } else { "open for reading" }, open.is_some())
            }
            Op::Close { pick } => {
                let all: Vec<usize> = (0..self.handles.len()).collect();
                let index = pick.of(&all)?;
                self.close(index);
                ("close", true)
            }
            Op::Remove { store, image } => {
                let (repo, id) = self.pick(image)?;
                ("remove", self.remove(op, store, repo, &id))
            }
            Op::UserData { store, image, value } => {
                let (repo, id) = self.pick(image)?;
                let expected = self.model.get(repo, &id).map(drop).ok_or(vec![ErrorKind::ImageNotFound]);
                let user = format!("[{value}, 1.50]");
                let done = self.stores[store].set_image_user_data(NAMES[repo], &id, &user);
                let done = allowed(op, done, &expected).is_some();
                if let Some(image) = self.model.repos[repo].get_mut(&id) {
                    image.user = user;
                }
                ("set user data", done)
            }
            Op::Import { store, repo, bytes, qcow2, auto } => {
                self.import(op, store, repo, bytes, qcow2, auto);
                (if qcow2 { "import qcow2" } else { "import raw" }, true)
            }
            Op::Reconnect { store, repo, force } => ("reconnect", self.reconnect(op, store, repo, force)),
        };
        Some(outcome)
    }

    fn is_disk(&self, id: &str) -> bool {
        self.model.repos.iter().filter_map(|repo| repo.get(id)).any(|image| image.disk)
    }

    /// A snapshot there that can neither be read nor is being made.
    fn lost_its_base(&self, repo: usize, id: &str) -> bool {
        let partial =
            self.model.get(repo, id).is_some_and(|image| matches!(image.state, State::Partial { .. }));
        partial && !self.model.usable(repo, id)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of the operation")]
    fn create_on(
        &mut self,
        op: &Op,
        store: usize,
        repo: usize,
        base: &str,
        grow: Option<u16>,
        performance: bool,
        auto: Auto,
    ) -> bool {
        // Half of a repair is no state that this model knows.
        let auto = if self.lost_its_base(repo, base) { Auto::On } else { auto };
        let expected = self.model.disk_base(repo, base);
        let length =
            self.model.repos.iter().find_map(|images| images.get(base)).map_or(512, |image| image.data.len());
        let size = grow.map(|grow| length as i64 + i64::from(grow) * 512);
        let user = self.user();
        let made = self.stores[store].create_virtual_disk(
            NAMES[repo],
            size,
            Some(base),
            &user,
            &create_options(performance, auto),
        );
        self.stores[store].run_tasks();
        let Some(made) = allowed(op, made, &expected) else { return false };
        let source = self.model.repos[expected.unwrap()][base].clone();
        let elsewhere = !self.model.usable(repo, base);
        if elsewhere && !performance {
            let present = self.model.get(repo, base).map(|image| image.state.clone());
            let state = match (auto, present) {
                (Auto::Off, None) => State::Pending { then: Some(Box::new(State::Whole)) },
                (Auto::Off, Some(state)) => state,
                (_, Some(State::Pending { then: Some(then) })) => *then,
                _ => State::Whole,
            };
            let user = self.model.get(repo, base).unwrap_or(&source).user.clone();
            self.model.insert(repo, base.to_owned(), Img { user, state, ..source.clone() });
        }
        let mut data = source.data;
        data.resize(size.map_or(data.len(), |size| size as usize), 0);
        let state = match auto {
            Auto::Off => State::Pending { then: None },
            _ if elsewhere && performance => State::Whole,
            _ => State::Partial { base: base.to_owned() },
        };
        self.model.insert(repo, made.to_string(), Img { disk: true, data, user, state });
        true
    }

    /// None: the operation leads to what the model does not know.
    fn copy(
        &mut self,
        op: &Op,
        store: usize,
        target: usize,
        id: &str,
        base: Option<&str>,
        mut options: CopyOptions,
    ) -> Option<bool> {
        let expected = self.model.copy(target, id, base, options.partial);
        let base_of = |(_, base): &(usize, Base)| match base {
            Base::None => (State::Whole, false),
            Base::Disk(disk) => (State::Whole, self.model.is_open(target, disk)),
            Base::Snapshot(id) => {
                (State::Partial { base: id.clone() }, !(0..2).any(|repo| self.model.usable(repo, id)))
            }
        };
        let (then, may_fail) = expected.as_ref().map_or((State::Whole, false), base_of);
        if self.lost_its_base(target, id) {
            if may_fail {
                return None;
            }
            options.auto_fix = AutoFix::On;
        }
        let user = self.user();
        options.task_id = Some(format!("copy-{}", self.serial));
        let copied = self.stores[store].copy_image(NAMES[target], id, base, &user, &options);
        self.stores[store].run_tasks();
        let Some(copied) = allowed(op, copied, &expected) else { return Some(false) };
        let copied = copied.to_string();
        let (repo, base) = expected.unwrap();
        let on = options.auto_fix != AutoFix::Off;
        let outcome =
            if on { self.stores[store].wait_task(options.task_id.as_deref().unwrap(), None) } else { Ok(()) };
        if let Base::Disk(disk) = &base
            && on
        {
            self.model.may_complete(target, disk);
        }
        let source = self.model.repos[repo][id].clone();
        let present = self.model.get(target, id).cloned().filter(|_| !source.disk);
        if let Some(Img { state: State::Pending { then: Some(earlier) }, .. }) = &present {
            // What was announced first is what is done.
            if outcome.is_ok() && on {
                let state = (**earlier).clone();
                self.model.insert(target, copied, Img { state, ..present.unwrap() });
            }
            return Some(outcome.is_ok());
        }
        assert!(may_fail || outcome.is_ok(), "{op:?}: {outcome:?}");
        let failed = outcome.is_err();
        if source.disk {
            let state = if on && !failed { then } else { State::Pending { then: None } };
            self.model.insert(target, copied, Img { disk: options.mutable, user, state, ..source });
            return Some(!failed);
        }
        assert_eq!(copied, id, "a snapshot keeps its id");
        match present {
            None => {
                let state = if on && !failed { then } else { State::Pending { then: Some(Box::new(then)) } };
                self.model.insert(target, copied, Img { user, state, ..source });
            }
            Some(present) if self.lost_its_base(target, id) => {
                self.model.insert(target, copied, Img { state: then, ..present });
            }
            Some(_) => {}
        }
        Some(!failed)
    }

    fn open(&mut self, op: &Op, store: usize, repo: usize, id: &str, writable: bool) -> Option<Image> {
        let expected = if writable { self.model.writable(repo, id) } else { self.model.readable(repo, id) };
        let open = allowed(op, self.stores[store].open_image(NAMES[repo], id, writable), &expected)?;
        if writable {
            self.model.complete(repo, id);
        }
        Some(open)
    }

    fn write(&mut self, image: &Image, repo: usize, id: &str, how: How, range: operation::Range) {
        let data = &mut self.model.repos[repo].get_mut(id).unwrap().data;
        let (start, length) = range.of(data.len());
        let bytes = &mut data[start..start + length];
        let (offset, long) = (start as i64, length as i64);
        match how {
            How::Data(seed) => {
                bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = seed.wrapping_add((i / 7) as u8));
                image.write(offset, bytes).unwrap();
            }
            How::Zeroes => {
                bytes.fill(0);
                image.write_zeroes(offset, long).unwrap();
            }
            How::Discard => {
                bytes.fill(0);
                image.discard(offset, long).unwrap();
            }
        }
    }

    fn qemu(
        &mut self,
        op: &Op,
        store: usize,
        repo: usize,
        id: &str,
        range: operation::Range,
        byte: u8,
    ) -> bool {
        let expected = self.model.writable(repo, id);
        let options = PrepareOptions { read_only: false };
        let prepared = self.stores[store].prepare_image(NAMES[repo], id, &options);
        let prepared = match prepared {
            // A header below may have to be corrected, and be in use.
            Err(error) if error.kind() == ErrorKind::ImageInUse && !self.handles.is_empty() => return false,
            prepared => allowed(op, prepared, &expected),
        };
        let Some(prepared) = prepared else { return false };
        self.model.complete(repo, id);
        let data = &mut self.model.repos[repo].get_mut(id).unwrap().data;
        let (start, length) = range.of(data.len());
        let (start, end) = (start / 512 * 512, (start + length).next_multiple_of(512));
        data[start..end].fill(byte);
        let command = format!("write -P {byte} {start} {}", end - start);
        let output = qemu_io(&prepared.path, &prepared.format, false, &[&command]);
        assert!(output.status.success(), "{op:?}: {command}: {output:?}");
        self.stores[store].teardown_image(NAMES[repo], id, &ForceOptions::default()).unwrap();
        true
    }

    fn close(&mut self, index: usize) {
        let image = self.handles.remove(index);
        self.model.open.remove(index);
        image.close().unwrap();
        assert_eq!(image.read(0, &mut [0]).unwrap_err().kind(), ErrorKind::Closed);
    }

    fn remove(&mut self, op: &Op, store: usize, repo: usize, id: &str) -> bool {
        let expected = self.model.remove(store, repo, id);
        let removed = self.stores[store].remove_image(NAMES[repo], id, &RemoveOptions::default());
        self.stores[store].run_tasks();
        let done = match (removed, expected) {
            (Err(error), Ok(false)) if error.kind() == ErrorKind::ImageInUse => false,
            (removed, expected) => allowed(op, removed, &expected).is_some(),
        };
        if done {
            self.model.complete(repo, id);
            self.model.repos[repo].remove(id);
            self.model.removed.push((repo, id.to_owned()));
        }
        done
    }

    fn import(&mut self, op: &Op, store: usize, repo: usize, bytes: u32, qcow2: bool, auto: Auto) {
        let bytes = if qcow2 { bytes.next_multiple_of(512) } else { bytes } as usize;
        let seed = self.serial();
        let block = |i: usize| if i / 50_000 % 3 == 1 { 0 } else { (i as u64 / 100 + seed) as u8 };
        let mut data: Vec<u8> = (0..bytes).map(block).collect();
        let raw = self.root.path().join(format!("import-{seed}.raw"));
        std::fs::write(&raw, &data).unwrap();
        let file = if qcow2 { to_qcow2(&raw) } else { raw };
        let (user, options) = (self.user(), create_options(false, auto));
        let format = if qcow2 { "qcow2" } else { "raw" };
        let id =
            self.stores[store].import_image(NAMES[repo], file.to_str().unwrap(), format, &user, &options);
        self.stores[store].run_tasks();
        let id = allowed(op, id, &Ok(())).unwrap().to_string();
        data.resize(bytes.next_multiple_of(512), 0);
        let state = if auto == Auto::Off { State::Pending { then: None } } else { State::Whole };
        self.model.insert(repo, id, Img { disk: true, data, user, state });
        std::fs::remove_file(&file).unwrap();
    }

    fn reconnect(&mut self, op: &Op, store: usize, repo: usize, force: bool) -> bool {
        let mine: Vec<usize> = (0..self.handles.len())
            .filter(|&i| self.model.open[i].store == store && self.model.open[i].repo == repo)
            .collect();
        let expected = if mine.is_empty() || force { Ok(()) } else { Err(vec![ErrorKind::ImageInUse]) };
        let done = self.stores[store].disconnect_storage_repository(NAMES[repo], &ForceOptions { force });
        if allowed(op, done, &expected).is_none() {
            return false;
        }
        for index in mine.into_iter().rev() {
            self.close(index);
        }
        let gone = self.stores[store].list_images(NAMES[repo], &ListOptions::default()).unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::RepositoryNotFound);
        self.connect(store, repo);
        true
    }
}

fn to_qcow2(raw: &Path) -> PathBuf {
    let file = raw.with_extension("qcow2");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), file.to_str().unwrap()]);
    file
}

fn copy_options(performance: bool, auto: Auto) -> CopyOptions {
    CopyOptions { auto_fix: auto_fix(auto), strategy: layout(performance), ..CopyOptions::default() }
}

/// All kinds; each must have succeeded at least once.
const KINDS: [&str; 20] = [
    "create",
    "create on base",
    "snapshot",
    "announce snapshot",
    "copy disk",
    "copy snapshot",
    "copy on disk",
    "copy on snapshot",
    "copy partial",
    "bring back",
    "write",
    "write by QEMU",
    "open for reading",
    "open for writing",
    "close",
    "remove",
    "set user data",
    "import raw",
    "import qcow2",
    "reconnect",
];

fn random_operations(place: &Path, cases: u32) {
    let given = std::env::var("PROPTEST_CASES").is_ok();
    let mut config = ProptestConfig::default();
    if !given {
        config.cases = cases;
    }
    config.max_shrink_iters = 400;
    config.failure_persistence = Some(Box::new(FileFailurePersistence::Direct(REGRESSIONS)));
    config.source_file = Some(file!());
    let counts: RefCell<BTreeMap<&str, (u32, u32)>> = RefCell::default();
    let result = TestRunner::new(config).run(&prop::collection::vec(operation(), 1..80), |operations| {
        let mut world = World::new(place);
        for op in &operations {
            let outcome = world.apply(op);
            world.settle();
            if let Some((kind, succeeded)) = outcome {
                let mut counts = counts.borrow_mut();
                let count = counts.entry(kind).or_default();
                count.0 += 1;
                count.1 += u32::from(succeeded);
            }
        }
        judge::everything(&mut world);
        Ok(())
    });
    let counts = counts.into_inner();
    for (kind, (ran, succeeded)) in &counts {
        println!("{kind}: {ran} ran, {succeeded} succeeded");
    }
    if let Err(error) = result {
        panic!("{error}");
    }
    for kind in KINDS {
        assert!(given || counts.get(kind).is_some_and(|count| count.1 > 0), "{kind:?} never succeeded");
    }
}

#[test]
fn on_overlays() {
    let place = scratch();
    random_operations(place.path(), CASES);
}

#[test]
fn on_clones() {
    if can_mount() {
        let place = Mounted::new("xfs", 1024);
        random_operations(place.path(), CASES_ON_CLONES);
    } else {
        println!("not root: no file system that clones can be mounted");
    }
}
