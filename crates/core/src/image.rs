//! An image open for I/O in this process.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use vdsmstore_io::{self as io, RunKind, without};

use crate::graph::chain::OpenChain;
use crate::graph::lease;
use crate::id::ImageId;
use crate::repo::Repo;
use crate::types::{Extent, ExtentKind};
use crate::{Error, ErrorKind, Result};

/// An image open for I/O. Usable from many threads; cheap to clone; closed when [`Image::close`] is called or the
/// last clone is dropped.
#[derive(Clone, Debug)]
pub struct Image(pub(crate) Arc<Handle>);

/// What the clones of an [`Image`] share.
#[derive(Debug)]
pub(crate) struct Handle {
    pub repo: Arc<Repo>,
    pub id: ImageId,
    writable: bool,
    size: u64,
    open: RwLock<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    image: io::Image,
    /// Holds the locks.
    _chain: OpenChain,
}

impl Handle {
    /// An image whose chain is open; `writable`: its lease is ours.
    pub fn new(repo: Arc<Repo>, id: ImageId, chain: OpenChain, writable: bool) -> Result<Self> {
        let image = chain.image(writable)?;
        let size = image.size();
        Ok(Self { repo, id, writable, size, open: RwLock::new(Some(Open { image, _chain: chain })) })
    }

    /// Whether it has not been closed.
    pub fn is_open(&self) -> bool {
        self.open.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Flushes, releases the lease. Idempotent. The lease goes even if the flush fails.
    pub fn close(&self) -> Result<()> {
        let taken = self.open.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(open) = taken else { return Ok(()) };
        if !self.writable {
            return Ok(());
        }
        let flushed = if without!("close.flush") { Ok(()) } else { open.image.flush() };
        // While the bytes are still locked, so that nobody finds them free and the record not.
        let mut open = Some(open);
        if without!("close.order") {
            open = None;
        }
        let released = lease::release(&self.repo, self.id);
        drop(open);
        flushed.map_err(|error| self.explain(error.into()))?;
        released
    }

    fn explain(&self, error: Error) -> Error {
        error.context(format_args!("image {} in repository {:?}", self.id, self.repo.id))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.close();
    }
}

struct Guard<'a>(RwLockReadGuard<'a, Option<Open>>);

impl Image {
    fn open(&self) -> Result<Guard<'_>> {
        let guard = self.0.open.read().unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            let message = format!("image {} in repository {:?} is closed", self.0.id, self.0.repo.id);
            return Err(Error::new(ErrorKind::Closed, message).with("imageId", self.0.id.to_string()));
        }
        Ok(Guard(guard))
    }

    fn with<T>(&self, work: impl FnOnce(&io::Image) -> io::Result<T>) -> Result<T> {
        let guard = self.open()?;
        match &*guard.0 {
            Some(open) => work(&open.image).map_err(|error| self.0.explain(error.into())),
            None => Err(Error::new(ErrorKind::Closed, "the image is closed")),
        }
    }

    fn with_writable<T>(&self, work: impl FnOnce(&io::Image) -> io::Result<T>) -> Result<T> {
        drop(self.open()?);
        if !self.0.writable {
            let message =
                format!("image {} in repository {:?} is open for reading only", self.0.id, self.0.repo.id);
            return Err(Error::new(ErrorKind::ReadOnlyImage, message).with("imageId", self.0.id.to_string()));
        }
        self.with(work)
    }

    /// A range that lies within the image.
    fn range(&self, offset: i64, length: u64) -> Result<u64> {
        let start = u64::try_from(offset).ok();
        match start.filter(|start| start.checked_add(length).is_some_and(|end| end <= self.0.size)) {
            Some(start) => Ok(start),
            None => Err(Error::new(
                ErrorKind::InvalidParameter,
                format!(
                    "{length} bytes at {offset} are outside of image {} of {} bytes",
                    self.0.id, self.0.size
                ),
            )
            .with("parameter", "offset")),
        }
    }

    fn length(length: i64) -> Result<u64> {
        u64::try_from(length).map_err(|_| {
            Error::new(ErrorKind::InvalidParameter, format!("length {length} is negative"))
                .with("parameter", "length")
        })
    }

    /// Virtual size in bytes.
    pub fn size(&self) -> Result<u64> {
        drop(self.open()?);
        Ok(self.0.size)
    }

    /// Fills the buffer. Never short; outside: `InvalidParameter`.
    pub fn read(&self, offset: i64, buffer: &mut [u8]) -> Result<()> {
        let start = self.range(offset, buffer.len() as u64)?;
        self.with(|image| image.read(start, buffer))
    }

    /// Writes all of it. Durable after [`Image::flush`].
    pub fn write(&self, offset: i64, data: &[u8]) -> Result<()> {
        let start = self.range(offset, data.len() as u64)?;
        self.with_writable(|image| image.write(start, data))
    }

    /// The range reads as zeroes after.
    pub fn write_zeroes(&self, offset: i64, length: i64) -> Result<()> {
        let length = Self::length(length)?;
        let start = self.range(offset, length)?;
        self.with_writable(|image| image.write_zeroes(start, length))
    }

    /// The range reads as zeroes after; its space is given back where possible.
    pub fn discard(&self, offset: i64, length: i64) -> Result<()> {
        let length = Self::length(length)?;
        let start = self.range(offset, length)?;
        self.with_writable(|image| image.discard(start, length))
    }

    /// Everything written before is durable after. After a failure, writes and flushes are refused.
    pub fn flush(&self) -> Result<()> {
        if !self.0.writable {
            return self.open().map(drop);
        }
        self.with_writable(io::Image::flush)
    }

    /// At most `max` extents from `offset` on; none at the end. Adjacent runs of one kind are merged.
    pub fn extents(&self, offset: i64, max: usize) -> Result<Vec<Extent>> {
        let start = self.range(offset, 0)?;
        self.with(|image| {
            let mut extents: Vec<Extent> = Vec::new();
            for run in image.runs(start, self.0.size - start) {
                let run = run?;
                let kind = match run.kind {
                    RunKind::Hole => ExtentKind::Hole,
                    RunKind::Zero { .. } => ExtentKind::Zero,
                    _ => ExtentKind::Data,
                };
                let full = extents.len() >= max;
                match extents.last_mut() {
                    Some(last) if last.kind == kind => last.length += run.length,
                    _ if full => break,
                    _ => extents.push(Extent { offset: run.offset, length: run.length, kind }),
                }
            }
            Ok(extents)
        })
    }

    /// Flushes, releases the lease. Idempotent; other calls then fail with `Closed`.
    pub fn close(&self) -> Result<()> {
        self.0.close()
    }
}
