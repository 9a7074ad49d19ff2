//! A simulated device for crash tests: what is durable is kept apart from what is merely written, sector by
//! sector, and a power switch stops everything after a chosen number of steps.

pub mod hosts;
mod power;

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Device, DeviceExtent, DeviceId, Offload};
use crate::{Error, ErrorKind, Result, without};
use hosts::Act;
pub use power::{Fault, Power};

const SECTOR: u64 = 512;
const PAGE: u64 = 4096;
/// Zeroing less than this is logged sector by sector, more in pieces of [`ZERO_PIECE`].
const ZERO_FINE: u64 = 1 << 20;
const ZERO_PIECE: u64 = 64 << 10;

/// Sparse bytes: pages that are absent read as zeroes and are holes.
#[derive(Clone, Debug, Default)]
struct Bytes {
    pages: BTreeMap<u64, Arc<[u8; PAGE as usize]>>,
    len: u64,
}

impl Bytes {
    fn read(&self, mut offset: u64, mut buffer: &mut [u8]) {
        while !buffer.is_empty() {
            let within = (offset % PAGE) as usize;
            let part = buffer.len().min(PAGE as usize - within);
            let (now, rest) = buffer.split_at_mut(part);
            match self.pages.get(&(offset / PAGE)) {
                Some(page) => now.copy_from_slice(&page[within..within + part]),
                None => now.fill(0),
            }
            buffer = rest;
            offset += part as u64;
        }
    }

    /// `data` lies within one page.
    fn write_in_page(&mut self, offset: u64, data: &[u8]) {
        let within = (offset % PAGE) as usize;
        let page = self.pages.entry(offset / PAGE).or_insert_with(|| Arc::new([0; PAGE as usize]));
        Arc::make_mut(page)[within..within + data.len()].copy_from_slice(data);
    }

    fn zero(&mut self, mut offset: u64, end: u64) {
        while offset < end {
            let index = offset / PAGE;
            let next = ((index + 1) * PAGE).min(end);
            if next - offset == PAGE {
                self.pages.remove(&index);
            } else if let Some(page) = self.pages.get_mut(&index) {
                Arc::make_mut(page)[(offset % PAGE) as usize..][..(next - offset) as usize].fill(0);
            }
            offset = next;
        }
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.pages.retain(|index, _| index * PAGE < len);
            self.zero(len, len.next_multiple_of(PAGE));
        }
        self.len = len;
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Sector { offset, data, len } => {
                self.len = self.len.max(*len);
                self.write_in_page(*offset, &data[..]);
            }
            Change::Zero { offset, end, len } => {
                self.len = self.len.max(*len);
                self.zero(*offset, *end);
            }
            Change::Len(len) => self.set_len(*len),
        }
    }
}

/// One change that is kept or lost as a whole in a power cut.
#[derive(Clone, Debug)]
enum Change {
    /// A whole sector's new content; the length is at least `len` afterwards.
    Sector { offset: u64, data: Arc<[u8; SECTOR as usize]>, len: u64 },
    /// A range that became zero; the length is at least `len` afterwards.
    Zero { offset: u64, end: u64, len: u64 },
    /// The length was set.
    Len(u64),
}

#[derive(Clone, Debug, Default)]
struct Contents {
    /// What a reader sees.
    now: Bytes,
    /// What survives every power cut.
    durable: Bytes,
    /// What leads from `durable` to `now`, in order.
    log: Vec<Change>,
}

impl Contents {
    fn change(&mut self, change: Change) {
        self.now.apply(&change);
        self.log.push(change);
    }

    fn write(&mut self, mut offset: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let start = offset - offset % SECTOR;
            let within = (offset - start) as usize;
            let part = data.len().min(SECTOR as usize - within);
            let mut sector = [0; SECTOR as usize];
            self.now.read(start, &mut sector[..]);
            sector[within..within + part].copy_from_slice(&data[..part]);
            let data_of_sector = Arc::new(sector);
            self.change(Change::Sector { offset: start, data: data_of_sector, len: offset + part as u64 });
            data = &data[part..];
            offset += part as u64;
        }
    }

    fn flush(&mut self) {
        for change in self.log.drain(..) {
            self.durable.apply(&change);
        }
    }

    fn zero(&mut self, offset: u64, length: u64) {
        let end = offset + length;
        let step = if length <= ZERO_FINE { SECTOR } else { ZERO_PIECE };
        let mut at = offset;
        while at < end {
            let next = (at - at % step + step).min(end);
            self.change(Change::Zero { offset: at, end: next, len: next });
            at = next;
        }
    }
}

/// The bytes of one simulated device; outlives the hosts that open it.
#[derive(Debug)]
pub struct SimStorage {
    id: DeviceId,
    contents: Mutex<Contents>,
}

impl SimStorage {
    /// Empty storage with that identity.
    pub fn new(domain: u64, object: u64) -> Arc<SimStorage> {
        Arc::new(SimStorage { id: DeviceId { domain, object }, contents: Mutex::default() })
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes as a reader sees them now.
    pub fn bytes(&self) -> Vec<u8> {
        let contents = self.contents();
        let mut bytes = vec![0; contents.now.len as usize];
        contents.now.read(0, &mut bytes);
        bytes
    }

    /// The power went off: each change that was not flushed (a sector, a part of a zeroed range, a new length)
    /// is kept or lost as `keep` says, in the order of writing; what is left then is durable.
    pub fn crash(&self, keep: &mut dyn FnMut() -> bool) {
        let mut contents = self.contents();
        for change in std::mem::take(&mut contents.log) {
            if keep() {
                contents.durable.apply(&change);
            }
        }
        contents.now = contents.durable.clone();
    }

    /// How many changes were not flushed, each of which a power cut may keep or lose.
    pub fn pending(&self) -> usize {
        self.contents().log.len()
    }

    /// A copy as it is after a power cut now, while this one goes on; `keep` is asked with the number of each change
    /// that was not flushed, oldest first.
    #[must_use]
    pub fn after_cut(&self, keep: &mut dyn FnMut(usize) -> bool) -> Arc<SimStorage> {
        let contents = self.contents();
        let mut durable = contents.durable.clone();
        for (_, change) in contents.log.iter().enumerate().filter(|(number, _)| keep(*number)) {
            durable.apply(change);
        }
        let contents = Contents { now: durable.clone(), durable, log: Vec::new() };
        Arc::new(SimStorage { id: self.id, contents: Mutex::new(contents) })
    }

    /// The same once more, what is not flushed not being flushed there.
    #[must_use]
    pub fn duplicate(&self) -> Arc<SimStorage> {
        Arc::new(SimStorage { id: self.id, contents: Mutex::new(self.contents().clone()) })
    }

    /// Takes everything for flushed.
    pub fn settle(&self) {
        self.contents().flush();
    }

    /// Adds what survives a power cut to a hash.
    pub fn hash_durable(&self, hasher: &mut impl Hasher) {
        let contents = self.contents();
        contents.durable.len.hash(hasher);
        for (index, page) in &contents.durable.pages {
            if page.iter().any(|byte| *byte != 0) {
                (index, &page[..]).hash(hasher);
            }
        }
    }

    /// Replaces the bytes of `target` by a copy of these, as a reflink does: the copy is not durable before
    /// `target` is flushed.
    pub fn clone_to(&self, target: &SimStorage) {
        if std::ptr::eq(self, target) {
            return;
        }
        let source = self.contents().now.clone();
        let mut target = target.contents();
        target.change(Change::Len(0));
        target.change(Change::Len(source.len));
        for (index, page) in &source.pages {
            let length = PAGE.min(source.len.saturating_sub(index * PAGE));
            target.write(index * PAGE, &page[..length as usize]);
        }
    }
}

/// One host's handle on a [`SimStorage`].
#[derive(Debug)]
pub struct SimDevice {
    storage: Arc<SimStorage>,
    power: Arc<Power>,
    name: String,
    writable: bool,
    clones: bool,
    server_copies: bool,
    poisoned: AtomicBool,
    fence: Arc<AtomicBool>,
}

impl SimDevice {
    /// Opens the storage on the host with that power supply.
    pub fn new(storage: Arc<SimStorage>, power: Arc<Power>, name: String, writable: bool) -> SimDevice {
        let poisoned = AtomicBool::new(false);
        let (clones, server_copies, fence) = (false, false, Arc::default());
        SimDevice { storage, power, name, writable, clones, server_copies, poisoned, fence }
    }

    /// Lets ranges of devices of the same domain be cloned into it, in whole pages.
    #[must_use]
    pub fn with_clones(self, clones: bool) -> SimDevice {
        SimDevice { clones, ..self }
    }

    /// Lets a server copy ranges of any device into it.
    #[must_use]
    pub fn with_server_copies(self, server_copies: bool) -> SimDevice {
        SimDevice { server_copies, ..self }
    }

    /// Everything fails with `Stale` once this is set.
    #[must_use]
    pub fn with_fence(self, fence: Arc<AtomicBool>) -> SimDevice {
        SimDevice { fence, ..self }
    }

    fn not_fenced(&self) -> Result<()> {
        if self.fence.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Stale, "the lock was lost").with_path(&self.name));
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        self.power.check(Act::Read)?;
        self.not_fenced()
    }

    fn step(&self, act: Act, offset: u64, length: u64) -> Result<()> {
        if !self.writable {
            return Err(Error::new(ErrorKind::ReadOnly, "opened for reading only").with_path(&self.name));
        }
        if self.poisoned.load(Ordering::Acquire) && !without!("device.poisoned") {
            return Err(Error::new(ErrorKind::Poisoned, "an earlier flush failed").with_path(&self.name));
        }
        if offset.checked_add(length).is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(Error::new(ErrorKind::InvalidInput, "offset out of range")
                .with_path(&self.name)
                .with_range(offset, length));
        }
        self.power.step(act).map_err(|e| e.with_path(&self.name).with_range(offset, length))?;
        self.not_fenced()
    }
}

impl Device for SimDevice {
    fn id(&self) -> DeviceId {
        self.storage.id
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn len(&self) -> Result<u64> {
        self.check()?;
        Ok(self.storage.contents().now.len)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let length = buffer.len() as u64;
        self.check().map_err(|e| e.with_path(&self.name).with_range(offset, length))?;
        let contents = self.storage.contents();
        if offset.checked_add(length).is_none_or(|end| end > contents.now.len) {
            return Err(Error::new(ErrorKind::ShortRead, "cannot read")
                .with_path(&self.name)
                .with_range(offset, length));
        }
        contents.now.read(offset, buffer);
        Ok(())
    }

    fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()> {
        self.step(Act::Write, offset, buffer.len() as u64)?;
        self.storage.contents().write(offset, buffer);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        self.step(Act::Write, offset, length)?;
        self.storage.contents().zero(offset, length);
        Ok(())
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.step(Act::Write, 0, length)?;
        self.storage.contents().change(Change::Len(length));
        Ok(())
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        self.step(Act::Write, offset, length)?;
        let mut contents = self.storage.contents();
        if offset + length > contents.now.len {
            contents.change(Change::Len(offset + length));
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.step(Act::Flush, 0, 0).inspect_err(|_| self.poisoned.store(true, Ordering::Release))?;
        self.storage.contents().flush();
        Ok(())
    }

    fn extent(&self, offset: u64, length: u64) -> Result<DeviceExtent> {
        self.check()?;
        let contents = self.storage.contents();
        let end = offset.saturating_add(length);
        let data = contents.now.pages.contains_key(&(offset / PAGE));
        let mut next = (offset / PAGE + 1) * PAGE;
        if data {
            while next < end && contents.now.pages.contains_key(&(next / PAGE)) {
                next += PAGE;
            }
        } else {
            next = contents.now.pages.range(offset / PAGE..).next().map_or(end, |(index, _)| index * PAGE);
        }
        Ok(DeviceExtent { length: next.min(end) - offset, data })
    }

    fn can_offload(&self, how: Offload, source: &dyn Device) -> bool {
        match how {
            Offload::Clone => self.clones && source.id().domain == self.storage.id.domain,
            Offload::Copy => self.server_copies,
        }
    }

    fn offload(
        &self,
        how: Offload,
        offset: u64,
        source: &dyn Device,
        source_offset: u64,
        length: u64,
    ) -> Result<u64> {
        let aligned = [offset, source_offset, length].iter().all(|number| number.is_multiple_of(PAGE));
        if !aligned
            || !self.can_offload(how, source)
            || source_offset.saturating_add(length) > source.len()?
        {
            return Ok(0);
        }
        let mut bytes = vec![0; length as usize];
        source.read_at(source_offset, &mut bytes)?;
        self.write_at(offset, &bytes)?;
        Ok(length)
    }
}
