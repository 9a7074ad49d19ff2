//! Writing without moving bytes: the storage brings ranges of other devices into the top layer.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::{Content, Image, Opened};
use crate::{Device, Offload, Result};

/// File systems clone whole blocks, which seldom are larger; pages, of which the cache of an NFS client holds whole ones, are of that
/// size too.
pub(crate) const BLOCK: u64 = 4096;

/// Brings bytes of a range to a device: gets the offset there, where they begin in the range, and how many they are. Returns how
/// many are in place.
pub(crate) type Fill<'a> = dyn FnMut(&dyn Device, u64, u64, u64) -> Result<u64> + 'a;

impl Image {
    /// Whether ranges of that device may be brought into this image in that way.
    pub(crate) fn can_offload(&self, how: Offload, source: &dyn Device) -> bool {
        self.writable && self.layers.first().is_some_and(|top| top.device.can_offload(how, source))
    }

    /// Whether it is one raw file: each byte lies there at its own offset.
    pub(crate) fn is_raw(&self) -> bool {
        matches!(&self.layers[..], [Opened { content: Content::Raw, .. }])
    }

    /// What of a range of the disk can be brought in so: whole blocks of a raw file, whole clusters of a qcow2 one.
    pub(crate) fn offloadable(&self, range: Range<u64>) -> Range<u64> {
        let unit = self.layers.first().map_or(BLOCK, |top| match &top.content {
            Content::Raw => BLOCK,
            Content::Qcow2(image) => image.cluster_size().max(BLOCK),
        });
        range.start.next_multiple_of(unit)..range.end / unit * unit
    }

    /// Has `fill` bring bytes to that offset of the disk, into the top layer alone; the range is one that [`Image::offloadable`]
    /// gave. Returns how many bytes, from the offset on, are in place: less than asked for if the rest has to be written.
    pub(crate) fn fill(&self, offset: u64, length: u64, fill: &mut Fill<'_>) -> Result<u64> {
        let top = self.check_write(offset, length)?;
        let device = &*top.device;
        let mut done = 0;
        match &top.content {
            Content::Raw => done = fill(device, offset, 0, length)? / BLOCK * BLOCK,
            Content::Qcow2(image) => self.each_part(image, offset, length, |at, part| {
                let begin = at - offset;
                // A part that is not in place ends it.
                if done == begin {
                    let bytes = image.fill_placed(at, part, &mut |place, within, length| {
                        fill(device, place, begin + within, length)
                    })?;
                    self.unflushed.fetch_add(bytes, Ordering::Relaxed);
                    done += bytes;
                }
                Ok(())
            })?,
        }
        Ok(done)
    }
}
