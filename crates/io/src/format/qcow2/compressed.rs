//! Compressed clusters: where they lie, and what they hold (section "Compressed Clusters Descriptor").

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flate2::{Decompress, FlushDecompress};
use zstd_safe::DCtx;

use super::mapping::Qcow2;
use crate::{Error, ErrorKind, Result};

/// Bits 62 and 63 of an L2 entry.
const FLAGS: u64 = 3 << 62;
const SECTOR: u64 = 512;

/// Where the data of one compressed cluster lies: anywhere in the file, and up to the end of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Packed {
    pub host: u64,
    /// Bytes that belong to it at most; what follows the end of the stream is of no concern.
    pub length: u64,
}

impl Packed {
    /// Out of an L2 entry.
    pub fn decode(entry: u64, cluster_bits: u32) -> Packed {
        let offset_bits = 62 - (cluster_bits - 8);
        let entry = entry & !FLAGS;
        let host = entry & ((1 << offset_bits) - 1);
        let sectors = (entry >> offset_bits) + 1;
        Packed { host, length: sectors * SECTOR - host % SECTOR }
    }

    /// Data of that length at that place.
    pub fn new(host: u64, length: u64) -> Packed {
        Packed { host, length: (host + length).next_multiple_of(SECTOR) - host }
    }

    /// Where compressed data must end.
    pub fn limit(cluster_bits: u32) -> u64 {
        1 << (62 - (cluster_bits - 8))
    }

    /// The L2 entry.
    pub fn encode(self, cluster_bits: u32) -> u64 {
        let further = (self.host % SECTOR + self.length) / SECTOR - 1;
        1 << 62 | further << (62 - (cluster_bits - 8)) | self.host
    }

    /// Numbers of the host clusters that it touches: each has one reference for it.
    pub fn clusters(self, cluster_bits: u32) -> std::ops::RangeInclusive<u64> {
        self.host >> cluster_bits..=(self.host + self.length - 1) >> cluster_bits
    }
}

/// What decompressing needs, one for each thread that does it, and the clusters decompressed last.
#[derive(Debug)]
pub(super) struct Unpacker {
    idle: Mutex<Vec<Decoder>>,
    recent: Mutex<VecDeque<(Packed, Arc<Vec<u8>>)>>,
    /// How many clusters may stay.
    budget: usize,
}

enum Decoder {
    Deflate(Decompress),
    Zstd(DCtx<'static>),
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Decoder::Deflate(_) => "Deflate",
            Decoder::Zstd(_) => "Zstd",
        })
    }
}

/// Whatever the mutex guards is whole at every moment.
fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Unpacker {
    /// `budget`: bytes of decompressed clusters that may stay, but one cluster may always.
    pub fn new(budget: u64, cluster_size: u64) -> Unpacker {
        let budget = (budget / cluster_size).clamp(1, 16) as usize;
        Unpacker { idle: Mutex::default(), recent: Mutex::default(), budget }
    }

    /// Places may be used anew: nothing that is remembered of them counts any more.
    pub fn forget(&self) {
        hold(&self.recent).clear();
    }

    fn find(&self, packed: Packed) -> Option<Arc<Vec<u8>>> {
        let mut recent = hold(&self.recent);
        let at = recent.iter().position(|(place, _)| *place == packed)?;
        let found = recent.remove(at)?;
        let bytes = Arc::clone(&found.1);
        recent.push_back(found);
        Some(bytes)
    }

    fn keep(&self, packed: Packed, bytes: Arc<Vec<u8>>) {
        let mut recent = hold(&self.recent);
        if recent.iter().any(|(place, _)| *place == packed) {
            return;
        }
        if recent.len() >= self.budget {
            recent.pop_front();
        }
        recent.push_back((packed, bytes));
    }
}

impl Decoder {
    /// Fills the buffer, or says what is wrong. As QEMU has it, a deflate stream may go on after the end of the
    /// cluster, a zstd frame may not.
    fn unpack(&mut self, mut packed: &[u8], buffer: &mut [u8]) -> std::result::Result<(), &'static str> {
        match self {
            Decoder::Deflate(decoder) => {
                decoder.reset(false);
                decoder
                    .decompress(packed, buffer, FlushDecompress::Finish)
                    .map_err(|_| "a compressed cluster is damaged")?;
                if decoder.total_out() < buffer.len() as u64 {
                    return Err("a compressed cluster holds too little");
                }
            }
            Decoder::Zstd(decoder) => {
                // Frame by frame straight into the buffer: what a frame says of its window or its content costs
                // no memory.
                let mut done = 0;
                while done < buffer.len() {
                    if packed.is_empty() {
                        return Err("a compressed cluster holds too little");
                    }
                    let length = zstd_safe::find_frame_compressed_size(packed)
                        .map_err(|_| "a compressed cluster is damaged")?;
                    let (frame, rest) =
                        packed.split_at_checked(length).ok_or("a compressed cluster is damaged")?;
                    done += decoder
                        .decompress(&mut buffer[done..], frame)
                        .map_err(|_| "a compressed cluster is damaged or holds too much")?;
                    packed = rest;
                }
            }
        }
        Ok(())
    }
}

impl Qcow2 {
    /// Reads from a compressed cluster, `skip` bytes into it.
    pub fn read_packed(&self, packed: Packed, skip: u64, buffer: &mut [u8]) -> Result<()> {
        if buffer.len() as u64 == self.cluster_size() {
            return self.unpack(packed, buffer);
        }
        let bytes = if let Some(found) = self.unpacker.find(packed) {
            found
        } else {
            let mut bytes = vec![0; self.cluster_size() as usize];
            self.unpack(packed, &mut bytes)?;
            let bytes = Arc::new(bytes);
            self.unpacker.keep(packed, Arc::clone(&bytes));
            bytes
        };
        buffer.copy_from_slice(&bytes[skip as usize..][..buffer.len()]);
        Ok(())
    }

    /// Decompresses one whole cluster.
    pub(super) fn unpack(&self, packed: Packed, buffer: &mut [u8]) -> Result<()> {
        let Packed { host, length } = packed;
        let bad = |message| self.corrupt(message).with_range(host, length);
        // The last sector of compressed data is not padded: it may end with the file.
        let have = if self.is_inside(host, length)? {
            length
        } else {
            self.device.len()?.saturating_sub(host).min(length)
        };
        if have == 0 {
            return Err(bad("a compressed cluster lies outside the file"));
        }
        let mut bytes = vec![0; length as usize];
        self.device.read_at(host, &mut bytes[..have as usize])?;
        let mut decoder = match hold(&self.unpacker.idle).pop() {
            Some(decoder) => decoder,
            None if self.header.zstd => Decoder::Zstd(DCtx::try_create().ok_or_else(|| {
                Error::new(ErrorKind::Io, "no memory to decompress").with_path(self.device.name())
            })?),
            // QEMU's window has 12 bits; the specification allows any.
            None => Decoder::Deflate(Decompress::new(false)),
        };
        decoder.unpack(&bytes, buffer).map_err(bad)?;
        hold(&self.unpacker.idle).push(decoder);
        Ok(())
    }
}
