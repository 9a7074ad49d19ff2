//! Cutting the power after every step of a scenario, in every way that matters, and looking at what is left.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use vdsmstore_io::{
    Device, DeviceExtent, DeviceId, Format, Image, Layer, Power, Result, SimDevice, SimStorage, qcow2,
};

use crate::common::{Random, effort, qemu, run, scratch};
use crate::content::{Model, SECTOR, sector};
use crate::judge;
use crate::packed::snapshot_of;

/// With up to that many changes pending every subset is tried.
const EXHAUSTIVE: usize = 10;
/// So many states of each scenario are shown to QEMU.
const SHOWN: usize = 20;

pub fn sim(storage: &Arc<SimStorage>, writable: bool) -> SimDevice {
    SimDevice::new(Arc::clone(storage), Power::new(), "sim".into(), writable)
}

/// What a scenario expects of every state, besides sound metadata.
pub struct Expect {
    pub model: Model,
    /// Virtual sizes that the header may say.
    pub sizes: Vec<u64>,
    /// Backing names that it may say.
    pub backings: Vec<Option<String>>,
    pub base: Option<Arc<SimStorage>>,
    /// The image is being made: it need not be there yet.
    pub creating: bool,
    /// What the first internal snapshot shows.
    pub snapshot: Option<Vec<u8>>,
    /// There is a bitmap that has to know what differs from this.
    pub tracked: Option<Model>,
    /// While they are set, the disk shows this.
    pub autoclear: Option<(u8, Model)>,
}

#[derive(Default, Debug)]
pub struct Counts {
    /// Steps at which the power was cut.
    pub steps: u64,
    pub tried: u64,
    /// States that differ, in their bytes or in what they must hold.
    pub distinct: u64,
    pub written_on: u64,
    pub shown: u64,
    /// Bitmaps that were in step, and that were not.
    pub believed: u64,
    pub not_believed: u64,
}

struct State {
    storage: Arc<SimStorage>,
    armed: bool,
    expect: Expect,
    /// How often something became stricter: a state that was fine before need not be so now.
    strictness: u64,
    /// At which strictness a state was seen last, by the hash of its bytes.
    seen: HashMap<u64, u64>,
    /// More distinct states than this are not sought for.
    most: u64,
    sample: Vec<Vec<u8>>,
    random: Random,
    counts: Counts,
}

/// Watches the devices of a scenario.
pub struct Cutter(Mutex<State>);

impl Cutter {
    pub fn new(storage: Arc<SimStorage>, expect: Expect, most: u64) -> Arc<Cutter> {
        Arc::new(Cutter(Mutex::new(State {
            storage,
            armed: false,
            expect,
            strictness: 0,
            seen: HashMap::new(),
            most: if effort() > 1 { u64::MAX } else { most },
            sample: Vec::new(),
            random: Random::new(1),
            counts: Counts::default(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// From now on every step is cut.
    pub fn arm(&self) {
        let mut state = self.state();
        state.armed = true;
        state.observe(0);
    }

    /// Changes what is expected; `stricter`: what was right so far may be wrong now.
    pub fn expect<T>(&self, stricter: bool, change: impl FnOnce(&mut Expect) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state.expect);
        if stricter {
            state.strictness += 1;
            if state.armed {
                state.observe(0);
            }
        }
        result
    }

    pub fn storage(&self) -> Arc<SimStorage> {
        Arc::clone(&self.state().storage)
    }

    /// Takes over another file, before anything is cut.
    pub fn replace(&self, storage: Arc<SimStorage>) {
        let mut state = self.state();
        assert!(!state.armed);
        state.storage = storage;
    }

    /// Shows a sample to QEMU; what was done.
    pub fn finish(&self) -> Counts {
        let mut state = self.state();
        let (_keep, dir) = scratch();
        let path = dir.join("image");
        let mut names: Vec<&str> = state.expect.backings.iter().filter_map(|name| name.as_deref()).collect();
        names.extend(["base", "other"]);
        let base = state.expect.base.as_ref().map(|base| base.bytes()).unwrap_or_default();
        for name in names {
            std::fs::write(dir.join(name), &base).unwrap();
        }
        for bytes in &state.sample {
            std::fs::write(&path, bytes).unwrap();
            let output = run("qemu-img", &["check", "-f", "qcow2", path.to_str().unwrap()]);
            if !matches!(output.status.code(), Some(0 | 3)) {
                let kept = std::env::temp_dir().join("vdsmstore-power-cut.qcow2");
                std::fs::write(&kept, bytes).unwrap();
                panic!("QEMU finds fault with {}: {output:?}", kept.display());
            }
        }
        state.counts.shown = state.sample.len() as u64;
        std::mem::take(&mut state.counts)
    }
}

impl State {
    /// After a step that added so many changes to those that are pending.
    fn observe(&mut self, new: usize) {
        let pending = self.storage.pending();
        self.counts.steps += u64::from(new > 0 || pending == 0);
        let exhaustive = if effort() > 1 { EXHAUSTIVE + 2 } else { EXHAUSTIVE };
        let sated = self.counts.distinct >= self.most;
        if pending <= exhaustive && !sated {
            // Those without anything new were looked at before, unless they may be wrong now.
            let fresh = if new == 0 { 0 } else { (1u64 << pending) - (1 << (pending - new)) };
            for mask in 0..1u64 << pending {
                if new == 0 || mask & fresh != 0 {
                    self.cut(&mut |number| mask >> number & 1 == 1);
                }
            }
            return;
        }
        self.cut(&mut |_| true);
        self.cut(&mut |_| false);
        let rounds = if sated { 2 } else { 8 * effort() };
        for round in 0..rounds {
            let mut random = self.random.clone();
            self.random.next();
            let odds = [2, 4, 10][(round % 3) as usize];
            let inverse = round % 2 == 1;
            self.cut(&mut |_| (random.below(odds) == 0) != inverse);
        }
        if !sated {
            for which in pending.saturating_sub(64)..pending {
                self.cut(&mut |number| number == which);
                self.cut(&mut |number| number != which);
                self.cut(&mut |number| number < which);
            }
        }
    }

    fn cut(&mut self, keep: &mut dyn FnMut(usize) -> bool) {
        self.counts.tried += 1;
        let storage = self.storage.after_cut(keep);
        let bytes = storage.bytes();
        let hash = bytes.chunks(8).fold(bytes.len() as u64, |hash, word| {
            let mut padded = [0; 8];
            padded[..word.len()].copy_from_slice(word);
            (hash ^ u64::from_le_bytes(padded)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
        });
        if self.seen.len() > 4 << 20 {
            // Looked at once more in the worst case.
            self.seen.clear();
        }
        if self.seen.insert(hash, self.strictness) == Some(self.strictness) {
            return;
        }
        self.counts.distinct += 1;
        if let Err(message) = self.look(&storage, &bytes) {
            let kept = std::env::temp_dir().join("vdsmstore-power-cut.qcow2");
            std::fs::write(&kept, &bytes).unwrap();
            panic!("step {}, state kept in {}: {message}", self.counts.steps, kept.display());
        }
        // Before its header is there QEMU has nothing to say. Of the others each has the same chance to be shown.
        if !bytes.starts_with(b"QFI\xfb") {
            return;
        }
        let place = self.random.below(self.counts.distinct) as usize;
        if self.sample.len() < SHOWN {
            self.sample.push(bytes);
        } else if place < SHOWN {
            self.sample[place] = bytes;
        }
    }

    fn open(&self, storage: &Arc<SimStorage>, size: u64) -> Result<Image> {
        let mut layers = vec![Layer { device: Arc::new(sim(storage, true)), format: Format::Qcow2, size }];
        if let Some(base) = &self.expect.base {
            let size = base.bytes().len() as u64;
            layers.push(Layer { device: Arc::new(sim(base, false)), format: Format::Raw, size });
        }
        Image::open(layers, true)
    }

    fn look(&mut self, storage: &Arc<SimStorage>, bytes: &[u8]) -> std::result::Result<(), String> {
        let device = sim(storage, false);
        let info = match qcow2::info(&device) {
            Err(error) if self.expect.creating && error.to_string().contains("not a qcow2 image") => {
                return Ok(());
            }
            other => other.map_err(|error| format!("it does not open: {error}"))?,
        };
        judge(bytes)?;
        if !self.expect.sizes.contains(&info.size) {
            return Err(format!("size {}, may be {:?}", info.size, self.expect.sizes));
        }
        if !self.expect.backings.contains(&info.backing) {
            return Err(format!("backing {:?}, may be {:?}", info.backing, self.expect.backings));
        }
        let image = self.open(storage, info.size).map_err(|error| format!("it does not open: {error}"))?;
        let mut disk = vec![0; info.size as usize];
        image.read(0, &mut disk).map_err(|error| format!("it cannot be read: {error}"))?;
        self.expect.model.compare(&disk)?;
        if let Some(content) = &self.expect.snapshot
            && snapshot_of(bytes, content.len() as u64) != *content
        {
            return Err("the snapshot has changed".into());
        }
        if let Some((bits, before)) = &self.expect.autoclear
            && bytes[88] & bits != 0
        {
            before.compare(&disk).map_err(|message| format!("autoclear bits, but {message}"))?;
        }
        self.look_at_bitmap(&device, &disk)?;
        if self.counts.distinct.is_multiple_of(8) {
            self.write_on(storage, &image)?;
        }
        Ok(())
    }

    /// A bitmap marks all that differs, or says that it cannot be believed.
    fn look_at_bitmap(&mut self, device: &SimDevice, disk: &[u8]) -> std::result::Result<(), String> {
        let Some(before) = &self.expect.tracked else { return Ok(()) };
        let bitmaps = qcow2::bitmaps(device).map_err(|error| error.to_string())?;
        let bitmap = bitmaps.first().ok_or("the bitmap is gone")?;
        if !bitmap.consistent {
            self.counts.not_believed += 1;
            return Ok(());
        }
        self.counts.believed += 1;
        let mut marked = vec![false; disk.len() / 512];
        qcow2::visit_bitmap(device, &bitmap.name, &mut |offset, length| {
            marked[(offset / SECTOR) as usize..(offset + length).div_ceil(SECTOR) as usize].fill(true);
            Ok(())
        })
        .map_err(|error| format!("the bitmap cannot be read: {error}"))?;
        for (number, found) in disk.chunks_exact(512).enumerate() {
            let was = before.0.get(number).map_or(0, |tags| tags[0]);
            if !marked[number] && *found != sector(was, number as u64) {
                return Err(format!("sector {number} has changed, and the bitmap does not know it"));
            }
        }
        Ok(())
    }

    /// It can be written on, and stays sound.
    fn write_on(&mut self, storage: &Arc<SimStorage>, image: &Image) -> std::result::Result<(), String> {
        self.counts.written_on += 1;
        let size = image.size();
        let result = image
            .write(0, &sector(99, 0))
            .and_then(|()| image.write(size / 4 * 3 / SECTOR * SECTOR, &sector(99, 0)))
            .and_then(|()| image.write_zeroes(size / 2, size / 4))
            .and_then(|()| image.flush());
        result.map_err(|error| format!("it cannot be written: {error}"))?;
        judge(&storage.bytes()).map_err(|message| format!("after more writing: {message}"))
    }
}

/// A device whose every change is watched.
pub struct Watched {
    device: SimDevice,
    cutter: Arc<Cutter>,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.device.fmt(f)
    }
}

impl Watched {
    pub fn new(cutter: &Arc<Cutter>) -> Watched {
        Watched { device: sim(&cutter.storage(), true), cutter: Arc::clone(cutter) }
    }

    fn watch(&self, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let storage = self.cutter.storage();
        let before = storage.pending();
        change()?;
        let mut state = self.cutter.state();
        if state.armed {
            state.observe(storage.pending().saturating_sub(before));
        }
        Ok(())
    }
}

impl Device for Watched {
    fn id(&self) -> DeviceId {
        self.device.id()
    }

    fn name(&self) -> String {
        self.device.name()
    }

    fn len(&self) -> Result<u64> {
        self.device.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.device.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()> {
        self.watch(|| self.device.write_at(offset, buffer))
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        self.watch(|| self.device.write_zeroes(offset, length))
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.watch(|| self.device.set_len(length))
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        self.watch(|| self.device.allocate(offset, length))
    }

    fn flush(&self) -> Result<()> {
        self.watch(|| self.device.flush())
    }

    fn extent(&self, offset: u64, length: u64) -> Result<DeviceExtent> {
        self.device.extent(offset, length)
    }
}

/// Runs QEMU on the file, which then has the same content in another form.
pub fn rework(storage: &Arc<SimStorage>, work: impl FnOnce(&std::path::Path)) -> Arc<SimStorage> {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    std::fs::write(&path, storage.bytes()).unwrap();
    work(&path);
    qemu("qemu-img", &["check", "-f", "qcow2", path.to_str().unwrap()]);
    crate::common::storage_of(&std::fs::read(&path).unwrap(), 1)
}
