//! Hosts that do something by chance: two to four at the same time, on the same images, interrupted at any step by the
//! others; some die, some are frozen and lose their locks, some meet storage that fails or is full; relaxed reads return
//! what was there before. A schedule that fails is told by its seed: what it found gets a test of its own, for with the
//! next change of the engine a seed is another schedule.
//!
//! `VDSMSTORE_SIM_SEED=n` runs that seed alone; `VDSMSTORE_LONG=n` n thousand of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vdsmstore_core::id::{ImageId, Incarnation};
use vdsmstore_core::options::{
    CheckOptions, CopyOptions, CreateOptions, ListOptions, RemoveOptions, ResizeOptions, Strategy,
};
use vdsmstore_core::repository::Liveness;
use vdsmstore_core::{Error, ErrorKind, Result, Status, Store};
use vdsmstore_io::device::sim::Fault;
use vdsmstore_io::device::sim::hosts::{self, Act, Turn, mix};

use crate::judge;
use crate::long;
use crate::scene::{CLUSTER, CLUSTERS, NAMES, SIZE, Scene, Storage};

/// What an image may hold, cluster by cluster, each of which is filled with one byte.
type Clusters = Vec<BTreeSet<u8>>;

fn blank() -> Clusters {
    vec![BTreeSet::from([0]); CLUSTERS]
}

fn join(a: &Clusters, b: &Clusters) -> Clusters {
    a.iter().zip(b).map(|(a, b)| a | b).collect()
}

#[derive(Clone, Debug)]
struct Known {
    disk: bool,
    /// What it may hold now.
    now: Clusters,
    /// What it may have held at any time.
    ever: Clusters,
    /// A call that makes it has returned.
    made: bool,
    /// A call that removes it was made.
    maybe_gone: bool,
    /// Such a call has returned.
    gone: bool,
    /// It was read: it is what that was, or what was written since.
    settled: bool,
    /// What it is made of: if that goes, it stays broken.
    of: Option<(usize, String)>,
}

#[derive(Debug, Default)]
struct Model {
    images: BTreeMap<(usize, String), Known>,
    stamp: u8,
    counts: BTreeMap<&'static str, u64>,
}

type Shared = Arc<Mutex<Model>>;

fn locked(model: &Shared) -> MutexGuard<'_, Model> {
    model.lock().unwrap_or_else(PoisonError::into_inner)
}

/// With `VDSMSTORE_SIM_TRACE=1`, what is done is printed.
fn trace(what: &str, of: &(usize, String), new: &(usize, String)) {
    if std::env::var_os("VDSMSTORE_SIM_TRACE").is_some() {
        println!("{what} {of:?}: {new:?}");
    }
}

fn chance(below: u64) -> u64 {
    hosts::random().unwrap() % below
}

/// A call may fail in any way but these.
fn allowed(error: &Error, what: &str) {
    let never = [ErrorKind::Internal, ErrorKind::CorruptImage, ErrorKind::CorruptRecord];
    assert!(!never.contains(&error.kind()), "{what}: {error:?}");
}

impl Model {
    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn pick(&self, wanted: impl Fn(&Known) -> bool) -> Option<(usize, String)> {
        let fitting: Vec<_> =
            self.images.iter().filter(|(_, known)| wanted(known)).map(|(key, _)| key).collect();
        (!fitting.is_empty()).then(|| fitting[chance(fitting.len() as u64) as usize].clone())
    }

    /// What an image may have held at any time, or what it is made of: that may be read as late as it is completed.
    fn ever(&self, key: &(usize, String)) -> Clusters {
        let Some(known) = self.images.get(key) else { return blank() };
        match &known.of {
            Some(of) if !known.settled => join(&known.ever, &self.ever(of)),
            _ => known.ever.clone(),
        }
    }

    fn announce(&mut self, key: (usize, String), disk: bool, content: Clusters, of: Option<(usize, String)>) {
        let known = Known {
            disk,
            ever: content.clone(),
            now: content,
            made: false,
            maybe_gone: false,
            gone: false,
            settled: false,
            of,
        };
        self.images.insert(key, known);
    }

    /// What was read is what it may hold; and from now on, it is that.
    fn verify(&mut self, key: &(usize, String), data: &[u8], what: &str) {
        let ever = self.ever(key);
        let known = self.images.get_mut(key).unwrap();
        if !known.settled {
            known.now = join(&known.now, &ever);
            known.ever = ever;
            known.settled = true;
        }
        for (index, cluster) in data.chunks(CLUSTER).enumerate() {
            let blank = BTreeSet::from([0]);
            let may = known.now.get(index).unwrap_or(&blank);
            let found: BTreeSet<u8> = cluster.iter().copied().collect();
            assert!(found.is_subset(may), "{what}: {key:?}: cluster {index} has {found:?}, not {may:?}");
            if let Some(now) = known.now.get_mut(index) {
                *now = found;
            }
        }
    }
}

/// One thing that a host does.
fn act(store: &Store, model: &Shared, what: &str) {
    let snapshot_or_disk = |known: &Known| known.made;
    let disk = |known: &Known| known.made && known.disk;
    let (name, outcome): (&'static str, Result<()>) = match chance(12) {
        0 => ("create", create(store, model, None)),
        1 => {
            let base = locked(model).pick(|known| known.made && !known.disk);
            ("create on a snapshot", create(store, model, base.as_ref()))
        }
        2..4 => {
            let Some(key) = locked(model).pick(disk) else { return };
            ("write", write(store, model, &key, what))
        }
        4 => {
            let Some(key) = locked(model).pick(disk) else { return };
            ("snapshot", snapshot(store, model, &key))
        }
        5 => {
            let Some(key) = locked(model).pick(snapshot_or_disk) else { return };
            ("copy", copy(store, model, &key))
        }
        6 => {
            let Some(key) = locked(model).pick(snapshot_or_disk) else { return };
            ("remove", remove(store, model, &key))
        }
        7 => {
            let Some((repo, id)) = locked(model).pick(disk) else { return };
            let size = SIZE as i64 + 65536 * chance(8) as i64;
            ("resize", store.resize_virtual_disk(NAMES[repo], &id, size, &ResizeOptions::default()))
        }
        8 => {
            let Some((repo, id)) = locked(model).pick(snapshot_or_disk) else { return };
            ("strategy", store.set_image_strategy(NAMES[repo], &id, Strategy::Performance))
        }
        9 => {
            let Some(key) = locked(model).pick(snapshot_or_disk) else { return };
            ("read", read(store, model, &key, what))
        }
        _ => ("repair", repair(store, what)),
    };
    if std::env::var_os("VDSMSTORE_SIM_TRACE").is_some() {
        let text = outcome.as_ref().map_or_else(|error| error.message().to_owned(), |()| "done".to_owned());
        println!("{name}: {text}");
    }
    match outcome {
        Ok(()) => locked(model).count(name),
        Err(error) => {
            allowed(&error, what);
            locked(model).count("refused or failed");
        }
    }
}

fn create(store: &Store, model: &Shared, base: Option<&(usize, String)>) -> Result<()> {
    let id = ImageId::random().to_string();
    let (repo, content) = match base {
        Some(base) => (base.0, locked(model).images[base].now.clone()),
        None => (chance(2) as usize, blank()),
    };
    let key = (repo, id.clone());
    locked(model).announce(key.clone(), true, content, base.cloned());
    let options = CreateOptions { image_id: Some(id), ..CreateOptions::default() };
    let size = base.is_none().then_some(SIZE as i64);
    let base = base.map(|(_, id)| id.as_str());
    store.create_virtual_disk(NAMES[repo], size, base, "{}", &options)?;
    locked(model).images.get_mut(&key).unwrap().made = true;
    store.run_tasks();
    Ok(())
}

fn write(store: &Store, model: &Shared, key: &(usize, String), what: &str) -> Result<()> {
    let image = store.open_image(NAMES[key.0], &key.1, true)?;
    let mut data = vec![0; image.size()? as usize];
    image.read(0, &mut data)?;
    locked(model).verify(key, &data, what);
    for _ in 0..=chance(3) {
        let cluster = chance(CLUSTERS as u64) as usize;
        let byte = {
            let mut model = locked(model);
            model.stamp = model.stamp.wrapping_add(1).max(1);
            let byte = model.stamp;
            let known = model.images.get_mut(key).unwrap();
            // Until it is flushed, it may be there or not.
            known.now[cluster].insert(byte);
            known.ever[cluster].insert(byte);
            byte
        };
        image.write((cluster * CLUSTER) as i64, &vec![byte; CLUSTER])?;
        if chance(2) == 0 {
            image.flush()?;
            let mut model = locked(model);
            let known = model.images.get_mut(key).unwrap();
            known.now[cluster] = BTreeSet::from([byte]);
        }
    }
    image.close()
}

fn snapshot(store: &Store, model: &Shared, key: &(usize, String)) -> Result<()> {
    let id = ImageId::random().to_string();
    let new = (key.0, id.clone());
    {
        let mut model = locked(model);
        let content = model.ever(key);
        model.announce(new.clone(), false, content, Some(key.clone()));
    }
    let before = locked(model).images[key].now.clone();
    let options = CreateOptions { image_id: Some(id), ..CreateOptions::default() };
    trace("snapshot of", key, &new);
    store.create_snapshot(NAMES[key.0], &key.1, "{}", &options)?;
    let mut model = locked(model);
    let after = join(&before, &model.ever(key));
    let known = model.images.get_mut(&new).unwrap();
    known.now = after;
    known.made = true;
    Ok(())
}

fn copy(store: &Store, model: &Shared, key: &(usize, String)) -> Result<()> {
    let to = 1 - key.0;
    let (disk, ever) = {
        let model = locked(model);
        (model.images[key].disk, model.ever(key))
    };
    let id = if disk { ImageId::random().to_string() } else { key.1.clone() };
    let new = (to, id.clone());
    {
        let mut model = locked(model);
        if !model.images.contains_key(&new) {
            model.announce(new.clone(), disk, ever, Some(key.clone()));
        }
    }
    trace("copy of", key, &new);
    let image_id = disk.then_some(id);
    let options = CopyOptions { image_id, ..CopyOptions::default() };
    store.copy_image(NAMES[to], &key.1, None, "{}", &options)?;
    {
        let mut model = locked(model);
        let source = model.images[key].clone();
        let known = model.images.get_mut(&new).unwrap();
        known.made = true;
        if !disk && !known.gone && !known.maybe_gone {
            known.now = join(&known.now, &source.now);
        }
        (known.gone, known.maybe_gone) = (false, known.gone || known.maybe_gone);
    }
    store.run_tasks();
    Ok(())
}

fn remove(store: &Store, model: &Shared, key: &(usize, String)) -> Result<()> {
    trace("remove", key, key);
    locked(model).images.get_mut(key).unwrap().maybe_gone = true;
    store.remove_image(NAMES[key.0], &key.1, &RemoveOptions::default())?;
    store.run_tasks();
    Ok(())
}

fn read(store: &Store, model: &Shared, key: &(usize, String), what: &str) -> Result<()> {
    let image = store.open_image(NAMES[key.0], &key.1, false)?;
    let mut data = vec![0; image.size()? as usize];
    image.read(0, &mut data)?;
    image.close()?;
    let mut model = locked(model);
    // A disk may be written while it is read.
    if !model.images[key].disk {
        model.verify(key, &data, what);
    }
    Ok(())
}

fn repair(store: &Store, what: &str) -> Result<()> {
    for repo in 0..2 {
        for fix in store.check_storage_repository(NAMES[repo], &CheckOptions::default())? {
            if let Err(error) = judge::fix(store, repo, &fix) {
                allowed(&error, what);
            }
        }
    }
    Ok(())
}

/// Said of a host that goes on all the same.
const CERTAIN_DEATH: &str = "certain death";

/// What may happen to a host between two steps.
fn trouble(
    scene: &Scene,
    hosts: &[Incarnation],
    host: usize,
    fate: &mut impl FnMut(u64) -> u64,
) -> (&'static str, bool) {
    let me = hosts[host];
    match fate(8) {
        0..2 => {
            for world in &scene.worlds {
                world.crash(me, &mut || fate(2) == 0);
            }
            ("death", false)
        }
        2..6 => {
            let certain = fate(2) == 0;
            let (said, fenced) =
                if certain { (Liveness::CertainlyDead, true) } else { (Liveness::LikelyDead, fate(2) == 0) };
            for world in &scene.worlds {
                world.revoke(me, fenced);
                world.set_liveness(me, said);
            }
            (if certain { CERTAIN_DEATH } else { "lost locks" }, true)
        }
        _ => {
            let act = [Act::Read, Act::Flush, Act::Write, Act::Record][fate(4) as usize];
            let kind = if act == Act::Write {
                vdsmstore_io::ErrorKind::NoSpace
            } else {
                vdsmstore_io::ErrorKind::Io
            };
            let fault = Fault { act, after: fate(5), times: 1 + fate(3), kind };
            scene.worlds[fate(2) as usize].power(me).fail(fault);
            ("fault", false)
        }
    }
}

fn run(seed: u64, totals: &mut BTreeMap<&'static str, u64>) {
    let what =
        format!("VDSMSTORE_SIM_SEED={seed} cargo test -p vdsmstore-tests --test hosts random::schedules");
    let storage = if seed.is_multiple_of(2) { Storage::Overlays } else { Storage::Clones };
    let model: Shared = Arc::default();
    let (scene, stores, ids) = hosts::alone(mix(seed), || {
        let scene = Scene::new(storage);
        let (store, _) = scene.join("setup");
        for _ in 0..2 {
            create(&store, &model, None).unwrap();
        }
        for _ in 0..3 {
            let key = locked(&model).pick(|known| known.disk).unwrap();
            write(&store, &model, &key, &what).unwrap();
            snapshot(&store, &model, &key).unwrap();
        }
        store.close().unwrap();
        let joined: Vec<_> = (0..2 + chance(3)).map(|_| scene.join("host")).collect();
        let (stores, ids): (Vec<Store>, Vec<Incarnation>) = joined.into_iter().unzip();
        (scene, stores, ids)
    });
    for world in scene.worlds.iter().filter(|_| mix(seed ^ 3).is_multiple_of(2)) {
        world.set_stale(Some(mix(seed ^ 4)));
    }
    let works = stores.into_iter().map(|store| {
        let (model, what) = (model.clone(), what.clone());
        let work: hosts::Work<()> = Box::new(move || {
            for _ in 0..4 + chance(6) {
                act(&store, &model, &what);
            }
            let _ = store.close();
        });
        work
    });
    let works: Vec<_> = works.collect();
    let counts: Arc<Mutex<BTreeMap<&'static str, u64>>> = Arc::default();
    let dead: Arc<Mutex<Vec<Incarnation>>> = Arc::default();
    let decide = {
        let (scene, ids, counts, dead) = (scene.clone(), ids.clone(), counts.clone(), dead.clone());
        let mut number = mix(seed ^ 0x4d);
        let mut fate = move |below: u64| {
            number = mix(number);
            number % below
        };
        // Until which step of its own a host sleeps, while others work.
        let mut asleep: BTreeMap<usize, u64> = BTreeMap::new();
        let mut total = 0;
        let rush = 1 + fate(40);
        Box::new(move |turn: &Turn<'_>| {
            total += 1;
            if turn.act != Act::End && fate(400) == 0 {
                let (name, sleeps) = trouble(&scene, &ids, turn.host, &mut fate);
                *counts.lock().unwrap().entry(name).or_default() += 1;
                if name == CERTAIN_DEATH {
                    dead.lock().unwrap().push(ids[turn.host]);
                }
                if sleeps {
                    asleep.insert(turn.host, total + 50 + fate(2000));
                }
            }
            asleep.retain(|_, until| *until > total);
            let awake = |host: &usize| !turn.ended[*host] && !asleep.contains_key(host);
            let change = turn.act == Act::Pause || asleep.contains_key(&turn.host) || fate(rush) == 0;
            if !change && !turn.ended[turn.host] {
                return turn.host;
            }
            let able: Vec<usize> = (0..turn.ended.len()).filter(awake).collect();
            if able.is_empty() { turn.host } else { able[fate(able.len() as u64) as usize] }
        })
    };
    hosts::run(mix(seed ^ 1), works, decide);
    for world in &scene.worlds {
        world.set_stale(None);
        *totals.entry("stale read").or_default() += world.stale_reads();
    }
    for (name, count) in counts.lock().unwrap().iter() {
        *totals.entry(name).or_default() += count;
    }
    hosts::alone(mix(seed ^ 2), || end(&scene, &model, &ids, &dead.lock().unwrap(), &what));
    for (name, count) in &locked(&model).counts {
        *totals.entry(name).or_default() += count;
    }
}

/// In the end all hosts are gone for certain; another one repairs. What one still wrote that was said to be dead for certain
/// before counts only if the bytes are wrong for it: storage that says so has seen to it that nothing arrives.
fn end(scene: &Scene, model: &Shared, ids: &[Incarnation], dead: &[Incarnation], what: &str) {
    for world in &scene.worlds {
        for host in ids {
            world.revoke(*host, true);
            world.set_liveness(*host, Liveness::CertainlyDead);
        }
    }
    let (store, _) = scene.join("judge");
    for round in 0..12 {
        let mut clean = true;
        for repo in 0..2 {
            for fix in judge::check(&store, repo) {
                let outcome = judge::fix(&store, repo, &fix);
                // A copy of what is gone.
                let hopeless = outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::ImageNotFound);
                clean &= hopeless;
                assert!(round < 11, "{what}: still lists {fix:?}: {outcome:?}");
            }
        }
        if clean {
            break;
        }
    }
    let mut model = locked(model);
    let mut broken = false;
    for (key, known) in model.images.clone() {
        let (name, id) = (NAMES[key.0], &key.1);
        let status = match store.get_image_status(name, id) {
            Err(error) if error.kind() == ErrorKind::ImageNotFound => {
                assert!(!known.made || known.maybe_gone, "{what}: {key:?} is lost");
                continue;
            }
            status => status.unwrap_or_else(|error| panic!("{what}: {key:?}: {error:?}")),
        };
        if status.status == Status::Broken {
            let of = known.of.as_ref().and_then(|of| model.images.get(of));
            let hopeless = of.is_some_and(|of| of.maybe_gone || !of.made);
            assert!(hopeless, "{what}: {key:?} is broken: {status:?}");
            broken = true;
            continue;
        }
        let image =
            store.open_image(name, id, false).unwrap_or_else(|error| panic!("{what}: {key:?}: {error:?}"));
        let mut data = vec![0; image.size().unwrap() as usize];
        image.read(0, &mut data).unwrap_or_else(|error| panic!("{what}: {key:?}: {error:?}"));
        image.close().unwrap();
        model.verify(&key, &data, what);
    }
    for (repo, name) in NAMES.iter().enumerate() {
        for id in store.list_images(name, &ListOptions::default()).unwrap() {
            assert!(model.images.contains_key(&(repo, id.to_string())), "{what}: {id} in {name} is nobody's");
        }
    }
    store.close().unwrap();
    for (moment, name) in judge::moments(scene).iter().zip(NAMES) {
        let mut violations = moment.violations(None);
        violations.retain(|told| !dead.iter().any(|host| told.starts_with(&format!("I10: {host} "))));
        assert!(violations.is_empty(), "{what}: in {name}: {violations:#?}");
        if !broken {
            moment.raw.nothing_left_over(&format!("{what}: {name}"));
        }
    }
}

#[test]
fn schedules() {
    let begun = Instant::now();
    let mut totals = BTreeMap::new();
    if let Ok(seed) = std::env::var("VDSMSTORE_SIM_SEED") {
        run(seed.parse().unwrap(), &mut totals);
        println!("{totals:?}");
        return;
    }
    let count = if long() > 0 { 1000 * long() } else { 150 };
    let first = if long() > 0 { mix(u64::from(std::process::id())) >> 20 } else { 1 };
    let mut failed = Vec::new();
    println!("VDSMSTORE_SIM_SEED={first} and {} after it", count - 1);
    for seed in first..first + count {
        // All that fail are told, not only the first.
        let one = std::panic::AssertUnwindSafe(|| run(seed, &mut totals));
        if std::panic::catch_unwind(one).is_err() {
            println!("failed: VDSMSTORE_SIM_SEED={seed}");
            failed.push(seed);
        }
    }
    println!("{count} schedules, {:.1} s: {totals:?}", begun.elapsed().as_secs_f64());
    assert!(failed.is_empty(), "{} seeds failed: {failed:?}", failed.len());
    for needed in [
        "death",
        CERTAIN_DEATH,
        "lost locks",
        "fault",
        "stale read",
        "write",
        "snapshot",
        "copy",
        "remove",
        "resize",
        "repair",
        "read",
    ] {
        assert!(totals.get(needed).is_some_and(|count| *count > 0), "{needed} never happened");
    }
}
