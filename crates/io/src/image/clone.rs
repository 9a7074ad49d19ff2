//! Writing without moving bytes: ranges of other devices are cloned into the top layer.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::{Content, Image};
use crate::{Device, Result};

/// File systems clone whole blocks, which seldom are larger.
pub(crate) const BLOCK: u64 = 4096;

impl Image {
    /// Whether ranges of that device can be cloned into this image.
    pub(crate) fn can_clone(&self, source: &dyn Device) -> bool {
        self.writable && self.layers.first().is_some_and(|top| top.device.can_clone(source))
    }

    /// What of a range of the disk can be cloned: whole blocks of a raw file, whole clusters of a qcow2 one.
    pub(crate) fn clonable(&self, range: Range<u64>) -> Range<u64> {
        let unit = self.layers.first().map_or(BLOCK, |top| match &top.content {
            Content::Raw => BLOCK,
            Content::Qcow2(image) => image.cluster_size().max(BLOCK),
        });
        range.start.next_multiple_of(unit)..range.end / unit * unit
    }

    /// Clones bytes of another device to that offset of the disk, into the top layer alone; the range is one that
    /// [`Image::clonable`] gave. Returns how many bytes, from the offset on, are in place: less than asked for if the
    /// rest has to be written.
    pub(crate) fn write_clone(
        &self,
        offset: u64,
        length: u64,
        source: &dyn Device,
        source_offset: u64,
    ) -> Result<u64> {
        let top = self.check_write(offset, length)?;
        let mut cloned = 0;
        match &top.content {
            Content::Raw => {
                if top.device.clone_range(offset, source, source_offset, length)? {
                    cloned = length;
                }
            }
            Content::Qcow2(image) => self.each_part(image, offset, length, |at, part| {
                // A piece that could not be cloned ends it.
                if cloned == at - offset {
                    let done = image.write_clone(at, part, source, source_offset + cloned)?;
                    self.unflushed.fetch_add(done, Ordering::Relaxed);
                    cloned += done;
                }
                Ok(())
            })?,
        }
        Ok(cloned)
    }
}
