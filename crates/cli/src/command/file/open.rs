//! Opening files, and keeping QEMU out meanwhile.

use std::path::Path;
use std::sync::Arc;

use vdsmstore_core::{Error, ErrorKind, Result};
use vdsmstore_io::sys::{LockMode, UNDER_WAY, await_requests, ofd_try_lock, ofd_would_block};
use vdsmstore_io::{Device, FileDevice, Format, Image, Layer, qcow2};

use crate::args::FileFormat;
use crate::args::file::{Below, OneFile};
use crate::output::local;

/// Bytes that QEMU locks: 100 + n, while it uses permission n; 200 + n, while others may not. 0 is reading, 1 writing, 3
/// resizing.
const READ: u64 = 100;
const WRITE: u64 = 101;
const RESIZE: u64 = 103;
const NO_WRITE: u64 = 201;
const NO_RESIZE: u64 = 203;

/// What the file means, as io names it.
pub fn format(format: FileFormat) -> Format {
    match format {
        FileFormat::Raw => Format::Raw,
        FileFormat::Qcow2 => Format::Qcow2,
    }
}

/// Opens a file; no QEMU may write it meanwhile, nor read it if we write.
pub fn device(path: &Path, writable: bool) -> Result<Arc<FileDevice>> {
    let device = FileDevice::open(path, writable)?;
    lock(&device, path, writable)?;
    Ok(Arc::new(device))
}

/// Takes the locks that QEMU would take, for as long as the device is open.
pub fn lock(device: &FileDevice, path: &Path, writable: bool) -> Result<()> {
    let (foreign, own): (&[u64], &[u64]) = if writable {
        (&[READ, WRITE, RESIZE, NO_WRITE, NO_RESIZE], &[READ, WRITE, RESIZE, NO_WRITE, NO_RESIZE])
    } else {
        (&[WRITE, RESIZE], &[READ, NO_WRITE, NO_RESIZE])
    };
    let failed = |error| local(format!("cannot lock {}", path.display()), error);
    // First ours, then a look at others': of two at the same time one sees the other.
    for byte in own {
        ofd_try_lock(device.file(), *byte, 1, LockMode::Shared).map_err(failed)?;
    }
    for byte in foreign {
        if ofd_would_block(device.file(), *byte, 1, LockMode::Exclusive).map_err(failed)? {
            return Err(Error::new(ErrorKind::ImageInUse, format!("{} is in use", path.display())));
        }
    }
    if writable && !await_requests(device.file()).map_err(failed)? {
        let why = format!("{} is in use: {UNDER_WAY}", path.display());
        return Err(Error::new(ErrorKind::ImageInUse, why));
    }
    Ok(())
}

/// How large the disk in a file is.
pub fn size(device: &dyn Device, format: Format) -> Result<u64> {
    Ok(match format {
        Format::Raw => device.len()?.next_multiple_of(512),
        Format::Qcow2 => qcow2::info(device)?.size,
    })
}

/// One file as a layer.
pub fn layer(path: &Path, file_format: FileFormat, writable: bool) -> Result<Layer> {
    let device = device(path, writable)?;
    let format = format(file_format);
    let size = size(&*device, format)?;
    Ok(Layer { device, format, size })
}

/// The layers of a chain, from top to bottom.
pub fn layers(backing: &[Below]) -> Result<Vec<Layer>> {
    backing.iter().map(|below| layer(&below.path, below.format, false)).collect()
}

/// A file with all that lies below it.
pub fn chain(file: &OneFile, writable: bool) -> Result<Vec<Layer>> {
    let top = layer(&file.file, file.format, writable)?;
    check_complete(&top, &file.file, !file.backing.is_empty())?;
    let mut chain = vec![top];
    chain.extend(layers(&file.backing)?);
    for (layer, below) in chain[1..].iter().zip(&file.backing) {
        let last = std::ptr::eq(below, file.backing.last().unwrap_or(below));
        check_complete(layer, &below.path, !last)?;
    }
    Ok(chain)
}

/// A file that has a backing file reads as something else without it: that must not happen by a slip.
pub fn check_complete(layer: &Layer, path: &Path, has_more: bool) -> Result<()> {
    if layer.format == Format::Raw || has_more {
        return Ok(());
    }
    match qcow2::info(&*layer.device)?.backing {
        None => Ok(()),
        Some(name) => {
            let message = format!(
                "{} has the backing file {name:?}: give it with --backing PATH:FORMAT",
                path.display()
            );
            Err(Error::new(ErrorKind::InvalidParameter, message))
        }
    }
}

/// Opens a file with all that lies below it as a disk.
pub fn image(file: &OneFile, writable: bool) -> Result<Image> {
    Ok(Image::open(chain(file, writable)?, writable)?)
}
