//! A simulated repository on simulated hosts, for crash tests.
//!
//! Every change of a record, marker, progress, blob or object is two steps of the host's [`Power`]: visible to
//! everybody, then durable; a removal of what is garbage anyway is one, durable with the host's next durable change.
//! Writes and flushes of objects are steps of the same power. So "cut after n steps" stops a host after each single
//! thing that it does, and [`SimWorld::crash`] decides what of the rest has happened.

mod driver;
mod state;
mod volume;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;
use vdsmstore_io::device::sim::Power;

use crate::id::{BlobId, ImageId, Incarnation, VolumeId};
use crate::machine;
use crate::repository::{Driver, Generation, HostIdentity, Liveness, Marker, QemuUse, RecordKey};
use driver::SimDriver;
use state::{Name, Node, State};

pub use state::Unknown;

/// What kind of storage is simulated.
#[derive(Clone, Copy, Debug)]
pub struct SimOptions {
    /// Volumes can be cloned.
    pub reflink: bool,
    /// Volumes are copied by the server.
    pub server_copies: bool,
    /// What is said of a host that crashed.
    pub death: Liveness,
    /// Several hosts may use it at once; else only processes of one.
    pub several_hosts: bool,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self { reflink: false, server_copies: false, death: Liveness::CertainlyDead, several_hosts: true }
    }
}

#[derive(Debug)]
struct World {
    options: SimOptions,
    nonce: Uuid,
    state: Mutex<State>,
}

impl World {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A repository and all hosts that use it. Clones are the same world; see [`SimWorld::snapshot`] for another one.
#[derive(Clone, Debug)]
pub struct SimWorld(Arc<World>);

impl SimWorld {
    /// An empty repository.
    pub fn new(options: SimOptions) -> Self {
        Self(Arc::new(World { options, nonce: machine::random_uuid(), state: Mutex::default() }))
    }

    /// A store on a host of its own connects.
    pub fn connect(&self, host: HostIdentity) -> Arc<dyn Driver> {
        Arc::new(SimDriver::new(&self.0, host))
    }

    /// The power supply of a store's host; may be asked for before it connects.
    pub fn power(&self, host: Incarnation) -> Arc<Power> {
        self.0.state().power(host)
    }

    /// The host of that store loses power: its locks are gone, and every change of it that was not durable (a name,
    /// a sector) is kept or lost as `keep` says, names first, in an order that only depends on the world.
    pub fn crash(&self, host: Incarnation, keep: &mut dyn FnMut() -> bool) {
        self.0.state().crash(host, keep);
    }

    /// A world of its own that is equal to this one now, but that what was written to objects is durable there. Its
    /// hosts hold their locks until they are crashed there; this world's drivers do not reach it.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        let World { options, nonce, .. } = *self.0;
        Self(Arc::new(World { options, nonce, state: Mutex::new(self.0.state().duplicate(true)) }))
    }

    /// The same, but that nothing is durable there that is not here.
    #[must_use]
    pub fn fork(&self) -> Self {
        let World { options, nonce, .. } = *self.0;
        Self(Arc::new(World { options, nonce, state: Mutex::new(self.0.state().duplicate(false)) }))
    }

    /// The host of that store loses all its locks, and is not told. `fenced`: what it has open fails from now on, as with
    /// storage that knows the lock; otherwise what it still writes arrives.
    pub fn revoke(&self, host: Incarnation, fenced: bool) {
        self.0.state().revoke(host, fenced);
    }

    /// Writes that reached bytes of somebody else, by the records of their moment; only those of scheduled hosts.
    pub fn trespasses(&self) -> Vec<String> {
        self.0.state().trespasses.clone()
    }

    /// Whether the store's host holds any lock.
    pub fn holds_locks(&self, host: Incarnation) -> bool {
        self.0.state().holds_locks(host)
    }

    /// The generation of every record that ever was.
    pub fn generations(&self) -> Vec<(RecordKey, Generation)> {
        self.collect(|name, node| match (name, node) {
            (Name::Record(key), Node::Record { generation, .. }) => Some((key, *generation)),
            _ => None,
        })
    }

    /// What is said of the store from now on, whatever is true.
    pub fn set_liveness(&self, host: Incarnation, said: Liveness) {
        if let Some(host) = self.0.state().hosts.get_mut(&host) {
            host.said = Some(said);
        }
    }

    /// The store has left in order, as by a close.
    pub fn forget(&self, host: Incarnation) {
        self.0.state().hosts.remove(&host);
    }

    /// How often [`SimWorld::crash`] of that host would ask now what to keep.
    pub fn unflushed(&self, host: Incarnation) -> usize {
        self.0.state().unflushed(host)
    }

    /// A hash of all that would survive if all hosts lost power and nothing was kept.
    pub fn digest(&self) -> u64 {
        self.0.state().digest()
    }

    /// The put after `puts` others, by whatever host, will answer that its outcome is unknown.
    pub fn inject_unknown(&self, puts: u64, outcome: Unknown) {
        self.0.state().unknown = Some((puts, outcome));
    }

    /// Whether there was no such put yet.
    pub fn awaits_unknown(&self) -> bool {
        self.0.state().unknown.is_some()
    }

    /// From now on, relaxed reads and lists of scheduled hosts may return what was there before another host changed it
    /// lately; by chance, which this number begins. None: no more.
    pub fn set_stale(&self, chance: Option<u64>) {
        self.0.state().set_stale(chance);
    }

    /// How many did.
    pub fn stale_reads(&self) -> u64 {
        self.0.state().stale_reads()
    }

    /// What QEMU processes do with a volume from now on.
    pub fn set_qemu(&self, volume: VolumeId, qemu: QemuUse) {
        self.0.state().qemu.insert(volume, qemu);
    }

    /// All records that exist, deleted ones not.
    pub fn records(&self) -> Vec<RecordKey> {
        self.collect(|name, node| match (name, node) {
            (Name::Record(key), Node::Record { bytes: Some(_), .. }) => Some(key),
            _ => None,
        })
    }

    /// All markers.
    pub fn markers(&self) -> Vec<Marker> {
        self.collect(|name, _| match name {
            Name::Child(image, volume) => Some(Marker::Child(image, volume)),
            Name::Holder(volume, image) => Some(Marker::Holder(volume, image)),
            _ => None,
        })
    }

    /// All blobs.
    pub fn blobs(&self) -> Vec<(ImageId, BlobId)> {
        self.collect(|name, _| if let Name::Blob(image, blob) = name { Some((image, blob)) } else { None })
    }

    /// All data objects.
    pub fn objects(&self) -> Vec<VolumeId> {
        self.collect(|name, _| if let Name::Object(volume) = name { Some(volume) } else { None })
    }

    /// The bytes of a data object as everybody sees them.
    pub fn bytes(&self, volume: VolumeId) -> Option<Vec<u8>> {
        match self.0.state().visible(Name::Object(volume)) {
            Some(Node::Object(storage)) => Some(storage.bytes()),
            _ => None,
        }
    }

    /// The bytes of a data object that would survive if all hosts lost power.
    pub fn durable_bytes(&self, volume: VolumeId) -> Option<Vec<u8>> {
        match self.0.state().visible(Name::Object(volume)) {
            Some(Node::Object(storage)) => Some(storage.after_cut(&mut |_| false).bytes()),
            _ => None,
        }
    }

    fn collect<T>(&self, mut pick: impl FnMut(Name, &Node) -> Option<T>) -> Vec<T> {
        self.0.state().names().filter_map(|(name, node)| pick(name, node)).collect()
    }
}
