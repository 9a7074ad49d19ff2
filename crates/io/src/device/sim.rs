//! A simulated device for crash tests: what is durable is kept apart from what is merely written, sector by
//! sector, and a power switch stops everything after a chosen number of steps.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Device, DeviceExtent, DeviceId};
use crate::{Error, ErrorKind, Result, without};

const SECTOR: u64 = 512;
const PAGE: u64 = 4096;
/// Zeroing less than this is logged sector by sector, more in pieces of [`ZERO_PIECE`].
const ZERO_FINE: u64 = 1 << 20;
const ZERO_PIECE: u64 = 64 << 10;

/// The power supply of one simulated host, shared by all its devices. Counts every mutating step.
#[derive(Debug, Default)]
pub struct Power(Mutex<PowerState>);

#[derive(Debug, Default)]
struct PowerState {
    /// Steps that were let through since the beginning.
    writes: u64,
    /// The value of `writes` at which it goes off.
    cut: Option<u64>,
    /// It went off.
    off: bool,
}

impl Power {
    /// Power that is on and stays on.
    pub fn new() -> Arc<Power> {
        Arc::default()
    }

    fn state(&self) -> MutexGuard<'_, PowerState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Steps that were let through since the beginning.
    pub fn writes(&self) -> u64 {
        self.state().writes
    }

    /// Lets that many *further* steps through, then goes off. `None`: goes (back) on for good.
    pub fn cut_after(&self, writes: Option<u64>) {
        let mut state = self.state();
        state.cut = writes.map(|n| state.writes.saturating_add(n));
        state.off = false;
    }

    /// Whether it went off.
    pub fn is_off(&self) -> bool {
        self.state().off
    }

    /// To be called before each mutation: counts it, or fails with `Io` from the cut on.
    pub fn step(&self) -> Result<()> {
        let mut state = self.state();
        if state.cut.is_some_and(|cut| state.writes >= cut) {
            state.off = true;
        }
        if state.off {
            return Err(off());
        }
        state.writes += 1;
        Ok(())
    }

    /// To be called before each read: fails once the power is off.
    pub fn check(&self) -> Result<()> {
        if self.is_off() { Err(off()) } else { Ok(()) }
    }
}

fn off() -> Error {
    Error::new(ErrorKind::Io, "power is off")
}

/// Sparse bytes: pages that are absent read as zeroes and are holes.
#[derive(Clone, Debug, Default)]
struct Bytes {
    pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
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
        let page = self.pages.entry(offset / PAGE).or_insert_with(|| Box::new([0; PAGE as usize]));
        page[within..within + data.len()].copy_from_slice(data);
    }

    fn zero(&mut self, mut offset: u64, end: u64) {
        while offset < end {
            let index = offset / PAGE;
            let next = ((index + 1) * PAGE).min(end);
            if next - offset == PAGE {
                self.pages.remove(&index);
            } else if let Some(page) = self.pages.get_mut(&index) {
                page[(offset % PAGE) as usize..][..(next - offset) as usize].fill(0);
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
    Sector { offset: u64, data: Box<[u8; SECTOR as usize]>, len: u64 },
    /// A range that became zero; the length is at least `len` afterwards.
    Zero { offset: u64, end: u64, len: u64 },
    /// The length was set.
    Len(u64),
}

#[derive(Debug, Default)]
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
            let mut sector = Box::new([0; SECTOR as usize]);
            self.now.read(start, &mut sector[..]);
            sector[within..within + part].copy_from_slice(&data[..part]);
            self.change(Change::Sector { offset: start, data: sector, len: offset + part as u64 });
            data = &data[part..];
            offset += part as u64;
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
    poisoned: AtomicBool,
}

impl SimDevice {
    /// Opens the storage on the host with that power supply.
    pub fn new(storage: Arc<SimStorage>, power: Arc<Power>, name: String, writable: bool) -> SimDevice {
        SimDevice { storage, power, name, writable, clones: false, poisoned: AtomicBool::new(false) }
    }

    /// Lets ranges of devices of the same domain be cloned into it, in whole pages.
    #[must_use]
    pub fn with_clones(self, clones: bool) -> SimDevice {
        SimDevice { clones, ..self }
    }

    fn step(&self, offset: u64, length: u64) -> Result<()> {
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
        self.power.step().map_err(|e| e.with_path(&self.name).with_range(offset, length))
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
        self.power.check()?;
        Ok(self.storage.contents().now.len)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let length = buffer.len() as u64;
        self.power.check().map_err(|e| e.with_path(&self.name).with_range(offset, length))?;
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
        self.step(offset, buffer.len() as u64)?;
        self.storage.contents().write(offset, buffer);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        self.step(offset, length)?;
        self.storage.contents().zero(offset, length);
        Ok(())
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.step(0, length)?;
        self.storage.contents().change(Change::Len(length));
        Ok(())
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        self.step(offset, length)?;
        let mut contents = self.storage.contents();
        if offset + length > contents.now.len {
            contents.change(Change::Len(offset + length));
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.step(0, 0).inspect_err(|_| self.poisoned.store(true, Ordering::Release))?;
        let mut contents = self.storage.contents();
        let Contents { durable, log, .. } = &mut *contents;
        for change in log.drain(..) {
            durable.apply(&change);
        }
        Ok(())
    }

    fn extent(&self, offset: u64, length: u64) -> Result<DeviceExtent> {
        self.power.check()?;
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

    fn can_clone(&self, source: &dyn Device) -> bool {
        self.clones && source.id().domain == self.storage.id.domain
    }

    fn clone_range(&self, offset: u64, source: &dyn Device, source_offset: u64, length: u64) -> Result<bool> {
        let aligned = [offset, source_offset, length].iter().all(|number| number.is_multiple_of(PAGE));
        if !aligned || !self.can_clone(source) || source_offset.saturating_add(length) > source.len()? {
            return Ok(false);
        }
        let mut bytes = vec![0; length as usize];
        source.read_at(source_offset, &mut bytes)?;
        self.write_at(offset, &bytes)?;
        Ok(true)
    }
}
