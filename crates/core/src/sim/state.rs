//! What the simulated storage holds: what everybody sees, and what of it survives a power cut.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use serde_json::Value;
use vdsmstore_io::device::sim::hosts::{self, mix};
use vdsmstore_io::device::sim::{Power, SimDevice, SimStorage};
use vdsmstore_io::{Device as _, DeviceId};

use crate::id::{BlobId, ImageId, Incarnation, VolumeId};
use crate::repository::{
    Access, Generation, HostIdentity, HostRecord, Liveness, Marker, QemuUse, Read, RecordKey,
};

/// Everything that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Name {
    Record(RecordKey),
    Child(ImageId, VolumeId),
    Holder(VolumeId, ImageId),
    Progress(ImageId),
    Blob(ImageId, BlobId),
    Object(VolumeId),
}

impl From<Marker> for Name {
    fn from(marker: Marker) -> Self {
        match marker {
            Marker::Child(image, volume) => Name::Child(image, volume),
            Marker::Holder(volume, image) => Name::Holder(volume, image),
        }
    }
}

/// With `VDSMSTORE_SIM_TRACE` in the environment every change of a name is printed.
fn trace(by: Incarnation, name: Name, node: Option<&Node>) {
    static WANTED: LazyLock<bool> = LazyLock::new(|| std::env::var_os("VDSMSTORE_SIM_TRACE").is_some());
    if !*WANTED {
        return;
    }
    let text = match node {
        None => "is removed".to_owned(),
        Some(Node::Record { generation, bytes: None }) => format!("{generation}: a tombstone"),
        Some(Node::Record { generation, bytes: Some(bytes) }) => {
            format!("{generation}: {}", String::from_utf8_lossy(bytes))
        }
        Some(_) => "is there".to_owned(),
    };
    println!("{by}: {name:?} {text}");
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// `bytes` None: deleted.
    Record {
        generation: Generation,
        bytes: Option<Vec<u8>>,
    },
    Marker,
    Bytes(Vec<u8>),
    Object(Arc<SimStorage>),
}

/// The history of one name since it was last durable.
#[derive(Clone, Debug, Default)]
struct Slot {
    durable: Option<Node>,
    /// In order, each with the host that changed it.
    pending: Vec<(Incarnation, Option<Node>)>,
}

impl Slot {
    fn visible(&self) -> Option<&Node> {
        self.pending.last().map_or(self.durable.as_ref(), |(_, node)| node.as_ref())
    }
}

/// What is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Locked {
    Image(ImageId),
    /// Whether alone.
    Use(ImageId, bool),
    Volume(VolumeId, Access),
}

impl Locked {
    fn collides(self, other: Locked) -> bool {
        let shared = |access| matches!(access, Access::Read | Access::ReadStill);
        match (self, other) {
            (Locked::Image(a), Locked::Image(b)) => a == b,
            (Locked::Use(a, mine), Locked::Use(b, theirs)) => a == b && (mine || theirs),
            (Locked::Volume(a, mine), Locked::Volume(b, theirs)) => {
                let moment = mine == Access::Moment || theirs == Access::Moment;
                a == b && !moment && !(shared(mine) && shared(theirs))
            }
            _ => false,
        }
    }
}

#[derive(Clone, Debug)]
struct Lock {
    token: u64,
    holder: Incarnation,
    what: Locked,
    /// What is open under it fails once this is set.
    fence: Arc<AtomicBool>,
}

/// What a relaxed read may still return: changes that others made since are at most so many, in the whole repository.
const RECENT: u64 = 32;

/// What was visible of a record before its last change.
#[derive(Clone, Debug)]
struct Former {
    node: Option<Node>,
    /// Who changed it, and as the how many-th change of all.
    by: Incarnation,
    at: u64,
}

/// Relaxed reads that return what was there before.
#[derive(Clone, Debug, Default)]
struct Stale {
    /// Says whether the next one does; None: never.
    chance: Option<u64>,
    changes: u64,
    former: BTreeMap<RecordKey, Former>,
    /// The generations that a host knows of: it sees none that is older.
    known: BTreeMap<(Incarnation, RecordKey), Generation>,
    happened: u64,
}

/// What becomes of a put whose outcome the storage does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Nothing.
    Lost,
    /// It is done.
    Done,
    /// It is done, and another host has put the record once more since.
    BuiltUpon,
}

/// A registered store.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) identity: HostIdentity,
    pub(super) alive: bool,
    /// What is said of it, whatever is true.
    pub(super) said: Option<Liveness>,
}

impl Host {
    /// What it says of itself.
    pub(super) fn record(&self) -> HostRecord {
        HostRecord { host_id: self.identity.host_id.clone(), boot_id: self.identity.boot_id.clone() }
    }
}

/// All of a world.
#[derive(Debug, Default)]
pub(super) struct State {
    slots: BTreeMap<Name, Slot>,
    /// Names whose slot has something pending.
    dirty: BTreeSet<Name>,
    locks: Vec<Lock>,
    pub(super) hosts: BTreeMap<Incarnation, Host>,
    powers: BTreeMap<Incarnation, Arc<Power>>,
    /// Who opened an object for writing last: whose power cut loses what is not flushed.
    pub(super) writers: BTreeMap<DeviceId, Incarnation>,
    pub(super) qemu: BTreeMap<VolumeId, QemuUse>,
    /// The put that many puts from now has an unknown outcome.
    pub(super) unknown: Option<(u64, Unknown)>,
    /// Writes that reached bytes that were somebody else's.
    pub(super) trespasses: Vec<String>,
    stale: Stale,
    /// For lock tokens and objects.
    counter: u64,
}

fn generation(node: Option<&Node>) -> Generation {
    if let Some(Node::Record { generation, .. }) = node { *generation } else { 0 }
}

impl State {
    pub(super) fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// Made when first asked for, so that a cut can be planned before the host connects.
    pub(super) fn power(&mut self, host: Incarnation) -> Arc<Power> {
        self.powers.entry(host).or_default().clone()
    }

    pub(super) fn visible(&self, name: Name) -> Option<&Node> {
        self.slots.get(&name)?.visible()
    }

    /// All names that are visible, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = (Name, &Node)> {
        self.slots.iter().filter_map(|(name, slot)| Some((*name, slot.visible()?)))
    }

    /// Everybody sees it from now on; durable it is not.
    pub(super) fn change(&mut self, by: Incarnation, name: Name, node: Option<Node>) {
        trace(by, name, node.as_ref());
        if let (Name::Record(key), Some(_)) = (name, self.stale.chance) {
            let former = self.visible(name).cloned();
            self.stale.changes += 1;
            self.stale.former.insert(key, Former { node: former, by, at: self.stale.changes });
            self.stale.known.insert((by, key), generation(node.as_ref()));
        }
        self.slots.entry(name).or_default().pending.push((by, node));
        self.dirty.insert(name);
    }

    /// From now on relaxed reads and lists of scheduled hosts may miss what others changed lately; None: no more.
    pub(super) fn set_stale(&mut self, chance: Option<u64>) {
        self.stale = Stale { chance, happened: self.stale.happened, ..Stale::default() };
    }

    /// How many did.
    pub(super) fn stale_reads(&self) -> u64 {
        self.stale.happened
    }

    /// The record as that host sees it.
    pub(super) fn record(&mut self, by: Incarnation, key: RecordKey, read: Read) -> Option<Node> {
        if read == Read::Relaxed && self.misses(by, key) {
            self.stale.happened += 1;
            return self.stale.former.get(&key)?.node.clone();
        }
        let node = self.visible(Name::Record(key)).cloned();
        if self.stale.chance.is_some() {
            self.stale.known.insert((by, key), generation(node.as_ref()));
        }
        node
    }

    /// Whether the host has not noticed yet that another one changed the record.
    fn misses(&mut self, by: Incarnation, key: RecordKey) -> bool {
        let Some(chance) = self.stale.chance.filter(|_| hosts::is_host()).map(mix) else { return false };
        self.stale.chance = Some(chance);
        let known = self.stale.known.get(&(by, key)).copied().unwrap_or(0);
        self.stale.former.get(&key).is_some_and(|former| {
            former.by != by
                && self.stale.changes - former.at < RECENT
                && generation(former.node.as_ref()) >= known
                && chance.is_multiple_of(2)
        })
    }

    /// What is visible under the name becomes durable.
    pub(super) fn sync(&mut self, name: Name) {
        self.dirty.remove(&name);
        let Some(slot) = self.slots.get_mut(&name) else { return };
        if let Some((_, node)) = slot.pending.drain(..).next_back() {
            slot.durable = node;
        }
        if slot.durable.is_none() {
            self.slots.remove(&name);
        }
    }

    /// The same, and with it what that host has merely removed before.
    pub(super) fn sync_all_of(&mut self, by: Incarnation, name: Name) {
        let removed = |name: &Name| {
            let last = self.slots.get(name).and_then(|slot| slot.pending.last());
            last.is_some_and(|(host, node)| *host == by && node.is_none())
        };
        for name in self.dirty.iter().copied().filter(removed).chain([name]).collect::<Vec<_>>() {
            self.sync(name);
        }
    }

    /// The token of the lock, if nobody has one that collides.
    pub(super) fn lock(&mut self, holder: Incarnation, what: Locked) -> Option<(u64, Arc<AtomicBool>)> {
        if self.locks.iter().any(|lock| lock.what.collides(what)) {
            return None;
        }
        let token = self.next();
        let fence = Arc::<AtomicBool>::default();
        self.locks.push(Lock { token, holder, what, fence: fence.clone() });
        Some((token, fence))
    }

    pub(super) fn unlock(&mut self, token: u64) {
        self.locks.retain(|lock| lock.token != token);
    }

    pub(super) fn is_locked(&self, token: u64) -> bool {
        self.locks.iter().any(|lock| lock.token == token)
    }

    /// The host loses all its locks and is not told. `fenced`: what it opened under them fails from now on.
    pub(super) fn revoke(&mut self, host: Incarnation, fenced: bool) {
        for lock in self.locks.extract_if(.., |lock| lock.holder == host) {
            lock.fence.store(fenced, Ordering::Release);
        }
    }

    /// Whether the host holds any lock.
    pub(super) fn holds_locks(&self, host: Incarnation) -> bool {
        self.locks.iter().any(|lock| lock.holder == host)
    }

    /// Judges a write that arrived by the records as they are: a volume is written by who fills it, or has said that he
    /// writes into it, or holds the image on it. What no record needs anybody may write.
    pub(super) fn note_write(&mut self, by: Incarnation, volume: VolumeId) {
        let document = |key| match self.visible(Name::Record(key)) {
            Some(Node::Record { bytes: Some(bytes), .. }) => serde_json::from_slice::<Value>(bytes).ok(),
            _ => None,
        };
        let Some(record) = document(RecordKey::Volume(volume)) else { return };
        let (me, id) = (by.to_string(), volume.to_string());
        let holders = self.names().filter_map(|(name, _)| match name {
            Name::Record(key @ RecordKey::Image(_)) => document(key),
            _ => None,
        });
        let on_it = |image: &Value| image["volume"] == *id || image["next"] == *id;
        let holders: Vec<Value> = holders.filter(on_it).collect();
        let mine = match record["state"].as_str() {
            Some("filling") => record["owner"]["incarnation"] == *me,
            Some("ready") => {
                record["writer"] == *me || holders.iter().any(|image| image["open"]["incarnation"] == *me)
            }
            _ => true,
        };
        if !mine && !holders.is_empty() {
            self.trespasses.push(format!("{me} wrote volume {id}: {record}, on it {holders:?}"));
        }
    }

    /// Changes of the host that are not durable.
    pub(super) fn unflushed(&self, host: Incarnation) -> usize {
        let names = self.slots.values().flat_map(|slot| &slot.pending).filter(|(by, _)| *by == host).count();
        let objects = self.objects();
        let mine = objects.iter().filter(|(id, _)| self.writers.get(id) == Some(&host));
        names + mine.map(|(_, storage)| storage.pending()).sum::<usize>()
    }

    /// All objects that are visible or durable.
    fn objects(&self) -> BTreeMap<DeviceId, Arc<SimStorage>> {
        let mut objects = BTreeMap::new();
        for slot in self.slots.values() {
            for node in slot.pending.iter().filter_map(|(_, node)| node.as_ref()).chain(&slot.durable) {
                if let Node::Object(storage) = node {
                    objects.insert(id(storage), storage.clone());
                }
            }
        }
        objects
    }

    /// A hash of all that is durable.
    pub(super) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (name, slot) in &self.slots {
            match &slot.durable {
                None => {}
                Some(Node::Record { generation, bytes }) => (name, generation, bytes).hash(&mut hasher),
                Some(Node::Marker) => name.hash(&mut hasher),
                Some(Node::Bytes(bytes)) => (name, bytes).hash(&mut hasher),
                Some(Node::Object(storage)) => {
                    name.hash(&mut hasher);
                    storage.hash_durable(&mut hasher);
                }
            }
        }
        hasher.finish()
    }

    /// The host is gone, and with each of its changes what `keep` does not keep.
    pub(super) fn crash(&mut self, host: Incarnation, keep: &mut dyn FnMut() -> bool) {
        self.power(host).cut();
        self.locks.retain(|lock| lock.holder != host);
        if let Some(host) = self.hosts.get_mut(&host) {
            host.alive = false;
        }
        let objects = self.objects();
        for name in std::mem::take(&mut self.dirty) {
            let Some(slot) = self.slots.get_mut(&name) else { continue };
            let mut left = Vec::new();
            for (by, node) in std::mem::take(&mut slot.pending) {
                if by != host {
                    left.push((by, node));
                } else if keep() {
                    // With it everything that was under it.
                    left.clear();
                    slot.durable = node;
                }
            }
            slot.pending = left;
            if !slot.pending.is_empty() {
                self.dirty.insert(name);
            } else if slot.durable.is_none() {
                self.slots.remove(&name);
            }
        }
        for (id, storage) in objects {
            if self.writers.get(&id) == Some(&host) {
                storage.crash(keep);
            }
        }
    }

    /// A world of its own that is equal to this one.
    pub(super) fn duplicate(&self, settled: bool) -> State {
        let mut copies = BTreeMap::new();
        let mut copy = |node: &Node| match node {
            Node::Object(storage) => {
                Node::Object(copies.entry(id(storage)).or_insert_with(|| duplicate(storage, settled)).clone())
            }
            node => node.clone(),
        };
        let mut slots = BTreeMap::new();
        for (name, slot) in &self.slots {
            let pending = slot.pending.iter().map(|(by, node)| (*by, node.as_ref().map(&mut copy))).collect();
            let durable = slot.durable.as_ref().map(&mut copy);
            slots.insert(*name, Slot { durable, pending });
        }
        let powers = self.powers.iter().map(|(host, power)| {
            let copy = Power::new();
            if power.is_off() {
                copy.cut();
            }
            (*host, copy)
        });
        State {
            slots,
            dirty: self.dirty.clone(),
            locks: self.locks.iter().map(|lock| Lock { fence: Arc::default(), ..lock.clone() }).collect(),
            hosts: self.hosts.clone(),
            powers: powers.collect(),
            writers: self.writers.clone(),
            qemu: self.qemu.clone(),
            unknown: self.unknown,
            trespasses: self.trespasses.clone(),
            stale: Stale::default(),
            counter: self.counter,
        }
    }
}

/// The identity of an object.
pub(super) fn id(storage: &Arc<SimStorage>) -> DeviceId {
    SimDevice::new(storage.clone(), Power::new(), String::new(), false).id()
}

/// `settled`: what is written is taken for flushed.
fn duplicate(storage: &Arc<SimStorage>, settled: bool) -> Arc<SimStorage> {
    let copy = storage.duplicate();
    if settled {
        copy.settle();
    }
    copy
}
