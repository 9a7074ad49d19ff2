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

mod changing;
mod cut;
mod fixes;
mod judge;
mod making;
mod operation;
mod run;
mod using;
mod world;

use std::collections::BTreeMap;
use std::path::Path;

use tempfile::TempDir;
use vdsmstore_core::options::{AutoFix, CopyOptions, CreateOptions, FormatOptions, Strategy as Layout};
use vdsmstore_core::{ErrorKind, Fix, Image, Result, Store, StoreOptions};
use vdsmstore_tests::mounts::{Mounted, can_mount};
use vdsmstore_tests::{at, scratch};

use cut::{Hits, Need, Way};
use operation::{Auto, How, Op, Pick, Range};
use run::random_operations;
use world::{Expect, Model, Open, State};

const NAMES: [&str; 2] = ["A", "B"];
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
    /// How the present operation is carried out.
    way: Way,
    /// Something was broken off, or taken up again.
    broken_off: bool,
    hits: Hits,
    /// Of images whose making was broken off.
    needs: BTreeMap<(usize, String), Vec<Need>>,
    /// Fixes of earlier checks, by repository.
    remembered: Vec<(usize, Fix)>,
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
        let mut world = World {
            root,
            stores,
            handles: Vec::new(),
            model: Model::default(),
            serial: 0,
            way: Way::Run,
            broken_off: false,
            hits: Hits::default(),
            needs: BTreeMap::new(),
            remembered: Vec::new(),
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
        let info = world.stores[0].get_storage_repository_info(NAMES[0]).unwrap();
        world.model.clones = info.capabilities.reflink;
        world
    }

    /// Something to begin with: a disk in A, and its snapshot, which is in B only by now.
    fn begin(&mut self) {
        let (repo, auto, performance) = (0, Auto::On, false);
        let disk = Op::Create { store: 0, repo, sectors: 1000, performance, auto };
        let snapshot = Op::Snapshot { store: 0, image: Pick(0), auto };
        self.apply(&disk);
        self.apply(&Op::Write {
            store: 0,
            image: Pick(0),
            how: How::Data(1),
            range: Range { at: 0, length: 200_000, aligned: false },
        });
        self.apply(&snapshot);
        let image = Pick(u8::from(self.model.repos[0].values().next().is_some_and(|image| image.disk)));
        self.apply(&Op::Copy { store: 0, target: 1, image, performance, mutable: true, auto });
        self.apply(&Op::Remove { store: 0, image });
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

    /// None: the operation says nothing here. Else its kind, and whether it succeeded.
    fn apply(&mut self, op: &Op) -> Option<(&'static str, bool)> {
        if self.traced {
            for name in NAMES {
                println!("    {name}: {:?}", self.stores[0].graph(name));
            }
            println!("{op:?}");
        }
        let outcome = match *op {
            Op::Create { store, repo, sectors, performance, auto } => {
                self.create(op, store, repo, i64::from(sectors) * 512, performance, auto);
                ("create", true)
            }
            Op::CreateOn { store, repo, base, grow, performance, auto } => {
                let (_, base) = self.pick_base(base, None)?;
                ("create on base", self.create_on(op, store, repo, &base, grow, performance, auto)?)
            }
            Op::Snapshot { store, image, auto } => {
                let (repo, id) = self.pick(image)?;
                let kind = if auto == Auto::Off { "announce snapshot" } else { "snapshot" };
                (kind, self.snapshot(op, store, repo, &id, auto)?)
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
                ("remove", self.remove(op, store, repo, &id)?)
            }
            Op::UserData { store, image, value } => {
                let (repo, id) = self.pick(image)?;
                ("set user data", self.set_user_data(op, store, repo, &id, value)?)
            }
            Op::Import { store, repo, bytes, qcow2, auto } => {
                self.import(op, store, repo, bytes, qcow2, auto);
                (if qcow2 { "import qcow2" } else { "import raw" }, true)
            }
            Op::Resize { store, image, sectors } => {
                let (repo, id) = self.pick(image)?;
                ("resize", self.resize(op, store, repo, &id, sectors)?)
            }
            Op::Strategy { store, image, performance } => {
                let (repo, id) = self.pick(image)?;
                let expected = self.model.get(repo, &id).map(drop).ok_or(vec![ErrorKind::ImageNotFound]);
                let done = self.stores[store].set_image_strategy(NAMES[repo], &id, layout(performance));
                ("set strategy", allowed(op, done, &expected).is_some())
            }
            Op::Export { store, image, qcow2 } => {
                let (repo, id) = self.pick(image)?;
                ("export", self.export(op, store, repo, &id, qcow2))
            }
            Op::Difference { store, image, base } => {
                let (repo, id) = self.pick(image)?;
                let (_, base) = self.pick_base(base, Some(repo))?;
                ("difference", self.difference(op, store, repo, &id, &base))
            }
            Op::Tidy { store, repo } => ("tidy", self.tidy(store, repo)),
            Op::Fix { finder, store, repo, pick } => ("fix", self.fix(finder, store, repo, pick)?),
            Op::Remember { store, repo } => ("remember fixes", self.remember(store, repo)),
            Op::Stale { store, pick } => ("fix of an earlier check", self.stale(store, pick)?),
            Op::Stopped(ref op) => {
                let before = self.hits.stopped;
                self.in_a_way(Way::Stop, op)?;
                ("stop", self.hits.stopped > before)
            }
            Op::Killed { moment, ref op } => {
                let before = self.hits.unfinished;
                self.in_a_way(Way::Kill(moment), op)?;
                ("kill", self.hits.unfinished > before)
            }
            Op::Reconnect { store, repo, force } => ("reconnect", self.reconnect(op, store, repo, force)),
        };
        Some(outcome)
    }

    fn in_a_way(&mut self, way: Way, op: &Op) -> Option<(&'static str, bool)> {
        self.way = way;
        let outcome = self.apply(op);
        self.way = Way::Run;
        outcome
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
}

fn copy_options(performance: bool, auto: Auto) -> CopyOptions {
    CopyOptions { auto_fix: auto_fix(auto), strategy: layout(performance), ..CopyOptions::default() }
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

/// Not a test: the host that dies, which is this program once more.
#[test]
#[ignore = "it is what the others start and kill"]
fn dying_host() {
    vdsmstore_tests::dying::live();
}
