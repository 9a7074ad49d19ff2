//! A chain of layers as one virtual disk.

mod grow;
mod offload;
mod place;
mod write;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

pub(crate) use offload::BLOCK;
pub(crate) use place::{Place, Placing};

use crate::format::qcow2::{Piece, Qcow2};
use crate::map::Holes;
use crate::{Device, Error, ErrorKind, Format, Result, Run, RunKind, Runs};

/// Longer chains are refused.
const MAX_LAYERS: usize = 256;
/// Bytes of cached tables and decompressed clusters for a whole image, unless the caller says otherwise.
const MEMORY: u64 = 16 << 20;
/// Raw files may end anywhere in the last of these.
const RAW_BLOCK: u64 = 512;

/// One volume of a chain, as the records describe it.
#[derive(Clone, Debug)]
pub struct Layer {
    /// What it lies on.
    pub device: Arc<dyn Device>,
    /// What its bytes mean; never guessed.
    pub format: Format,
    /// How much of it shows, in bytes. For the top layer the size of the image, for a lower one what shows
    /// through the layer above; beyond it are zeroes. The top layer may be longer: [`Image::grow`] hides what
    /// is there.
    pub size: u64,
}

/// How an image is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct ImageOptions<'a> {
    /// The top layer is to be written.
    pub writable: bool,
    /// The files that hold the data of layers whose headers say that it lies elsewhere: each with the layer's number,
    /// counted from the top. The names in the headers count for nothing.
    pub data_files: &'a [(usize, Arc<dyn Device>)],
    /// Bytes that cached tables and decompressed clusters of all layers together may take, about; 16 MiB if it is not
    /// said. What is needed at any moment has room however little it is. The L1 and refcount tables come on top: 8 bytes
    /// for each 512 MiB of the disk, and each 2 GiB of the file, with clusters of 64 KiB.
    pub memory: Option<u64>,
}

#[derive(Debug)]
enum Content {
    Raw,
    Qcow2(Box<Qcow2>),
}

#[derive(Debug)]
struct Opened {
    device: Arc<dyn Device>,
    /// Only that of the top layer changes, and only upwards.
    size: AtomicU64,
    content: Content,
}

impl Opened {
    /// What its bytes lie on.
    fn data(&self) -> &Arc<dyn Device> {
        match &self.content {
            Content::Raw => &self.device,
            Content::Qcow2(image) => image.data(),
        }
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// All that it has, whether it shows or not.
    fn whole_size(&self) -> Result<u64> {
        match &self.content {
            Content::Raw => self.device.len(),
            Content::Qcow2(image) => image.size(),
        }
    }
}

/// A disk: its layers, top first. All calls may come from many threads at once.
///
/// Concurrent writes to the same bytes leave one of them, or a mix; writes to different bytes never disturb
/// each other, also within one cluster.
#[derive(Debug)]
pub struct Image {
    layers: Vec<Opened>,
    writable: bool,
    /// Shared by every read and write, exclusive for a flush: when it ends, nobody knows the place of a
    /// cluster that it freed any more.
    gate: RwLock<()>,
    /// Bytes written since the last flush, about.
    unflushed: AtomicU64,
    /// One at a time.
    growing: Mutex<()>,
}

impl Image {
    /// Opens the layers, top first; only the top one is ever written. What the headers name is not opened (R2).
    ///
    /// `InvalidInput`: no layers, more than 256, a raw layer above another. `Corrupt`: the same storage twice,
    /// or a qcow2 layer smaller than its `size`. `ShortRead`: a raw device shorter than its `size`, the last
    /// 512-byte block apart.
    pub fn open(layers: Vec<Layer>, writable: bool) -> Result<Image> {
        Self::open_with(layers, &ImageOptions { writable, ..ImageOptions::default() })
    }

    /// Opens the layers as [`Image::open`] does, with more to choose.
    ///
    /// Also `InvalidInput`: a data file for a layer that has none, or that is not there; `Unsupported`: one for the top
    /// layer, and `writable`.
    pub fn open_with(layers: Vec<Layer>, options: &ImageOptions<'_>) -> Result<Image> {
        let ImageOptions { writable, data_files, memory } = *options;
        let invalid = |message| Err(Error::new(ErrorKind::InvalidInput, message));
        if layers.is_empty() {
            return invalid("an image needs a layer");
        }
        if layers.len() > MAX_LAYERS {
            return invalid("more than 256 layers");
        }
        let is_qcow2 = |index: &usize| layers.get(*index).is_some_and(|layer| layer.format == Format::Qcow2);
        if !data_files.iter().all(|(index, _)| is_qcow2(index)) {
            return invalid("a data file of a layer that is none, or not qcow2");
        }
        let mut ids: Vec<_> = layers.iter().map(|layer| layer.device.id()).collect();
        ids.extend(data_files.iter().map(|(_, device)| device.id()));
        ids.sort_unstable();
        if ids.windows(2).any(|pair| pair[0] == pair[1]) {
            let name = layers[0].device.name();
            return Err(Error::new(ErrorKind::Corrupt, "the chain contains a volume twice").with_path(name));
        }
        let memory = memory.unwrap_or(MEMORY) / layers.len() as u64;
        let count = layers.len();
        let mut opened = Vec::with_capacity(count);
        for (index, Layer { device, format, size }) in layers.into_iter().enumerate() {
            if i64::try_from(size).is_err() {
                return invalid("size over 2^63");
            }
            let below = index + 1 < count;
            let content = match format {
                Format::Raw if below => return invalid("a raw layer cannot have a backing layer"),
                Format::Raw => {
                    if device.len()?.next_multiple_of(RAW_BLOCK) < size {
                        return Err(Error::new(ErrorKind::ShortRead, "the device is shorter than the image")
                            .with_path(device.name())
                            .with_range(0, size));
                    }
                    Content::Raw
                }
                Format::Qcow2 => {
                    let data = data_files.iter().find(|(layer, _)| *layer == index);
                    let data = data.map(|(_, device)| Arc::clone(device));
                    let writable = writable && index == 0;
                    let image = Qcow2::open(Arc::clone(&device), data, writable, below, memory)?;
                    if image.size()? < size {
                        return Err(Error::new(
                            ErrorKind::Corrupt,
                            "the image is smaller than its record says",
                        )
                        .with_path(device.name()));
                    }
                    Content::Qcow2(Box::new(image))
                }
            };
            opened.push(Opened { device, size: AtomicU64::new(size), content });
        }
        Ok(Image {
            layers: opened,
            writable,
            gate: RwLock::new(()),
            unflushed: AtomicU64::new(0),
            growing: Mutex::new(()),
        })
    }

    /// Bytes of the disk: the `size` of its top layer, or what it was grown to.
    pub fn size(&self) -> u64 {
        self.layers.first().map_or(0, Opened::size)
    }

    /// The format of a layer, counted from the top; `None`: there is no such layer.
    pub(crate) fn format(&self, layer: usize) -> Option<Format> {
        self.layers.get(layer).map(|layer| match layer.content {
            Content::Raw => Format::Raw,
            Content::Qcow2(_) => Format::Qcow2,
        })
    }

    /// What the bytes of a layer, counted from the top, lie on; `None`: there is no such layer.
    pub(crate) fn device(&self, layer: usize) -> Option<&dyn Device> {
        self.layers.get(layer).map(|layer| &**layer.data())
    }

    /// Has the page cache forget what it has of the top layer, if that lies in a file and is flushed: what is read next comes
    /// from the disk.
    pub fn forget_cached(&self) {
        if let Some(file) = self.device(0).and_then(Device::as_file) {
            // Where it is not done, what is read is not worse than without.
            let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
        }
    }

    /// Where the bytes of a run lie; `None`: in no place of a device.
    pub(crate) fn place_of(&self, kind: RunKind) -> Option<(&dyn Device, u64)> {
        let RunKind::Data { layer, device: id, device_offset } = kind else { return None };
        let device = self.device(layer).filter(|device| device.id() == id)?;
        Some((device, device_offset))
    }

    /// The cluster size of the top layer, `None` if it is raw.
    pub(crate) fn cluster_size(&self) -> Option<u64> {
        match &self.layers.first()?.content {
            Content::Raw => None,
            Content::Qcow2(image) => Some(image.cluster_size()),
        }
    }

    /// Keeps flushes out. It guards nothing but the order of things, so that a panic elsewhere does not matter.
    fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        if offset.checked_add(length).is_none_or(|end| end > self.size()) {
            let error = Error::new(ErrorKind::InvalidInput, "beyond the end of the disk");
            let error = match self.layers.first() {
                Some(top) => error.with_path(top.device.name()),
                None => error,
            };
            return Err(error.with_range(offset, length));
        }
        Ok(())
    }

    /// Fills the buffer from that offset of the disk; `InvalidInput` beyond its end.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.check_range(offset, buffer.len() as u64)?;
        let _guard = self.enter();
        self.read_from(0, offset, buffer)
    }

    /// Reads what the layers from `layer` on show; the range lies within that layer's size or beyond it.
    fn read_from(&self, layer: usize, mut offset: u64, mut buffer: &mut [u8]) -> Result<()> {
        let mut holes = Holes::default();
        while !buffer.is_empty() {
            let (found, piece, length) =
                self.piece_of(layer..self.layers.len(), offset, buffer.len() as u64, &mut holes)?;
            let (now, rest) = buffer.split_at_mut(length as usize);
            let content = self.layers.get(found).map(|layer| (&layer.content, &layer.device));
            match (piece, content) {
                (Piece::Data(at), Some((Content::Raw, device))) => device.read_at(at, now)?,
                (Piece::Data(at), Some((Content::Qcow2(image), _))) => image.read_data(at, now)?,
                (Piece::Packed(packed, skip), Some((Content::Qcow2(image), _))) => {
                    image.read_packed(packed, skip, now)?;
                }
                _ => now.fill(0),
            }
            offset += length;
            buffer = rest;
        }
        Ok(())
    }

    /// The first run of the map at `offset`, at most `length` bytes long; `length` is not 0.
    pub fn run(&self, offset: u64, length: u64) -> Result<Run> {
        self.run_knowing(offset, length, &mut Holes::default())
    }

    /// The same, with what is known of holes that begin before `offset`.
    pub(crate) fn run_knowing(&self, offset: u64, length: u64, holes: &mut Holes) -> Result<Run> {
        self.run_of(self.layers.len(), offset, length, holes)
    }

    /// The same of so many layers from the top; what lies below them is a hole.
    pub(crate) fn run_of(&self, layers: usize, offset: u64, length: u64, holes: &mut Holes) -> Result<Run> {
        self.check_range(offset, length)?;
        if length == 0 {
            return Err(Error::new(ErrorKind::InvalidInput, "an empty range has no run"));
        }
        let (layer, piece, length) = self.piece_of(0..layers, offset, length, holes)?;
        let kind = match piece {
            Piece::Unallocated => RunKind::Hole,
            Piece::Zero => RunKind::Zero { layer },
            Piece::Packed(..) => RunKind::Compressed { layer },
            Piece::Data(device_offset) => {
                RunKind::Data { layer, device: self.layers[layer].data().id(), device_offset }
            }
        };
        Ok(Run { offset, length, kind })
    }

    /// The first piece at `offset`, at most `length` bytes, of the uppermost of these layers that has it; unallocated if
    /// none does.
    fn piece_of(
        &self,
        layers: Range<usize>,
        offset: u64,
        mut length: u64,
        holes: &mut Holes,
    ) -> Result<(usize, Piece, u64)> {
        let all = length;
        for (index, layer) in self.layers.iter().enumerate().take(layers.end).skip(layers.start) {
            let size = layer.size();
            let Some(room) = size.checked_sub(offset).filter(|room| *room > 0) else { break };
            length = length.min(room);
            let known = holes.known(index, offset);
            if known > 0 {
                length = length.min(known);
                continue;
            }
            let piece = match &layer.content {
                Content::Raw => {
                    // An unaligned file ends before its last block does.
                    match layer.device.len()?.checked_sub(offset).filter(|room| *room > 0) {
                        None if size - offset >= RAW_BLOCK => {
                            return Err(Error::new(ErrorKind::ShortRead, "the device became shorter")
                                .with_path(layer.device.name())
                                .with_range(offset, length));
                        }
                        None => Piece::Unallocated,
                        Some(room) => {
                            length = length.min(room);
                            let extent = layer.device.extent(offset, length)?;
                            length = length.min(extent.length.max(1));
                            if extent.data { Piece::Data(offset) } else { Piece::Unallocated }
                        }
                    }
                }
                Content::Qcow2(image) => {
                    let (piece, found) = image.map(offset, length, all)?;
                    length = found;
                    piece
                }
            };
            if piece != Piece::Unallocated {
                return Ok((index, piece, length));
            }
            holes.learn(index, offset + length);
        }
        Ok((layers.end, Piece::Unallocated, length))
    }

    /// The map of a range, as a stream. A range beyond the end of the disk gives an error as its first item.
    pub fn runs(&self, offset: u64, length: u64) -> Runs<'_> {
        self.runs_of(self.layers.len(), offset, length)
    }

    /// The same of so many layers from the top; what lies below them is a hole.
    pub(crate) fn runs_of(&self, layers: usize, offset: u64, length: u64) -> Runs<'_> {
        Runs::new(self, layers, offset, length)
    }
}
