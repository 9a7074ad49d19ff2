//! The work on one thread: slots of memory that are read, looked at, and written.

use super::kept::Held;
use super::{LARGE, SMALL, cover};
use crate::device::Direct;
use crate::execute::{Control, Fate, Totals, fates};
use crate::hash::Units;
use crate::image::{Place, Placing};
use crate::map::Holes;
use crate::plan::{Action, Move, UNIT};
use crate::sys::queue::{Done, Kind, Way};
use crate::{Device, DeviceId, Error, Image, Result, sys};

/// Whether the cache has what is to be read is asked each time; after so many times without, only now and then.
const PROBES: u32 = 8;
/// How seldom.
const SELDOM: u32 = 16;

/// A piece of a slot, and where it is read from.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub device: &'a dyn Device,
    pub direct: &'a Direct,
    pub offset: u64,
    /// Where in the slot it goes.
    pub within: usize,
    pub length: usize,
}

impl Part<'_> {
    /// Whether bytes of that device go on where these end, there and in the slot.
    pub fn is_followed_by(&self, device: &dyn Device, offset: u64, within: usize) -> bool {
        self.within + self.length == within
            && self.offset + self.length as u64 == offset
            && self.device.id() == device.id()
    }
}

/// What is done with the bytes.
pub(super) enum Sink<'a> {
    /// They are written, and hashes taken of them if they are wanted.
    Target(Placing<'a>, Option<&'a Units>),
    /// They are looked at.
    Visit(&'a Visit<'a>),
}

/// Gets a step, its bytes, and those of the base if it compares.
pub(in crate::execute) type Visit<'a> = dyn Fn(&Move, &[u8], Option<&[u8]>) -> Result<()> + Sync + 'a;

/// A step, and the moves that follow, the rest of its own first.
pub(super) type Next<'a> = (Move, &'a [Move]);

/// A step under way.
#[derive(Debug)]
struct Work {
    step: Move,
    /// The slot of the base.
    base: Option<usize>,
    /// Requests that have not ended.
    pending: u32,
    /// A request failed, or moved less than it was to.
    failed: bool,
    writing: bool,
    /// Bytes that were left to others.
    left: u64,
}

/// A request under way.
#[derive(Debug)]
struct Pending {
    /// The slot of the step.
    owner: usize,
    /// The slot of the memory.
    slot: usize,
    length: u32,
    /// What is written: where in the disk, and its place.
    write: Option<(u64, Place)>,
}

pub(super) struct Transfer<'a> {
    held: Held<'a>,
    source: &'a Image,
    base: Option<&'a Image>,
    sink: Sink<'a>,
    control: &'a Control<'a>,
    totals: &'a Totals,
    source_holes: Holes,
    base_holes: Holes,
    /// By slot: the step that it is the first slot of.
    works: Vec<Option<Work>>,
    /// Slots that nothing is in, by size: small, large.
    free: [Vec<usize>; 2],
    /// Cut off, and waiting for a slot.
    ahead: Option<Next<'a>>,
    /// By token.
    pending: Vec<Option<Pending>>,
    /// Tokens that no request has.
    tokens: Vec<usize>,
    left: Vec<Move>,
    /// Requests that the queue did not take.
    refused: Vec<Done>,
    /// Probes of the cache that found nothing, one after the other.
    cold: u32,
    /// The device from which something was in the cache last: of the source, and of the base.
    warm: [Option<DeviceId>; 2],
    stopping: bool,
}

impl<'a> Transfer<'a> {
    pub fn new(
        held: Held<'a>,
        source: &'a Image,
        base: Option<&'a Image>,
        sink: Sink<'a>,
        control: &'a Control<'a>,
        totals: &'a Totals,
    ) -> Transfer<'a> {
        let slots = || 0..held.queue.slots();
        let of = |size: u64| slots().rev().filter(|slot| held.queue.size(*slot) as u64 == size).collect();
        let (free, works) = ([of(SMALL), of(LARGE)], slots().map(|_| None).collect());
        Transfer {
            held,
            source,
            base,
            sink,
            control,
            totals,
            source_holes: Holes::default(),
            base_holes: Holes::default(),
            works,
            free,
            ahead: None,
            pending: Vec::new(),
            tokens: Vec::new(),
            left: Vec::new(),
            refused: Vec::new(),
            cold: 0,
            warm: [None; 2],
            stopping: false,
        }
    }

    /// Works off what `next` hands out, in order of offset.
    pub fn all(&mut self, next: &mut dyn FnMut() -> Result<Option<Next<'a>>>) -> Result<()> {
        let mut more = true;
        loop {
            while more {
                self.control.check()?;
                let cut = self.ahead.take();
                let Some((step, follow)) = (if cut.is_some() { cut } else { next()? }) else {
                    more = false;
                    break;
                };
                // It may need a slot for its base, too.
                if self.slots_for(step.length).len() < 2 {
                    self.ahead = Some((step, follow));
                    break;
                }
                self.begin(step, follow)?;
            }
            if !self.wait()? && !more {
                return Ok(());
            }
        }
    }

    fn slots_for(&mut self, length: u64) -> &mut Vec<usize> {
        &mut self.free[usize::from(length > SMALL)]
    }

    fn release(&mut self, slot: usize) {
        let size = self.held.queue.size(slot) as u64;
        self.slots_for(size).push(slot);
    }

    /// Waits for what is under way, gives up what was reserved and the queue, and returns what is left, in order.
    pub fn end(mut self, kind: Kind) -> Result<Vec<Move>> {
        self.stopping = true;
        let mut outcome = Ok(());
        // What was placed must be finished, whatever else goes wrong.
        loop {
            let before = self.tokens.len();
            match self.wait() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    outcome = outcome.and(Err(error));
                    if self.tokens.len() == before {
                        break;
                    }
                }
            }
        }
        self.held.give_back(kind);
        outcome?;
        if let Sink::Target(placing, _) = self.sink {
            placing.end()?;
        }
        self.left.sort_unstable_by_key(|step| step.offset);
        let mut left: Vec<Move> = Vec::with_capacity(self.left.len());
        for step in self.left {
            match left.last_mut() {
                Some(last) if last.action == step.action && last.offset + last.length == step.offset => {
                    last.length += step.length;
                }
                _ => left.push(step),
            }
        }
        Ok(left)
    }

    /// Handles the end of one request. False: none is under way.
    fn wait(&mut self) -> Result<bool> {
        if let Some(refused) = self.refused.pop() {
            self.ended(&refused)?;
            return Ok(true);
        }
        let failed = |error| Error::os("cannot wait for requests", error);
        self.held.queue.submit_much(LARGE).map_err(failed)?;
        let pending = &self.pending;
        let slot = |token: u64| match pending.get(token as usize) {
            Some(Some(request)) => request.slot,
            _ => usize::MAX,
        };
        let Some(done) = self.held.queue.wait(slot).map_err(failed)? else { return Ok(false) };
        self.ended(&done)?;
        Ok(true)
    }

    fn ended(&mut self, done: &Done) -> Result<()> {
        let index = done.token as usize;
        let Some(request) = self.pending.get_mut(index).and_then(Option::take) else { return Ok(()) };
        self.tokens.push(index);
        let whole = matches!(done.moved, Ok(moved) if moved == request.length);
        let owner = request.owner;
        let Some(work) = self.works.get_mut(owner).and_then(Option::as_mut) else { return Ok(()) };
        work.pending -= 1;
        match request.write {
            None => work.failed |= !whole,
            Some((at, place)) => {
                let length = place.length;
                if whole {
                    Totals::add(&self.totals.written, length);
                    Totals::add(&self.totals.direct, length);
                } else {
                    work.left += length;
                    self.left.push(Move { offset: at, length, action: work.step.action });
                }
                if let Sink::Target(placing, _) = &self.sink {
                    placing.finish(&place, whole)?;
                }
            }
        }
        let (writing, over) = (work.writing, work.pending == 0);
        match (over, writing) {
            (true, true) => self.over(owner),
            (true, false) => self.loaded(owner)?,
            (false, _) => {}
        }
        Ok(())
    }

    /// A step has ended.
    fn over(&mut self, owner: usize) {
        let Some(work) = self.works.get_mut(owner).and_then(Option::take) else { return };
        if let Some(base) = work.base {
            self.release(base);
        }
        self.release(owner);
        let done = work.step.length - work.left;
        if done > 0 {
            (self.control.progress)(done);
        }
    }

    fn begin(&mut self, step: Move, follow: &[Move]) -> Result<()> {
        let (offset, length) = (step.offset, step.length);
        if step.action == Action::Zero {
            self.left.push(step);
            return Ok(());
        }
        let compares = step.action == Action::Compare;
        let ours = cover(self.source, &mut self.source_holes, offset, length)?;
        let theirs = match self.base.filter(|_| compares) {
            Some(base) => cover(base, &mut self.base_holes, offset, length)?,
            None => (!compares).then(Vec::new),
        };
        let (Some(ours), Some(theirs)) = (ours, theirs) else {
            self.left.push(step);
            return Ok(());
        };
        if let Sink::Target(placing, _) = &self.sink
            && placing.is_crowded()?
        {
            while self.wait()? {}
            if let Sink::Target(placing, _) = &mut self.sink {
                placing.flush()?;
            }
        }
        if let Sink::Target(placing, _) = &mut self.sink
            && !compares
        {
            placing.foresee(&step, follow);
        }
        let Some(owner) = self.slots_for(length).pop() else {
            self.left.push(step);
            return Ok(());
        };
        let base = if compares { self.slots_for(length).pop() } else { None };
        self.works[owner] = Some(Work { step, base, pending: 0, failed: false, writing: false, left: 0 });
        self.load(owner, owner, &ours, length);
        if let Some(base) = base {
            self.load(owner, base, &theirs, length);
        }
        if self.works[owner].as_ref().is_some_and(|work| work.pending == 0) {
            self.loaded(owner)
        } else {
            Ok(())
        }
    }

    /// Starts to read a slot.
    fn load(&mut self, owner: usize, slot: usize, parts: &[Part<'a>], length: u64) {
        let Some(bytes) = self.held.queue.bytes_mut(slot) else {
            // It was free.
            if let Some(work) = &mut self.works[owner] {
                work.failed = true;
            }
            return;
        };
        // What no part covers reads as zeroes.
        let mut at = 0;
        for part in parts {
            bytes[at..part.within].fill(0);
            at = part.within + part.length;
        }
        bytes[at..length as usize].fill(0);
        for part in parts {
            if self.is_cached(slot, usize::from(slot != owner), part) {
                continue;
            }
            let range = part.within..part.within + part.length;
            let request = Pending { owner, slot, length: part.length as u32, write: None };
            self.start(Way::Read, part.direct, part.offset, range, request);
        }
        Totals::add(&self.totals.read, length);
    }

    fn start(
        &mut self,
        way: Way,
        direct: &'a Direct,
        offset: u64,
        range: std::ops::Range<usize>,
        request: Pending,
    ) {
        let token = self.tokens.pop().unwrap_or_else(|| {
            self.pending.push(None);
            self.pending.len() - 1
        });
        let (owner, slot) = (request.owner, request.slot);
        let started = self.held.queue.start(way, &direct.file, offset, slot, range, token as u64);
        self.pending[token] = Some(request);
        if let Some(work) = &mut self.works[owner] {
            work.pending += 1;
        }
        if let Err(error) = started {
            // As if it had failed at once.
            self.refused.push(Done { token: token as u64, moved: Err(error) });
        }
    }

    /// Takes a part from the page cache, if all of it is there; `side`: 0 of the source, 1 of the base.
    fn is_cached(&mut self, slot: usize, side: usize, part: &Part<'a>) -> bool {
        let Some(file) = part.device.as_file() else { return false };
        let Some(bytes) = self.held.queue.bytes_mut(slot) else { return false };
        let bytes = &mut bytes[part.within..part.within + part.length];
        // What follows what was there is most often there, too.
        let id = Some(part.device.id());
        if self.warm[side] == id && sys::read_cached(file, part.offset, bytes) {
            return true;
        }
        self.warm[side] = None;
        self.cold = self.cold.wrapping_add(1);
        if self.cold > PROBES && !self.cold.is_multiple_of(SELDOM) {
            return false;
        }
        if !sys::is_cached(file, part.offset..part.offset + part.length as u64) {
            return false;
        }
        let read = part.device.read_at(part.offset, bytes).is_ok();
        if read {
            (self.cold, self.warm[side]) = (0, id);
        }
        read
    }

    /// All of a step is in memory, or reading failed.
    fn loaded(&mut self, owner: usize) -> Result<()> {
        let Some(work) = self.works[owner].as_mut() else { return Ok(()) };
        let (step, base) = (work.step, work.base);
        let (queue, length) = (&self.held.queue, step.length as usize);
        let bytes = |slot| queue.bytes(slot).map(|bytes| &bytes[..length]);
        let (Some(ours), false) = (bytes(owner), work.failed || self.stopping) else {
            work.left = step.length;
            self.left.push(step);
            self.over(owner);
            return Ok(());
        };
        work.writing = true;
        let below = base.and_then(bytes);
        let placing = match &self.sink {
            Sink::Visit(visit) => {
                let outcome = visit(&step, ours, below);
                self.over(owner);
                return outcome;
            }
            Sink::Target(placing, units) => {
                if let Some(units) = units {
                    units.see(step.offset, ours);
                }
                placing
            }
        };
        let reserved = placing.reserves_zeroes();
        let pieces: Vec<_> = fates(&step, placing.unit(UNIT), ours, below).collect();
        for (range, fate) in pieces {
            let (offset, length) = (step.offset + range.start as u64, range.len() as u64);
            let left = match fate {
                Fate::Write => {
                    let done = self.write(owner, offset, range)?;
                    (length - done, step.action)
                }
                // Space was reserved there.
                Fate::Leave if step.action == Action::CopyNonZero && reserved => (length, Action::Zero),
                Fate::Leave => (0, step.action),
                Fate::Zero => (length, Action::Zero),
            };
            if left.0 > 0 {
                self.left.push(Move { offset: offset + length - left.0, length: left.0, action: left.1 });
                if let Some(work) = &mut self.works[owner] {
                    work.left += left.0;
                }
            }
        }
        if self.works[owner].as_ref().is_some_and(|work| work.pending == 0) {
            self.over(owner);
        }
        Ok(())
    }

    /// Starts to write a piece; returns how many bytes of it, from its beginning on.
    fn write(&mut self, owner: usize, offset: u64, range: std::ops::Range<usize>) -> Result<u64> {
        let mut done = 0;
        loop {
            let Sink::Target(placing, _) = &mut self.sink else { return Ok(done) };
            let Some(direct) = placing.device().direct() else { return Ok(done) };
            let left = range.len() as u64 - done;
            let whole = left - left % direct.alignment;
            if whole == 0 {
                return Ok(done);
            }
            let Some(place) = placing.place(offset + done, whole)? else { return Ok(done) };
            let within = range.start + done as usize;
            if !direct.takes(place.host | within as u64, place.length) {
                placing.finish(&place, false)?;
                return Ok(done);
            }
            let (host, length) = (place.host, place.length);
            let bytes = within..within + length as usize;
            let write = Some((offset + done, place));
            self.start(
                Way::Write,
                direct,
                host,
                bytes,
                Pending { owner, slot: owner, length: length as u32, write },
            );
            done += length;
        }
    }
}
