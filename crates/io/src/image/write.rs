//! The writing half of an image.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::{Content, Image, Opened};
use crate::format::qcow2::{Below, Piece, Qcow2};
use crate::map::Holes;
use crate::{Error, ErrorKind, Result, without};

/// Of so many bytes, the larger part is made durable before a flush stops readers and writers.
const MUCH: u64 = 8 << 20;

/// The layers under the top one.
struct UnderTop<'a>(&'a Image);

impl Below for UnderTop<'_> {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.0.read_below(offset, buffer)
    }

    fn is_zero(&self, offset: u64, length: u64) -> Result<bool> {
        self.0.is_zero_below(offset, offset.saturating_add(length).min(self.0.size()))
    }
}

impl Image {
    /// Reads what the layers below the top one show; zeroes beyond the end of the disk, for what lies there must
    /// not show when it grows.
    pub(super) fn read_below(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let visible = (self.size().saturating_sub(offset) as usize).min(buffer.len());
        let (now, rest) = buffer.split_at_mut(visible);
        rest.fill(0);
        self.read_from(1, offset, now)
    }

    /// Whether the layers below the top one are known to be zero from `at` to `end`.
    pub(super) fn is_zero_below(&self, mut at: u64, end: u64) -> Result<bool> {
        let mut holes = Holes::default();
        while at < end {
            let (_, piece, length) = self.piece_of(1..self.layers.len(), at, end - at, &mut holes)?;
            if !matches!(piece, Piece::Unallocated | Piece::Zero) {
                return Ok(false);
            }
            at += length;
        }
        Ok(true)
    }

    fn top(&self) -> Result<&Opened> {
        self.layers.first().ok_or_else(|| Error::new(ErrorKind::InvalidInput, "an image needs a layer"))
    }

    pub(super) fn check_write(&self, offset: u64, length: u64) -> Result<&Opened> {
        let top = self.top()?;
        if !self.writable {
            return Err(
                Error::new(ErrorKind::ReadOnly, "opened for reading only").with_path(top.device.name())
            );
        }
        self.check_range(offset, length)?;
        Ok(top)
    }

    /// Calls `work` for the parts of the range that lie under one slice of an L2 table each, with flushes kept out; flushes
    /// between them when too many tables have changed.
    pub(super) fn each_part(
        &self,
        image: &Qcow2,
        offset: u64,
        length: u64,
        mut work: impl FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        let end = offset + length;
        let mut at = offset;
        while at < end {
            if image.is_crowded()? {
                self.flush()?;
            }
            let part = (image.slice_coverage() - at % image.slice_coverage()).min(end - at);
            let _guard = self.enter();
            work(at, part)?;
            at += part;
        }
        Ok(())
    }

    /// Writes at that offset of the disk, into the top layer alone; clusters that are not there yet are made,
    /// their rest copied from below. Durable after [`Image::flush`].
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let top = self.check_write(offset, data.len() as u64)?;
        match &top.content {
            Content::Raw => top.device.write_at(offset, data),
            Content::Qcow2(image) => self.each_part(image, offset, data.len() as u64, |at, length| {
                let from = (at - offset) as usize;
                self.unflushed.fetch_add(length, Ordering::Relaxed);
                image.write(at, &data[from..from + length as usize], &UnderTop(self))
            }),
        }
    }

    /// Writes whole clusters compressed into the top layer, a qcow2, as its header says; one that does not become
    /// smaller is written plainly. Otherwise like [`Image::write`].
    ///
    /// `InvalidInput` if the top layer is raw, or the range does not begin at a multiple of the cluster size and end
    /// at one or at the end of the disk.
    pub fn write_compressed(&self, offset: u64, data: &[u8]) -> Result<()> {
        let length = data.len() as u64;
        let top = self.check_write(offset, length)?;
        let invalid = |message| {
            Err(Error::new(ErrorKind::InvalidInput, message)
                .with_path(top.device.name())
                .with_range(offset, length))
        };
        let Content::Qcow2(image) = &top.content else {
            return invalid("only a qcow2 image can be compressed");
        };
        let cluster_size = image.cluster_size();
        let end = offset + length;
        if !offset.is_multiple_of(cluster_size) || !(end.is_multiple_of(cluster_size) || end == self.size()) {
            return invalid("only whole clusters can be compressed");
        }
        self.each_part(image, offset, length, |at, length| {
            let from = (at - offset) as usize;
            self.unflushed.fetch_add(length, Ordering::Relaxed);
            for (index, cluster) in
                data[from..from + length as usize].chunks(cluster_size as usize).enumerate()
            {
                let at = at + index as u64 * cluster_size;
                if cluster.len() as u64 == cluster_size {
                    image.write_packed(at, cluster, &UnderTop(self))?;
                } else {
                    // Beyond the end of the disk there are zeroes.
                    let mut whole = cluster.to_vec();
                    whole.resize(cluster_size as usize, 0);
                    image.write_packed(at, &whole, &UnderTop(self))?;
                }
            }
            Ok(())
        })
    }

    /// Makes a range read as zeroes, whatever the layers below hold, and gives back its space where possible.
    pub fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        let top = self.check_write(offset, length)?;
        match &top.content {
            Content::Raw => top.device.write_zeroes(offset, length),
            Content::Qcow2(image) => self.each_part(image, offset, length, |at, length| {
                image.write_zeroes(at, length, self.size(), &UnderTop(self))
            }),
        }
    }

    /// The guest no longer needs the range: it reads as zeroes from now on, as after [`Image::write_zeroes`].
    pub fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.write_zeroes(offset, length)
    }

    /// Makes all writes that have returned durable, in an order that leaves a valid image at every moment.
    ///
    /// After a failure every write and flush of this image fails with `Poisoned`: open it again.
    pub fn flush(&self) -> Result<()> {
        let top = self.check_write(0, 0)?;
        match &top.content {
            Content::Raw if without!("image.flush.raw") => Ok(()),
            Content::Raw => top.device.flush(),
            Content::Qcow2(image) => {
                if self.unflushed.swap(0, Ordering::Relaxed) >= MUCH {
                    image.flush_data()?;
                }
                let _guard = (!without!("image.lock.flush"))
                    .then(|| self.gate.write().unwrap_or_else(PoisonError::into_inner));
                image.flush()
            }
        }
    }
}
