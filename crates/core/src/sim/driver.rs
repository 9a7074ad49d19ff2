//! The driver of one simulated host.

use std::any::Any;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};

use serde_json::Value;
use uuid::Uuid;
use vdsmstore_io::device::sim::hosts::Act;
use vdsmstore_io::device::sim::{Power, SimDevice, SimStorage};
use vdsmstore_io::{Device as _, without};

use super::World;
use super::state::{Host, Locked, Name, Node, State, Unknown, id};
use super::volume::{Held, LockedDevice};
use crate::id::{BlobId, ImageId, Incarnation, VolumeId};
use crate::repository::{
    Access, Capabilities, CopyOnWrite, Driver, Generation, Guard, HostIdentity, HostRecord, Liveness, Marker,
    OpenVolume, Put, QemuUse, Read, RecordKey, RecordKind, Usage, Versioned, shard_of,
};
use crate::{Error, ErrorKind, Result};

/// Files of this many bytes in all fit in; nobody counts them.
const CAPACITY: u64 = 1 << 40;
/// Bytes of the registration of a store.
const REGISTRATION: u64 = 4096;

#[derive(Debug)]
pub(super) struct SimDriver {
    world: Arc<World>,
    host: HostIdentity,
    power: Arc<Power>,
    closed: AtomicBool,
}

/// What a compare-and-set puts: None deletes.
type Content<'a> = Option<&'a [u8]>;

impl SimDriver {
    pub(super) fn new(world: &Arc<World>, host: HostIdentity) -> Self {
        let mut state = world.state();
        state.hosts.insert(host.incarnation, Host { identity: host.clone(), alive: true, said: None });
        let power = state.power(host.incarnation);
        drop(state);
        Self { world: world.clone(), host, power, closed: AtomicBool::new(false) }
    }

    fn me(&self) -> Incarnation {
        self.host.incarnation
    }

    /// The world, if this host can still reach it, to look at something: a step.
    fn enter(&self) -> Result<MutexGuard<'_, State>> {
        self.power.check(Act::Read)?;
        self.reach()
    }

    /// The same to change something.
    fn begin(&self, act: Act) -> Result<MutexGuard<'_, State>> {
        self.power.step(act)?;
        self.reach()
    }

    fn reach(&self) -> Result<MutexGuard<'_, State>> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "the connection is closed"));
        }
        Ok(self.world.state())
    }

    /// Makes the name of an object, under its lock.
    fn create(&self, volume: VolumeId, storage: &Arc<SimStorage>, lock: &Held) -> Result<()> {
        let name = Name::Object(volume);
        let mut state = self.begin(Act::Name)?;
        lock.ensure_held(&state)?;
        state.change(self.me(), name, Some(Node::Object(storage.clone())));
        drop(state);
        self.sync(name)
    }

    /// Visible is one step, durable the next.
    fn change(&self, name: Name, node: Option<Node>) -> Result<()> {
        self.begin(Act::Name)?.change(self.me(), name, node);
        self.sync(name)
    }

    fn sync(&self, name: Name) -> Result<()> {
        let mut state = self.begin(Act::Sync)?;
        let skipped = match name {
            Name::Record(_) => without!("driver.flush.record"),
            Name::Child(..) => without!("driver.flush.child"),
            Name::Holder(..) => without!("driver.flush.holder"),
            Name::Progress(_) => without!("driver.flush.progress"),
            Name::Blob(..) => without!("driver.flush.blob"),
            Name::Object(_) => without!("driver.flush.object"),
        };
        if !skipped {
            state.sync_all_of(self.me(), name);
        }
        Ok(())
    }

    /// One step; durable with the next change.
    fn remove(&self, name: Name) -> Result<()> {
        if self.enter()?.visible(name).is_some() {
            self.begin(Act::Name)?.change(self.me(), name, None);
        }
        Ok(())
    }

    fn compare_and_set(
        &self,
        key: RecordKey,
        fits: impl Fn(Generation, bool) -> bool,
        content: Content<'_>,
    ) -> Result<Put> {
        let mut state = self.begin(Act::Record)?;
        let unknown = match state.unknown {
            Some((0, outcome)) => {
                state.unknown = None;
                Some(outcome)
            }
            Some((puts, outcome)) => {
                state.unknown = Some((puts - 1, outcome));
                None
            }
            None => None,
        };
        if unknown == Some(Unknown::Lost) {
            return Ok(Put::Unknown);
        }
        let name = Name::Record(key);
        let (generation, exists) = match state.visible(name) {
            Some(Node::Record { generation, bytes }) => (*generation, bytes.is_some()),
            _ => (0, false),
        };
        if !fits(generation, exists) && !without!("driver.compare") {
            return Ok(Put::Conflict);
        }
        let generation = generation + 1;
        let node = Node::Record { generation, bytes: content.map(<[u8]>::to_vec) };
        state.change(self.me(), name, Some(node));
        drop(state);
        self.sync(name)?;
        if let (Some(Unknown::BuiltUpon), Some(bytes)) = (unknown, content)
            && let Some(bytes) = put_once_more(bytes)
        {
            let node = Node::Record { generation: generation + 1, bytes: Some(bytes) };
            self.change(name, Some(node))?;
        }
        Ok(if unknown.is_some() { Put::Unknown } else { Put::Done(generation) })
    }

    fn lock(&self, what: Locked) -> Result<Option<Held>> {
        self.power.check(Act::Lock)?;
        let mut state = self.reach()?;
        let pretended = match what {
            Locked::Image(_) => without!("driver.lock.image"),
            Locked::Use(..) => without!("driver.lock.use"),
            Locked::Volume(_, Access::Write) => without!("driver.lock.write"),
            Locked::Volume(_, Access::Lease) => without!("driver.lock.lease"),
            Locked::Volume(..) => without!("driver.lock.read"),
        };
        let token =
            if pretended { Some((state.next(), Arc::default())) } else { state.lock(self.me(), what) };
        Ok(token.map(|(token, fence)| Held::new(&self.world, token, fence)))
    }

    fn lock_volume(&self, volume: VolumeId, access: Access) -> Result<Held> {
        let in_use = |why| Error::new(ErrorKind::ImageInUse, format!("volume {volume}: {why}"));
        let held = self
            .lock(Locked::Volume(volume, access))?
            .ok_or_else(|| in_use("somebody else works with it"))?;
        let qemu = self.qemu_use(volume)?;
        match access {
            _ if without!("driver.look.qemu") => Ok(held),
            Access::Write if qemu.open || qemu.writing => Err(in_use("a QEMU process has it open")),
            Access::ReadStill if qemu.writing => Err(in_use("a QEMU process has it open")),
            _ => Ok(held),
        }
    }

    fn object(state: &State, volume: VolumeId) -> Result<Arc<SimStorage>> {
        match state.visible(Name::Object(volume)) {
            Some(Node::Object(storage)) => Ok(storage.clone()),
            _ => Err(Error::new(
                ErrorKind::ImageBroken,
                format!("volume {volume}: the data object is not there"),
            )),
        }
    }

    /// What an open volume lies on.
    fn object_of(state: &State, open: &OpenVolume) -> Result<Arc<SimStorage>> {
        let wanted = open.device.id();
        let found = state.names().find_map(|(_, node)| match node {
            Node::Object(storage) if id(storage) == wanted => Some(storage.clone()),
            _ => None,
        });
        found.ok_or_else(|| {
            let message = format!("{}: the volume's object is not there", open.device.name());
            Error::new(ErrorKind::ImageBroken, message)
        })
    }

    fn opened(
        &self,
        state: &mut State,
        volume: VolumeId,
        storage: Arc<SimStorage>,
        access: Access,
        lock: Held,
    ) -> OpenVolume {
        let writable = matches!(access, Access::Write | Access::Lease);
        if writable {
            state.writers.insert(id(&storage), self.me());
        }
        let device = SimDevice::new(storage, self.power.clone(), object_path(volume), writable)
            .with_clones(self.world.options.reflink)
            .with_server_copies(self.world.options.server_copies)
            .with_fence(lock.fence());
        OpenVolume { device: Arc::new(LockedDevice { device, lock, volume, host: self.me() }) }
    }

    /// Registered, and certainly dead: without the registration they are as dead.
    fn dead_hosts(&self, state: &State) -> Vec<Incarnation> {
        if self.world.options.death != Liveness::CertainlyDead {
            let dead = |host: &Host| host.said == Some(Liveness::CertainlyDead);
            return state.hosts.iter().filter(|(_, host)| dead(host)).map(|(id, _)| *id).collect();
        }
        let dead = |host: &Host| host.said.map_or(!host.alive, |said| said == Liveness::CertainlyDead);
        state.hosts.iter().filter(|(_, host)| dead(host)).map(|(incarnation, _)| *incarnation).collect()
    }

    fn names<T>(&self, mut pick: impl FnMut(Name) -> Option<T>) -> Result<Vec<T>> {
        Ok(self.enter()?.names().filter_map(|(name, _)| pick(name)).collect())
    }
}

/// The record as another host writes it after that put, changing nothing.
fn put_once_more(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut record: Value = serde_json::from_slice(bytes).ok()?;
    let fields = record.as_object_mut()?;
    let nonce = fields.insert("nonce".to_owned(), Uuid::new_v4().to_string().into())?;
    let generation = fields.get("gen")?.as_u64()? + 1;
    fields.insert("gen".to_owned(), generation.into());
    let before = fields.entry("before").or_insert_with(|| Value::Array(Vec::new()));
    before.as_array_mut()?.insert(0, nonce);
    serde_json::to_vec(&record).ok()
}

fn object_path(volume: VolumeId) -> String {
    format!("/simulated/data/{volume}")
}

impl Drop for SimDriver {
    fn drop(&mut self) {
        // As when a process ends: the record stays.
        if let Some(host) = self.world.state().hosts.get_mut(&self.me()) {
            host.alive = false;
        }
    }
}

impl Driver for SimDriver {
    fn format(&self) -> &'static str {
        "simulated-1.0"
    }

    fn location(&self) -> String {
        "/simulated".to_owned()
    }

    fn repository_nonce(&self) -> Uuid {
        self.world.nonce
    }

    fn features(&self) -> Vec<String> {
        Vec::new()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn capabilities(&self) -> Capabilities {
        let reflink = self.world.options.reflink;
        Capabilities {
            reflink,
            thin: true,
            discard: true,
            multi_host: self.world.options.several_hosts,
            server_copy: false,
        }
    }

    fn copy_on_write(&self) -> CopyOnWrite {
        if self.world.options.reflink { CopyOnWrite::Reflink } else { CopyOnWrite::Overlay }
    }

    fn clone_under_writer(&self) -> bool {
        self.world.options.reflink
    }

    fn usage(&self) -> Result<Usage> {
        drop(self.enter()?);
        Ok(Usage { capacity: CAPACITY, available: CAPACITY })
    }

    fn get(&self, key: RecordKey, read: Read) -> Result<Option<Versioned>> {
        let mut state = self.enter()?;
        if read == Read::Fresh && !without!("driver.flush.fresh") {
            state.sync(Name::Record(key));
        }
        Ok(match state.record(self.me(), key, read) {
            Some(Node::Record { generation, bytes: Some(bytes) }) => Some(Versioned { bytes, generation }),
            _ => None,
        })
    }

    fn put(&self, key: RecordKey, expect: Option<Generation>, bytes: &[u8]) -> Result<Put> {
        match expect {
            Some(expect) => self.compare_and_set(key, |generation, _| generation == expect, Some(bytes)),
            None => self.compare_and_set(key, |_, exists| !exists, Some(bytes)),
        }
    }

    fn delete(&self, key: RecordKey, expect: Generation) -> Result<Put> {
        match expect {
            0 => self.compare_and_set(key, |_, exists| !exists, None),
            _ => self.compare_and_set(key, |generation, _| generation == expect, None),
        }
    }

    fn list(&self, kind: RecordKind, shard: u16) -> Result<Vec<(Uuid, Generation)>> {
        let mut state = self.enter()?;
        let pick = |(name, _): (Name, &Node)| match (kind, name) {
            (RecordKind::Image, Name::Record(key @ RecordKey::Image(ImageId(id))))
            | (RecordKind::Volume, Name::Record(key @ RecordKey::Volume(VolumeId(id)))) => {
                (shard_of(id) == shard).then_some((id, key))
            }
            _ => None,
        };
        let keys: Vec<_> = state.names().filter_map(pick).collect();
        let found = keys.into_iter().filter_map(|(id, key)| {
            let node = state.record(self.me(), key, Read::Relaxed);
            if let Some(Node::Record { generation, .. }) = node { Some((id, generation)) } else { None }
        });
        Ok(found.collect())
    }

    fn mark(&self, marker: Marker) -> Result<()> {
        self.change(marker.into(), Some(Node::Marker))
    }

    fn unmark(&self, marker: Marker) -> Result<()> {
        self.remove(marker.into())
    }

    fn children(&self, image: ImageId) -> Result<Vec<VolumeId>> {
        self.names(|name| match name {
            Name::Child(of, volume) if of == image => Some(volume),
            _ => None,
        })
    }

    fn holders(&self, volume: VolumeId) -> Result<Vec<ImageId>> {
        self.names(|name| match name {
            Name::Holder(of, image) if of == volume => Some(image),
            _ => None,
        })
    }

    fn put_progress(&self, image: ImageId, bytes: &[u8]) -> Result<()> {
        self.change(Name::Progress(image), Some(Node::Bytes(bytes.to_vec())))
    }

    fn get_progress(&self, image: ImageId) -> Result<Option<Vec<u8>>> {
        Ok(match self.enter()?.visible(Name::Progress(image)) {
            Some(Node::Bytes(bytes)) => Some(bytes.clone()),
            _ => None,
        })
    }

    fn delete_progress(&self, image: ImageId) -> Result<()> {
        self.remove(Name::Progress(image))
    }

    fn put_blob(&self, owner: ImageId, blob: BlobId, bytes: &[u8]) -> Result<()> {
        self.change(Name::Blob(owner, blob), Some(Node::Bytes(bytes.to_vec())))
    }

    fn get_blob(&self, owner: ImageId, blob: BlobId) -> Result<Vec<u8>> {
        if let Some(Node::Bytes(bytes)) = self.enter()?.visible(Name::Blob(owner, blob)) {
            return Ok(bytes.clone());
        }
        let message = format!("blob {blob} of image {owner} is not there");
        Err(Error::new(ErrorKind::CorruptRecord, message))
    }

    fn delete_blob(&self, owner: ImageId, blob: BlobId) -> Result<()> {
        self.remove(Name::Blob(owner, blob))
    }

    fn blobs(&self, owner: ImageId) -> Result<Vec<BlobId>> {
        self.names(|name| match name {
            Name::Blob(of, blob) if of == owner => Some(blob),
            _ => None,
        })
    }

    fn shards(&self, _kind: Option<RecordKind>) -> Result<Vec<u16>> {
        let mut shards = self.names(|name| match name {
            Name::Record(RecordKey::Image(id))
            | Name::Child(id, _)
            | Name::Progress(id)
            | Name::Blob(id, _) => Some(shard_of(id.0)),
            Name::Record(RecordKey::Volume(id)) | Name::Holder(id, _) => Some(shard_of(id.0)),
            Name::Object(_) => None,
        })?;
        shards.sort_unstable();
        shards.dedup();
        Ok(shards)
    }

    fn list_markers(&self, shard: u16) -> Result<Vec<Marker>> {
        self.names(|name| match name {
            Name::Child(image, volume) if shard_of(image.0) == shard => Some(Marker::Child(image, volume)),
            Name::Holder(volume, image) if shard_of(volume.0) == shard => Some(Marker::Holder(volume, image)),
            _ => None,
        })
    }

    fn list_blobs(&self, shard: u16) -> Result<Vec<(ImageId, BlobId)>> {
        self.names(|name| match name {
            Name::Blob(image, blob) if shard_of(image.0) == shard => Some((image, blob)),
            _ => None,
        })
    }

    fn list_progress(&self, shard: u16) -> Result<Vec<ImageId>> {
        self.names(|name| match name {
            Name::Progress(image) if shard_of(image.0) == shard => Some(image),
            _ => None,
        })
    }

    fn list_volumes(&self) -> Result<Vec<VolumeId>> {
        self.names(|name| if let Name::Object(volume) = name { Some(volume) } else { None })
    }

    fn leftovers(&self) -> Result<u64> {
        Ok(self.dead_hosts(&*self.enter()?).len() as u64 * REGISTRATION)
    }

    fn sweep(&self) -> Result<()> {
        let dead = self.dead_hosts(&*self.enter()?);
        for host in dead {
            self.begin(Act::Name)?.hosts.remove(&host);
        }
        Ok(())
    }

    fn create_volume(&self, volume: VolumeId) -> Result<OpenVolume> {
        let lock = self.lock_volume(volume, Access::Write)?;
        let mut state = self.enter()?;
        if let Ok(storage) = Self::object(&state, volume) {
            state.sync_all_of(self.me(), Name::Object(volume));
            return Ok(self.opened(&mut state, volume, storage, Access::Write, lock));
        }
        let storage = SimStorage::new(self.world.nonce.as_u64_pair().0, state.next());
        drop(state);
        self.create(volume, &storage, &lock)?;
        Ok(self.opened(&mut *self.reach()?, volume, storage, Access::Write, lock))
    }

    fn clone_volume(
        &self,
        source: &OpenVolume,
        target: VolumeId,
        look: &dyn Fn() -> Result<()>,
    ) -> Result<OpenVolume> {
        if !self.world.options.reflink {
            return Err(Error::new(ErrorKind::UnsupportedOperation, "the simulated storage cannot clone"));
        }
        let held = self.lock_volume(target, Access::Write)?;
        let mut state = self.enter()?;
        let replaces = Self::object(&state, target).is_ok();
        let from = Self::object_of(&state, source)?;
        let storage = SimStorage::new(id(&from).domain, state.next());
        drop(state);
        if replaces {
            look()?;
        }
        self.power.step(Act::Write)?;
        from.clone_to(&storage);
        if !without!("driver.flush.clone") {
            SimDevice::new(storage.clone(), self.power.clone(), object_path(target), true).flush()?;
        }
        self.create(target, &storage, &held)?;
        Ok(self.opened(&mut *self.reach()?, target, storage, Access::Write, held))
    }

    fn pin_volume(&self, source: &OpenVolume) -> Result<OpenVolume> {
        let mut state = self.enter()?;
        let from = Self::object_of(&state, source)?;
        let pin = SimStorage::new(self.world.nonce.as_u64_pair().0, state.next());
        drop(state);
        self.power.check(Act::Read)?;
        from.clone_to(&pin);
        let device = SimDevice::new(pin, self.power.clone(), source.device.name(), false);
        Ok(OpenVolume { device: Arc::new(device) })
    }

    fn open_volume(&self, volume: VolumeId, access: Access) -> Result<OpenVolume> {
        // Before the lock: what is not there is broken, not in use.
        Self::object(&*self.enter()?, volume)?;
        let lock = self.lock_volume(volume, access)?;
        let mut state = self.enter()?;
        let storage = Self::object(&state, volume)?;
        Ok(self.opened(&mut state, volume, storage, access, lock))
    }

    fn delete_volume(&self, volume: VolumeId, locked: OpenVolume) -> Result<()> {
        let found = Self::object(&*self.enter()?, volume);
        if let Ok(storage) = found {
            if id(&storage) != locked.device.id() && !without!("driver.compare.object") {
                let message = format!("volume {volume} is to be deleted with the lock of another volume");
                return Err(Error::new(ErrorKind::Internal, message));
            }
            self.change(Name::Object(volume), None)?;
        }
        drop(locked);
        Ok(())
    }

    fn settle_deleted(&self, volume: VolumeId) -> Result<()> {
        self.sync(Name::Object(volume))
    }

    fn volume_exists(&self, volume: VolumeId) -> Result<bool> {
        Ok(self.enter()?.visible(Name::Object(volume)).is_some())
    }

    fn allocated(&self, volume: VolumeId) -> Result<u64> {
        let storage = Self::object(&*self.enter()?, volume)?;
        let device = SimDevice::new(storage, self.power.clone(), object_path(volume), false);
        let (mut offset, mut sum, end) = (0, 0, device.len()?);
        while offset < end {
            let extent = device.extent(offset, end - offset)?;
            sum += if extent.data { extent.length } else { 0 };
            offset += extent.length;
        }
        Ok(sum)
    }

    /// A path as on other storage, but nothing is there.
    fn path(&self, volume: VolumeId) -> Option<PathBuf> {
        Some(object_path(volume).into())
    }

    fn qemu_use(&self, volume: VolumeId) -> Result<QemuUse> {
        Ok(self.enter()?.qemu.get(&volume).copied().unwrap_or_default())
    }

    fn lock_image(&self, image: ImageId) -> Result<Option<Box<dyn Guard>>> {
        Ok(self.lock(Locked::Image(image))?.map(|held| Box::new(held) as Box<dyn Guard>))
    }

    fn lock_use(&self, image: ImageId, alone: bool) -> Result<Option<Box<dyn Guard>>> {
        Ok(self.lock(Locked::Use(image, alone))?.map(|held| Box::new(held) as Box<dyn Guard>))
    }

    fn host(&self) -> &HostIdentity {
        &self.host
    }

    fn host_record(&self, incarnation: Incarnation) -> Result<Option<HostRecord>> {
        Ok(self.enter()?.hosts.get(&incarnation).map(Host::record))
    }

    fn others(&self) -> Result<Vec<HostRecord>> {
        let state = self.enter()?;
        let connected = |host: &Host| host.said.map_or(host.alive, |said| said == Liveness::Alive);
        let others = state.hosts.iter().filter(|(id, host)| **id != self.me() && connected(host));
        Ok(others.map(|(_, host)| host.record()).collect())
    }

    fn liveness(&self, incarnation: Incarnation) -> Result<Liveness> {
        Ok(match self.enter()?.hosts.get(&incarnation) {
            // Closed in order, or never there.
            None => Liveness::CertainlyDead,
            Some(Host { said: Some(said), .. }) => *said,
            Some(host) if host.alive => Liveness::Alive,
            Some(_) => self.world.options.death,
        })
    }

    fn close(&self) -> Result<()> {
        let mut state = self.enter()?;
        self.closed.store(true, Ordering::Release);
        state.hosts.remove(&self.me());
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
