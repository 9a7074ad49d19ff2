//! The first step: where the bytes of an image lie.

use crate::{DeviceId, Image, Result};

/// A piece of the map of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where in the disk it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes, never 0.
    pub length: u64,
    /// What it is made of.
    pub kind: RunKind,
}

/// What a run is made of. `layer` counts from the top, 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    /// Bytes in place on a device.
    Data {
        /// The layer they belong to.
        layer: usize,
        /// Its storage.
        device: DeviceId,
        /// Where they begin there.
        device_offset: u64,
    },
    /// Compressed data.
    Compressed {
        /// The layer it belongs to.
        layer: usize,
    },
    /// Explicit zeroes.
    Zero {
        /// The layer that says so.
        layer: usize,
    },
    /// Allocated in no layer: reads as zeroes.
    Hole,
}

impl RunKind {
    /// Whether it is known to read as zeroes.
    pub fn is_zero(&self) -> bool {
        matches!(self, RunKind::Zero { .. } | RunKind::Hole)
    }

    /// What the same run is `bytes` further on.
    #[must_use]
    pub(crate) fn advanced(self, bytes: u64) -> RunKind {
        match self {
            RunKind::Data { layer, device, device_offset } => {
                RunKind::Data { layer, device, device_offset: device_offset + bytes }
            }
            other => other,
        }
    }

    /// Whether both are the same bytes of the same device.
    pub(crate) fn is_shared(&self, other: &RunKind) -> bool {
        match (self, other) {
            (
                RunKind::Data { device: a, device_offset: x, .. },
                RunKind::Data { device: b, device_offset: y, .. },
            ) => a == b && x == y,
            _ => false,
        }
    }
}

/// The runs of a range, in order; adjacent equal ones are merged. Stops after an error.
#[derive(Debug)]
pub struct Runs<'a> {
    image: &'a Image,
    /// Those that are looked at, from the top.
    layers: usize,
    offset: u64,
    end: u64,
    /// Read already, but not yet known to be complete.
    next: Option<Run>,
    holes: Holes,
}

/// Up to where each layer is known to hold nothing, while a map is read from its begin to its end: else each run of a
/// lower layer would cost another look at the same hole in all layers above it.
#[derive(Debug, Default)]
pub(crate) struct Holes(Vec<u64>);

impl Holes {
    /// Bytes from `offset` on which that layer has nothing of, as far as is known.
    pub fn known(&self, layer: usize, offset: u64) -> u64 {
        self.0.get(layer).map_or(0, |end| end.saturating_sub(offset))
    }

    pub fn learn(&mut self, layer: usize, end: u64) {
        if self.0.len() <= layer {
            self.0.resize(layer + 1, 0);
        }
        self.0[layer] = end;
    }
}

impl<'a> Runs<'a> {
    pub(crate) fn new(image: &'a Image, layers: usize, offset: u64, length: u64) -> Runs<'a> {
        let end = offset.saturating_add(length);
        Runs { image, layers, offset, end, next: None, holes: Holes::default() }
    }
}

impl Iterator for Runs<'_> {
    type Item = Result<Run>;

    fn next(&mut self) -> Option<Result<Run>> {
        let mut run = self.next.take();
        while self.offset < self.end {
            let left = self.end - self.offset;
            let found = match self.image.run_of(self.layers, self.offset, left, &mut self.holes) {
                Ok(found) => found,
                // What was found before goes out first; the next call meets the error again.
                Err(_) if run.is_some() => break,
                Err(error) => {
                    self.end = 0;
                    return Some(Err(error));
                }
            };
            self.offset += found.length;
            match &mut run {
                None => run = Some(found),
                Some(run) if run.kind.advanced(run.length) == found.kind => run.length += found.length,
                Some(_) => {
                    self.next = Some(found);
                    break;
                }
            }
        }
        run.map(Ok)
    }
}
