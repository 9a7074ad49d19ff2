//! Writing in two steps: places for whole clusters, and later, once the caller has written there, the map.

use std::sync::RwLockReadGuard;

use super::{Content, Image, Opened};
use crate::format::qcow2::Placed;
use crate::plan::{Action, Move};
use crate::{Device, Result};

/// Space is reserved so far ahead of writing in a qcow2 file.
const AHEAD: u64 = 32 << 20;
/// The same in a raw one, where it is known what comes: bytes, and pieces.
const AHEAD_RAW: u64 = 1 << 30;
const AHEAD_PIECES: usize = 256;

/// Where bytes of the disk are to be written on the device of the top layer.
#[derive(Debug)]
pub(crate) struct Place {
    /// Offset on the device.
    pub host: u64,
    /// Bytes, at least 1.
    pub length: u64,
    /// What the map needs.
    placed: Option<Placed>,
}

/// Writing into the top layer of an image from outside, with flushes kept out meanwhile: nothing else of this image that
/// writes or flushes may be called on the same thread.
#[derive(Debug)]
pub(crate) struct Placing<'a> {
    image: &'a Image,
    top: &'a Opened,
    guard: Option<RwLockReadGuard<'a, ()>>,
    /// What will be written, about.
    left: u64,
    /// Up to where on the device space was reserved.
    reserved: u64,
    /// Space cannot be reserved, or need not be.
    unreserved: bool,
    /// How long the file was, if it may have become longer than what is in it.
    was: Option<u64>,
}

impl Image {
    /// Begins to write about so many bytes.
    pub(crate) fn placing(&self, bytes: u64) -> Result<Placing<'_>> {
        let top = self.check_write(0, 0)?;
        let unreserved = top.device.fixed_len()?.is_some();
        let guard = Some(self.enter());
        Ok(Placing { image: self, top, guard, left: bytes, reserved: 0, unreserved, was: None })
    }
}

impl<'a> Placing<'a> {
    /// The device that is written.
    pub fn device(&self) -> &'a dyn Device {
        &**self.top.data()
    }

    /// The size in which zeroes and data are told apart, and written: clusters, if they are larger than that.
    pub fn unit(&self, least: u64) -> u64 {
        self.image.cluster_size().unwrap_or(1).max(least)
    }

    /// Whether a flush is due before more is placed: [`Placing::flush`].
    pub fn is_crowded(&self) -> Result<bool> {
        match &self.top.content {
            Content::Raw => Ok(false),
            Content::Qcow2(image) => image.is_crowded(),
        }
    }

    /// Flushes the image; everything that was placed is finished.
    pub fn flush(&mut self) -> Result<()> {
        self.guard = None;
        self.image.flush()?;
        self.guard = Some(self.image.enter());
        Ok(())
    }

    /// Says that this step will be placed soon, in part at least, and what follows it: space is reserved, where places are known
    /// beforehand; for many pieces at once, since ext4 waits for all requests under way before it reserves anything.
    pub fn foresee(&mut self, step: &Move, follow: &[Move]) {
        let end = (step.offset + step.length).min(self.image.size());
        if !matches!(self.top.content, Content::Raw) || end <= self.reserved {
            return;
        }
        let known = |step: &&Move| matches!(step.action, Action::Copy | Action::CopyNonZero);
        let (mut range, mut room) = (step.offset.max(self.reserved)..end, AHEAD_RAW);
        for step in follow.iter().filter(known).take(AHEAD_PIECES) {
            let from = step.offset.max(range.end);
            let end = (step.offset + step.length).min(self.image.size()).min(from + room);
            if end <= from {
                break;
            }
            if from > range.end {
                self.reserve(range.start, range.end);
                range.start = from;
            }
            (range.end, room) = (end, room - (end - from));
        }
        self.reserve(range.start, range.end);
    }

    /// Whether zeroes must be written though the target has some: space was reserved there.
    pub fn reserves_zeroes(&self) -> bool {
        !self.unreserved && self.image.cluster_size().is_none()
    }

    /// It only saves time: a failure, for lack of space too, is met again where it matters.
    fn reserve(&mut self, from: u64, end: u64) {
        if self.unreserved || self.top.device.allocate(from, end - from).is_err() {
            self.unreserved = true;
        } else {
            self.reserved = self.reserved.max(end);
        }
    }

    /// A place for the first part of a range. None: the range has to be written in another way, since it is not made of whole
    /// clusters, or what it replaces is needed for that.
    pub fn place(&mut self, offset: u64, length: u64) -> Result<Option<Place>> {
        self.image.check_write(offset, length)?;
        let Content::Qcow2(image) = &self.top.content else {
            return Ok(Some(Place { host: offset, length, placed: None }));
        };
        let cluster_size = image.cluster_size();
        if !offset.is_multiple_of(cluster_size) || length < cluster_size {
            return Ok(None);
        }
        let slice = image.slice_coverage() - offset % image.slice_coverage();
        let placed = image.place(offset, (length - length % cluster_size).min(slice))?;
        let (host, length) = (placed.host(), placed.length());
        self.left = self.left.saturating_sub(length);
        if host + length > self.reserved && placed.is_new() {
            if self.was.is_none() {
                self.was = Some(self.top.device.len()?);
            }
            self.reserve(host, host + length + self.left.min(AHEAD));
        }
        Ok(Some(Place { host, length, placed: Some(placed) }))
    }

    /// What was placed is written, or it is not.
    pub fn finish(&self, place: &Place, written: bool) -> Result<()> {
        match (&self.top.content, &place.placed) {
            (Content::Qcow2(image), Some(placed)) => image.finish_placed(placed, written),
            _ => Ok(()),
        }
    }

    /// Gives back what was reserved and not used.
    pub fn end(self) -> Result<()> {
        match (&self.top.content, self.was) {
            (Content::Qcow2(image), Some(was)) => image.trim(was),
            _ => Ok(()),
        }
    }
}
