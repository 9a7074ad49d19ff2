//! Writing compressed clusters: packed one after the other, not aligned to anything, as QEMU does.

use std::sync::{Mutex, PoisonError};

use flate2::{Compress, FlushCompress, Status};
use zstd_safe::CCtx;

use super::compressed::Packed;
use super::mapping::{Below, Qcow2};
use super::refcount::Writer;
use crate::{Error, ErrorKind, Result};

/// How new images compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Raw deflate, which every program reads.
    Deflate,
    /// zstd: smaller, and several times as fast; read by QEMU 5.1 and later.
    Zstd,
}

/// QEMU inflates with a window of 4 KiB.
const WINDOW_BITS: u8 = 12;
/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;
/// Clusters that are partly filled with compressed data, and remembered.
const MAX_OPEN: usize = 8;

/// What compressing needs, one for each thread that does it.
#[derive(Default)]
pub(super) struct Packer(Mutex<Vec<Encoder>>);

enum Encoder {
    Deflate(Compress),
    Zstd(CCtx<'static>),
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Packer")
    }
}

impl Encoder {
    /// Compresses into the buffer; `None` if it does not fit.
    fn pack(&mut self, data: &[u8], buffer: &mut [u8]) -> Option<usize> {
        match self {
            Encoder::Deflate(encoder) => {
                encoder.reset();
                match encoder.compress(data, buffer, FlushCompress::Finish) {
                    Ok(Status::StreamEnd) => usize::try_from(encoder.total_out()).ok(),
                    Ok(Status::Ok | Status::BufError) | Err(_) => None,
                }
            }
            Encoder::Zstd(encoder) => encoder.compress(buffer, data, ZSTD_LEVEL).ok(),
        }
    }
}

impl Qcow2 {
    /// Compresses one cluster; `None` if that makes it no smaller.
    fn pack(&self, data: &[u8]) -> Result<Option<Vec<u8>>> {
        let hold = || self.packer.0.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = hold().pop();
        let mut encoder = match idle {
            Some(encoder) => encoder,
            None if self.header.zstd => Encoder::Zstd(CCtx::try_create().ok_or_else(|| {
                Error::new(ErrorKind::Io, "no memory to compress").with_path(self.device.name())
            })?),
            None => Encoder::Deflate(Compress::new_with_window_bits(
                flate2::Compression::default(),
                false,
                WINDOW_BITS,
            )),
        };
        let mut buffer = vec![0; data.len().saturating_sub(1)];
        let packed = encoder.pack(data, &mut buffer).map(|length| {
            buffer.truncate(length);
            buffer
        });
        hold().push(encoder);
        Ok(packed)
    }

    /// Writes one whole cluster compressed, or plainly if it does not become smaller. The caller excludes
    /// [`Qcow2::flush`] meanwhile.
    pub fn write_packed(&self, offset: u64, data: &[u8], below: &dyn Below) -> Result<()> {
        let Some(bytes) = self.pack(data)? else { return self.write(offset, data, below) };
        self.touch(offset, data.len() as u64)?;
        let bits = self.header.cluster_bits;
        let cluster = offset >> bits;
        let mut meta = self.wait_idle(self.lock()?, &(cluster..cluster + 1))?;
        self.prepare(&mut meta)?;
        let (index, _) = self.indexes(offset);
        self.ensure_l2(&mut meta, index)?;
        let old = self.decode(self.entry(&mut meta, cluster)?)?;
        let writer = self.writer(&mut meta.writer)?;
        // Descriptors have fewer bits for the place than other entries: with 2 MiB clusters it ends at 512 TiB.
        if (writer.high_water + 2) << bits > Packed::limit(bits) {
            drop(meta);
            return self.write(offset, data, below);
        }
        self.check_given(writer, old)?;
        let packed = self.reserve_bytes(writer, bytes.len() as u64)?;
        writer.busy.insert(cluster);
        drop(meta);

        let written = self.device.write_at(packed.host, &bytes);
        let mut meta = self.lock()?;
        let result = written.and_then(|()| self.set_entry(&mut meta, cluster, packed.encode(bits)));
        let writer = self.writer(&mut meta.writer)?;
        writer.busy.remove(&cluster);
        match result {
            Ok(()) => self.give_up(writer, old),
            Err(_) => writer.pending_packed.extend(packed.clusters(bits)),
        }
        drop(meta);
        self.idle.notify_all();
        result
    }

    /// Room for that many bytes, less than a cluster: in the least that is left of a cluster with compressed data,
    /// or across the end of one, and with one reference to each host cluster that it touches.
    ///
    /// What several threads write comes in any order, with plain clusters between: more than one cluster is
    /// partly filled at a time.
    fn reserve_bytes(&self, writer: &mut Writer, length: u64) -> Result<Packed> {
        let cluster_size = self.cluster_size();
        let most = u64::MAX >> (64 - self.header.refcount_bits);
        let left = |end: u64| cluster_size - end % cluster_size;
        let mut ends = std::mem::take(&mut writer.packed_ends);
        let mut open = Vec::with_capacity(ends.len());
        for end in ends.drain(..) {
            let count = self.refcount(writer, end / cluster_size)?;
            if count > 0 && count < most {
                open.push((end, count));
            }
        }
        let fits = |(end, _): &&(u64, u64)| left(*end) >= length;
        let best = open.iter().filter(fits).min_by_key(|(end, _)| left(*end)).copied();
        let (host, count) = if let Some(place) = best {
            place
        } else {
            let next = self.reserve(writer, 1)?.start;
            let before = open.iter().find(|(end, _)| end / cluster_size + 1 == next);
            *before.unwrap_or(&(next * cluster_size, 0))
        };
        if count > 0 {
            self.set_refcount(writer, host / cluster_size, count + 1)?;
        }
        ends.extend(open.into_iter().map(|(end, _)| end).filter(|end| *end != host));
        if !(host + length).is_multiple_of(cluster_size) {
            ends.push(host + length);
        }
        if ends.len() > MAX_OPEN {
            ends.sort_by_key(|end| left(*end));
            ends.remove(0);
        }
        writer.packed_ends = ends;
        Ok(Packed::new(host, length))
    }
}
