//! What a host does to the images of a scene, whichever it is, and what they may hold after that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use vdsmstore_core::id::ImageId;
use vdsmstore_core::options::{
    AutoFix, CheckOptions, CopyOptions, CreateOptions, ForceOptions, PrepareOptions, RemoveOptions,
    ResizeOptions, Strategy,
};
use vdsmstore_core::{ErrorKind, Result, Store};

use crate::judge::{self, Allowed, Model};
use crate::operation::Operation;
use crate::operations::REWRITES;
use crate::raw::text;
use crate::scene::{CLUSTER, NAMES, SIZE, Scene, read};
use crate::writing::{Written, rewritten, work};

/// Repository and id.
pub type Key = (usize, String);

/// An image of the scene; of one that is not there yet nobody says what it is.
#[derive(Clone, Debug)]
pub struct Known {
    key: Key,
    disk: Option<bool>,
}

/// The images that may be there: what a deed is done to.
pub fn images(scene: &Scene) -> Vec<Known> {
    let raw = [scene.raw(0), scene.raw(1)];
    let known = scene.wants.keys().map(|key| {
        let live = raw[key.0].images.get(&key.1).filter(|image| image["state"] == "live");
        Known { key: key.clone(), disk: live.map(|image| text(&image["kind"]) == "disk") }
    });
    known.collect()
}

/// Those of which something is another in the second scene: a record, or that of a volume that was theirs.
pub fn changed(before: &Scene, after: &Scene, images: &[Known]) -> Vec<Known> {
    let raws = [0, 1].map(|repo| [before.raw(repo), after.raw(repo)]);
    let is_changed = |known: &&Known| {
        let [before, after] = &raws[known.key.0];
        let id = &known.key.1;
        before.images.get(id) != after.images.get(id) || before.volume_of(id) != after.volume_of(id)
    };
    images.iter().filter(is_changed).cloned().collect()
}

/// Deeds that are done to the image of that key.
type Story = fn(&dyn Fn() -> Key) -> Vec<Deed>;

#[derive(Clone, Debug)]
pub enum Deed {
    /// All that a check lists.
    Fix,
    /// Every image is read.
    Read,
    /// Every disk is held and written; between two writes the other host goes on.
    Write,
    /// The operation of the scene.
    Same,
    Remove(Key),
    Snapshot(Key),
    /// A snapshot that is only announced.
    Announce(Key),
    /// The same, and the disk is read: what it holds before anybody may write it again, the snapshot holds for ever.
    #[allow(dead_code, reason = "of rows only")]
    Freeze(Key),
    CreateOn(Key),
    /// To the other repository.
    Copy(Key),
    /// It gets a volume of its own.
    Own(Key),
    Resize(Key, usize),
    /// Taken for a program outside, and given back; between the two the other host goes on.
    Prepare(Key),
    Tell(Key),
}

/// What a deed came to, as far as the model must know.
#[derive(Clone, Debug)]
pub enum Effect {
    Written(Written),
    Removed(Key, bool),
    /// The new one, what it was made of, whether the call returned, whether it may be made later.
    Made(Key, Key, bool, bool),
    Resized(Key, usize),
    Same(bool),
    Seen(Key, Vec<u8>),
    /// It never holds anything else.
    Kept(Key, Vec<u8>),
}

/// What a host needs for its deeds.
pub struct Doer<'a> {
    pub scene: &'a Scene,
    pub store: &'a Store,
    pub operation: &'static Operation,
    /// Set when the other host may go on.
    pub thaw: &'a AtomicBool,
}

impl Deed {
    /// `writes`: of all; otherwise only one that leaves the bytes of disks alone.
    pub fn choose(images: &[Known], chance: &mut dyn FnMut(u64) -> u64, writes: bool) -> Deed {
        if writes && chance(2) == 0 {
            return match chance(6) {
                0 | 1 => Deed::Fix,
                2 | 3 => Deed::Write,
                4 => Deed::Same,
                _ => Deed::Read,
            };
        }
        let Some(known) = images.get(chance(images.len().max(1) as u64) as usize) else { return Deed::Fix };
        let key = known.key.clone();
        match (known.disk, chance(9)) {
            (None, _) | (_, 0 | 1) => Deed::Remove(key),
            (_, 2) => Deed::Copy(key),
            (_, 3) => Deed::Own(key),
            (_, 4) => Deed::Prepare(key),
            (_, 5) if chance(3) == 0 => Deed::Tell(key),
            (_, 5) if !writes => Deed::Read,
            (Some(true), 5 | 6) => Deed::Snapshot(key),
            (Some(true), 7) => Deed::Announce(key),
            (Some(true), _) => Deed::Resize(key, SIZE + CLUSTER * (1 + chance(6) as usize)),
            (Some(false), _) => Deed::CreateOn(key),
        }
    }

    /// What follows from one another, done to one image.
    pub fn story(known: &Known, chance: &mut dyn FnMut(u64) -> u64) -> Vec<Deed> {
        let key = || known.key.clone();
        let mut pick = |stories: &[Story]| stories[chance(stories.len() as u64) as usize](&key);
        match known.disk {
            Some(true) => pick(&[
                |key| vec![Deed::Snapshot(key())],
                |key| vec![Deed::Snapshot(key()), Deed::Fix],
                |key| vec![Deed::Snapshot(key()), Deed::Snapshot(key())],
                |key| vec![Deed::Snapshot(key()), Deed::Write],
                |key| vec![Deed::Write, Deed::Snapshot(key())],
                |key| vec![Deed::Announce(key()), Deed::Fix],
                |key| vec![Deed::Announce(key()), Deed::Write],
                |key| vec![Deed::Remove(key())],
                |key| vec![Deed::Remove(key()), Deed::Fix],
                |key| vec![Deed::Resize(key(), SIZE + 3 * CLUSTER)],
                |key| vec![Deed::Resize(key(), SIZE + 3 * CLUSTER), Deed::Write],
                |key| vec![Deed::Own(key())],
                |key| vec![Deed::Own(key()), Deed::Write],
                |key| vec![Deed::Write, Deed::Own(key())],
                |key| vec![Deed::Prepare(key())],
                |key| vec![Deed::Copy(key())],
                |_| vec![Deed::Write],
                |_| vec![Deed::Write, Deed::Fix],
                |_| vec![Deed::Same, Deed::Write],
            ]),
            Some(false) => pick(&[
                |key| vec![Deed::CreateOn(key())],
                |key| vec![Deed::CreateOn(key()), Deed::Fix],
                |key| vec![Deed::CreateOn(key()), Deed::Write],
                |key| vec![Deed::Remove(key())],
                |key| vec![Deed::Remove(key()), Deed::Fix],
                |key| vec![Deed::Remove(key()), Deed::Fix, Deed::Write],
                |key| vec![Deed::Remove(key()), Deed::Same],
                |key| vec![Deed::Own(key())],
                |key| vec![Deed::Own(key()), Deed::Remove(key()), Deed::Fix],
                |key| vec![Deed::Copy(key())],
                |_| vec![Deed::Fix],
                |_| vec![Deed::Fix, Deed::Write],
            ]),
            None => pick(&[
                |key| vec![Deed::Remove(key())],
                |key| vec![Deed::Remove(key()), Deed::Fix],
                |key| vec![Deed::Remove(key()), Deed::Fix, Deed::Same],
                |key| vec![Deed::Remove(key()), Deed::Same],
                |key| vec![Deed::Fix, Deed::Remove(key()), Deed::Fix],
                |_| vec![Deed::Fix],
                |_| vec![Deed::Same],
                |_| vec![Deed::Same, Deed::Fix],
                |_| vec![Deed::Fix, Deed::Write],
                |_| vec![Deed::Fix, Deed::Same],
            ]),
        }
    }

    /// An error is what the host was answered; what it did until then counts.
    pub fn run(&self, doer: &Doer<'_>, effects: &mut Vec<Effect>) -> Result<()> {
        let Doer { scene, store, operation, thaw } = *doer;
        let new = ImageId::random().to_string();
        let made = CreateOptions { image_id: Some(new.clone()), ..CreateOptions::default() };
        match self {
            Deed::Fix => return fixes(store),
            Deed::Read => {
                for (key, _) in scene.wants.iter().filter(|(_, want)| !want.unfinished && !want.lost) {
                    match read(store, NAMES[key.0], &key.1) {
                        Ok(data) => effects.push(Effect::Seen(key.clone(), data)),
                        Err(error) if is_polite(error.kind()) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            Deed::Write => effects.push(Effect::Written(work(scene, store, thaw))),
            Deed::Same => {
                let outcome = (operation.run)(store, scene);
                effects.push(Effect::Same(outcome.is_ok()));
                return outcome;
            }
            Deed::Remove(key) => {
                let outcome = store.remove_image(NAMES[key.0], &key.1, &RemoveOptions::default());
                effects.push(Effect::Removed(key.clone(), outcome.is_ok()));
                store.run_tasks();
                return outcome;
            }
            Deed::Snapshot(key) | Deed::Announce(key) | Deed::Freeze(key) => {
                let off = !matches!(self, Deed::Snapshot(_));
                let auto_fix = if off { AutoFix::Off } else { made.auto_fix };
                let options = CreateOptions { auto_fix, ..made };
                let outcome = store.create_snapshot(NAMES[key.0], &key.1, r#"{"s":2}"#, &options);
                effects.push(Effect::Made((key.0, new.clone()), key.clone(), outcome.is_ok(), false));
                outcome?;
                if matches!(self, Deed::Freeze(_)) {
                    let data = read(store, NAMES[key.0], &key.1)?;
                    let frozen = &scene.raw(key.0).images[&key.1]["freeze"];
                    // Else it was completed meanwhile, and may have been written.
                    if frozen.as_array().is_some_and(|all| all.iter().any(|id| *id == *new)) {
                        effects.push(Effect::Kept((key.0, new), data));
                    }
                }
            }
            Deed::CreateOn(key) => {
                let outcome = store.create_virtual_disk(NAMES[key.0], None, Some(&key.1), "{}", &made);
                // Of a call that did not return, something may be left that others complete.
                effects.push(Effect::Made((key.0, new), key.clone(), outcome.is_ok(), outcome.is_err()));
                outcome?;
                // What it is on may have to be brought along.
                store.run_tasks();
            }
            Deed::Copy(key) => {
                let to = 1 - key.0;
                let options = CopyOptions { image_id: Some(new.clone()), ..CopyOptions::default() };
                let outcome = match store.copy_image(NAMES[to], &key.1, None, "{}", &options) {
                    // A snapshot keeps its id.
                    Err(error) if error.kind() == ErrorKind::InvalidParameter => {
                        store.copy_image(NAMES[to], &key.1, None, "{}", &CopyOptions::default())
                    }
                    outcome => outcome,
                };
                let id = outcome.as_ref().map_or(new, ToString::to_string);
                effects.push(Effect::Made((to, id), key.clone(), outcome.is_ok(), true));
                outcome?;
                store.run_tasks();
            }
            Deed::Own(key) => {
                store.set_image_strategy(NAMES[key.0], &key.1, Strategy::Performance)?;
                return fixes(store);
            }
            Deed::Resize(key, size) => {
                let size = *size;
                store.resize_virtual_disk(NAMES[key.0], &key.1, size as i64, &ResizeOptions::default())?;
                effects.push(Effect::Resized(key.clone(), size));
            }
            Deed::Prepare(key) => {
                let repo = NAMES[key.0];
                let writable = PrepareOptions::default();
                match store.prepare_image(repo, &key.1, &writable) {
                    Err(error) if error.kind() == ErrorKind::ReadOnlyImage => {
                        store.prepare_image(repo, &key.1, &PrepareOptions { read_only: true })?;
                    }
                    outcome => drop(outcome?),
                }
                thaw.store(true, Ordering::Relaxed);
                store.teardown_image(repo, &key.1, &ForceOptions::default())?;
            }
            Deed::Tell(key) => store.set_image_user_data(NAMES[key.0], &key.1, r#"{"told":1}"#)?,
        }
        Ok(())
    }
}

/// What a host may be answered because of what another one does, or did.
pub fn is_polite(kind: ErrorKind) -> bool {
    judge::is_polite(kind) || matches!(kind, ErrorKind::ImageExists | ErrorKind::InvalidSize)
}

/// All fixes, in rounds; one that is refused is listed again, or not.
fn fixes(store: &Store) -> Result<()> {
    for _ in 0..4 {
        let mut done = false;
        for (repo, name) in NAMES.iter().enumerate() {
            for fix in store.check_storage_repository(name, &CheckOptions::default())? {
                match judge::fix(store, repo, &fix) {
                    Ok(()) => done = true,
                    Err(error) if is_polite(error.kind()) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        if !done {
            break;
        }
    }
    Ok(())
}

/// What the images may be after the deeds of hosts.
pub struct Outlook {
    pub model: Model,
    /// What each image may have held at any time.
    ever: BTreeMap<Key, Vec<Vec<u8>>>,
    /// How long a disk is at least.
    sizes: BTreeMap<Key, usize>,
    seen: Vec<(Key, Vec<u8>)>,
}

impl Outlook {
    /// `returned`: the operation was run and came back; None: it was not run. The effects of each host in their order;
    /// how those of several mix is not known.
    pub fn new(
        start: &Scene,
        operation: &'static Operation,
        returned: Option<bool>,
        effects: &[Vec<Effect>],
    ) -> Outlook {
        let all = || effects.iter().flatten();
        let returned_too = all().any(|effect| matches!(effect, Effect::Same(true)));
        let run = returned.is_some() || all().any(|effect| matches!(effect, Effect::Same(_)));
        let mut model = judge::model(start, &[(operation, returned == Some(true) || returned_too)]);
        if !run {
            let raw = [start.raw(0), start.raw(1)];
            for ((repo, id), allowed) in &mut model {
                let live = raw[*repo].images.get(id).is_some_and(|image| image["state"] == "live");
                allowed.absent &= !live;
            }
        }
        let removed: BTreeSet<Key> = all()
            .filter_map(|effect| if let Effect::Removed(key, _) = effect { Some(key.clone()) } else { None })
            .chain(model.iter().filter(|(_, allowed)| allowed.absent).map(|(key, _)| key.clone()))
            .collect();
        if all().any(|effect| matches!(effect, Effect::Removed(..))) {
            for allowed in model.values_mut().filter(|allowed| allowed.unfinished) {
                allowed.lost = true;
            }
        }
        let ever = model.iter().map(|(key, allowed)| (key.clone(), allowed.data.clone())).collect();
        let mut outlook = Outlook { model, ever, sizes: BTreeMap::new(), seen: Vec::new() };
        for effect in all() {
            outlook.apply(start, effect, &removed);
        }
        for effect in all() {
            let Effect::Kept(key, data) = effect else { continue };
            if let Some(allowed) = outlook.model.get_mut(key) {
                allowed.data = vec![data.clone()];
            }
        }
        // What was removed may have been made once more, from what it was made from at first.
        for key in removed.iter().filter(|_| all().any(|effect| matches!(effect, Effect::Same(_)))) {
            let (Some(allowed), Some(want)) = (outlook.model.get_mut(key), start.wants.get(key)) else {
                continue;
            };
            if want.unfinished {
                allowed.data.push(want.data.clone());
                outlook.ever.entry(key.clone()).or_default().push(want.data.clone());
            }
        }
        if run && operation.name == REWRITES {
            // Beside another host that writes, either may be the last.
            for (key, want) in start.wants.iter().filter(|(_, want)| !want.unfinished) {
                let Some(allowed) = outlook.model.get_mut(key) else { continue };
                allowed.data.push(want.data.clone());
                outlook.ever.entry(key.clone()).or_default().push(want.data.clone());
            }
        }
        outlook
    }

    fn apply(&mut self, start: &Scene, effect: &Effect, removed: &BTreeSet<Key>) {
        match effect {
            Effect::Same(_) | Effect::Kept(..) => {}
            Effect::Seen(key, data) => self.seen.push((key.clone(), data.clone())),
            Effect::Resized(key, size) => {
                let least = self.sizes.entry(key.clone()).or_default();
                *least = (*least).max(*size);
            }
            Effect::Written(written) => {
                for (repo, id, states) in written {
                    rewritten(&mut self.model, *repo, id, states);
                    self.ever.entry((*repo, id.clone())).or_default().extend_from_slice(states);
                }
            }
            Effect::Removed(key, returned) => {
                // What the operation makes may be made after it was removed.
                let made = start.wants.get(key).is_some_and(|want| want.unfinished);
                if let Some(allowed) = self.model.get_mut(key) {
                    allowed.absent = true;
                    allowed.gone |= *returned && !made;
                }
            }
            Effect::Made(key, of, returned, later) => {
                let data = if *later { self.ever.get(of) } else { self.model.get(of).map(|of| &of.data) };
                let data = data.cloned().unwrap_or_default();
                self.ever.entry(key.clone()).or_default().extend_from_slice(&data);
                let unfinished = self.model.get(of).is_some_and(|of| of.unfinished);
                // What storage lost and nobody wants any more is not brought back for what is built on it.
                let lost = (*later || unfinished) && removed.contains(of);
                if let Some(of) = self.model.get_mut(of) {
                    // A base that was removed is brought along from where it still is.
                    of.absent |= of.gone;
                    of.unfinished |= of.absent;
                    of.gone = false;
                }
                if let Some(allowed) = self.model.get_mut(key) {
                    // It was there, or was brought back.
                    allowed.absent |= allowed.gone;
                    (allowed.gone, allowed.unfinished) = (false, true);
                    allowed.lost |= lost;
                    return;
                }
                let new = Allowed { data, absent: !returned, gone: false, unfinished: true, lost };
                self.model.insert(key.clone(), new);
            }
        }
    }

    /// Whether disks are as long as they were made, and what was read was there at some time.
    pub fn hold(&self, store: &Store, what: &str) {
        for ((repo, id), least) in &self.sizes {
            let Ok(image) = store.open_image(NAMES[*repo], id, false) else { continue };
            let size = image.size().unwrap() as usize;
            image.close().unwrap();
            assert!(size >= *least, "{what}: {id} in {} has {size} bytes, not {least}", NAMES[*repo]);
        }
        for (key, data) in &self.seen {
            let Some(ever) = self.ever.get(key) else { continue };
            assert!(
                ever.iter().any(|held| judge::same(data, held)),
                "{what}: {key:?} was read, and never held that"
            );
        }
    }
}
