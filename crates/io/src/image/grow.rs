//! Larger disks.

use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::{Content, Image};
use crate::format::qcow2::{Below, Qcow2};
use crate::{Device, Error, ErrorKind, Result, without};

/// The layers under the top one while the disk grows: bytes beyond its old end are not read as they are, but
/// they count when it is asked whether zeroes may be left out.
struct UnderGrowing<'a> {
    image: &'a Image,
    new: u64,
    /// From here to there is more of the layer below than shows.
    hidden: Range<u64>,
}

impl Below for UnderGrowing<'_> {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.image.read_below(offset, buffer)
    }

    fn is_zero(&self, offset: u64, length: u64) -> Result<bool> {
        let end = offset.saturating_add(length).min(self.new);
        if offset < self.hidden.end && end > self.hidden.start {
            return Ok(false);
        }
        self.image.is_zero_below(offset, end)
    }
}

impl Image {
    /// Makes the disk larger; the new bytes read as zeroes. Durable when it returns, and [`Image::size`] is
    /// `new_size` from then on: whoever opens the image again gives that as the `size` of its top layer.
    ///
    /// What lies below, and what the top layer's device has from earlier beyond the old end, does not show: as
    /// far as the layer below reaches, the new bytes become explicit zeroes in the top layer; also where that has more
    /// than shows, for who opens the files as their headers say sees all of it. Before the header of a qcow2 tells the
    /// new size all of that is durable, so a power cut leaves the old disk or the new one; opened with the old `size`
    /// it can be grown again.
    ///
    /// Nor does anything show beyond the new end: a raw file is as long as the disk then, a qcow2 whose header tells of
    /// more has zeroes there. That is so too if `new_size` is the size that it has. (The length of a block device is not
    /// ours, and who opens one without being told the size reads beyond the disk in any case.)
    ///
    /// `InvalidInput` if `new_size` is smaller than the size, no multiple of 512 or more than the format can
    /// have, and for a qcow2 whose header names a backing file that is not among the layers. `NoSpace` if the
    /// device cannot hold it. Reads and writes within the old size may go on meanwhile.
    pub fn grow(&self, new_size: u64) -> Result<()> {
        let top = self.check_write(0, 0)?;
        let _one = (!without!("image.lock.growing"))
            .then(|| self.growing.lock().unwrap_or_else(PoisonError::into_inner));
        let old = self.size();
        let invalid = |message| {
            Err(Error::new(ErrorKind::InvalidInput, message)
                .with_path(top.device.name())
                .with_range(old, new_size.saturating_sub(old)))
        };
        if new_size < old {
            return invalid("a disk cannot become smaller");
        }
        if !new_size.is_multiple_of(512) || i64::try_from(new_size).is_err() {
            return invalid("the new size is no multiple of 512, or over 2^63");
        }
        match &top.content {
            Content::Raw => {
                grow_raw(&*top.device, old, new_size)?;
                top.size.store(new_size, Ordering::Release);
                Ok(())
            }
            Content::Qcow2(image) => {
                let told = if without!("image.zero.grow-beyond") { 0 } else { image.size()? };
                let whole = told.max(new_size);
                if whole == old {
                    return Ok(());
                }
                if image.names_backing() && self.layers.len() < 2 {
                    return invalid("growing needs the layer below");
                }
                image.check_growth(new_size)?;
                self.zero_growth(image, old, whole)?;
                let _guard = (!without!("image.lock.grow"))
                    .then(|| self.gate.write().unwrap_or_else(PoisonError::into_inner));
                image.flush_and_grow(new_size)?;
                top.size.store(new_size, Ordering::Release);
                Ok(())
            }
        }
    }

    /// Makes what lies beyond the old end read as zeroes, and reachable; `new`: where the header's disk ends then.
    fn zero_growth(&self, image: &Qcow2, old: u64, new: u64) -> Result<()> {
        let cluster_size = image.cluster_size();
        let hidden = match self.layers.get(1) {
            Some(layer) => layer.size()..layer.whole_size()?.max(layer.size()),
            None => 0..0,
        };
        let reached = hidden.end;
        let below = UnderGrowing { image: self, new, hidden };
        // The rest of the old last cluster.
        let first = old.next_multiple_of(cluster_size);
        if !without!("image.zero.grow-part") {
            self.each_part(image, old, first.min(new) - old, |at, length| {
                image.zero_part(at, length, &below)
            })?;
        }
        // Whole clusters: explicit zeroes over what lies below, beyond it only where there is something.
        let zero = |from: u64, to: u64, allocated_only: bool| {
            self.each_part(image, from, to.saturating_sub(from), |at, length| {
                image.zero_clusters(at / cluster_size..(at + length) / cluster_size, allocated_only)
            })
        };
        let end = new.next_multiple_of(cluster_size);
        let covered = reached.min(new).next_multiple_of(cluster_size).max(first);
        let reach = image.reach()?;
        if !without!("image.zero.grow") {
            zero(first, covered.min(reach), false)?;
        }
        if !without!("image.zero.grow-old") {
            zero(covered, end.min(reach), true)?;
        }
        if new > reach {
            // New entries of L1 are empty; what they are filled with goes to new tables only.
            image.extend_l1(new)?;
            zero(first.max(reach), covered, false)?;
        }
        Ok(())
    }
}

fn grow_raw(device: &dyn Device, old: u64, new: u64) -> Result<()> {
    let fixed = device.fixed_len()?;
    if fixed.is_some_and(|fixed| fixed < new) {
        return Err(Error::new(ErrorKind::NoSpace, "the device is too small")
            .with_path(device.name())
            .with_range(old, new - old));
    }
    let length = device.len()?;
    if length == new && old == new {
        return Ok(());
    }
    if length.min(new) > old && !without!("image.zero.grow-raw") {
        device.write_zeroes(old, length.min(new) - old)?;
    }
    // What a program had beyond the new end would show through whatever is longer and built on this.
    let cut = length > new && fixed.is_none() && !without!("image.cut.grow-raw");
    if length < new || cut {
        device.set_len(new)?;
    }
    // Until the caller knows of the new size, nobody reads what these change: in any order they may become durable.
    if !without!("image.flush.grow-raw") {
        device.flush()?;
    }
    Ok(())
}
