//! Files outside a repository as sources: opened once, in the format that the caller names, and nothing that they name.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vdsmstore_io::sys::{LockMode, ofd_would_block};
use vdsmstore_io::{Device, FileDevice, Format, Image, Layer, qcow2, without};

use crate::record::{Fill, ImageRecord, SECTOR, State};
use crate::repo::Repo;
use crate::{Error, ErrorKind, Result};

use super::add;

/// QEMU's lock byte for "I write".
const QEMU_WRITES: u64 = 101;

/// The file of an import, as a blob keeps it: whoever goes on with the work must see the same file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct File {
    pub path: String,
    pub format: String,
    pub host: String,
    /// The file's identity and state: device, inode, length in bytes, modification time in nanoseconds.
    pub device: u64,
    pub inode: u64,
    pub length: u64,
    pub modified: i128,
}

/// A file that can be imported.
pub(crate) struct Opened {
    pub file: File,
    pub image: Image,
    /// Virtual size, rounded up to sectors.
    pub size: u64,
}

/// Opens and judges a file.
pub(crate) fn examine(path: &str, format: &str, host: &str) -> Result<Opened> {
    let invalid = |message: String, parameter: &str| {
        Error::new(ErrorKind::InvalidParameter, message).with("parameter", parameter).with("path", path)
    };
    if !Path::new(path).is_absolute() || path.contains('\0') {
        return Err(invalid(format!("import path {path:?} is not absolute"), "path"));
    }
    let format: Format = format.parse().map_err(|_| {
        invalid(format!("import format {format:?} is neither \"raw\" nor \"qcow2\""), "format")
    })?;
    let device = FileDevice::open(Path::new(path), false).map_err(|error| {
        let kind = error.kind();
        let error = Error::from(error);
        if kind == vdsmstore_io::ErrorKind::NotFound {
            return invalid(format!("import file {path:?} does not exist"), "path").because(error);
        }
        error
    })?;
    let written = ofd_would_block(device.file(), QEMU_WRITES, 1, LockMode::Exclusive).map_err(|error| {
        Error::from(vdsmstore_io::Error::os("the locks of a file cannot be read", error).with_path(path))
    })?;
    if written && !without!("import.lock") {
        let message = format!("import file {path:?} is open for writing in a QEMU process");
        return Err(Error::new(ErrorKind::ImageInUse, message).with("path", path));
    }
    let file = identity(&device, path, format, host)?;
    let virtual_size = match format {
        Format::Raw => file.length,
        Format::Qcow2 => {
            let info = qcow2::info(&device)?;
            if let Some(name) = &info.backing {
                return Err(invalid(
                    format!("import file {path:?} names a backing file, {name:?}: flatten it first"),
                    "path",
                ));
            }
            if info.data_file {
                return Err(invalid(format!("import file {path:?} keeps its data in another file"), "path"));
            }
            info.size
        }
    };
    let size = virtual_size.next_multiple_of(SECTOR);
    if !crate::record::valid_size(size) {
        return Err(Error::new(
            ErrorKind::InvalidSize,
            format!("import file {path:?} has a size of {virtual_size} bytes"),
        )
        .with("path", path));
    }
    let image = Image::open(vec![Layer { device: Arc::new(device), format, size: virtual_size }], false)?;
    Ok(Opened { file, image, size })
}

/// Fails if the file's map cannot be read, before anything is promised.
pub(crate) fn ensure_readable(opened: &Opened, path: &str) -> Result<()> {
    for run in opened.image.runs(0, opened.image.size()) {
        run.map_err(|error| Error::from(error).context(format_args!("import file {path:?}")))?;
    }
    Ok(())
}

/// Opens the file of an import that was announced, if it still is the same.
pub(crate) fn open(repo: &Repo, image: &ImageRecord, fill: &Fill) -> Result<Image> {
    let blob = fill.blob.ok_or_else(|| {
        Error::new(ErrorKind::CorruptRecord, format!("the import of image {} names no file", image.id()))
    })?;
    let bytes = match repo.driver.get_blob(image.id(), blob) {
        // Whoever removed the image meanwhile, or completed it, took the blob away.
        Err(error) if !is_wanted(repo, image)? && !without!("import.look.wanted") => {
            return Err(add::displaced(repo, image.volume).because(error));
        }
        read => read?,
    };
    let wanted: File = serde_json::from_slice(&bytes).map_err(|error| {
        Error::new(ErrorKind::CorruptRecord, format!("the import of image {}: {error}", image.id()))
    })?;
    let Opened { file, image: opened, .. } = examine(&wanted.path, &wanted.format, &wanted.host)?;
    if file != wanted && !without!("import.compare") {
        let message = format!("import file {:?} is another one now, or was written since", wanted.path);
        return Err(Error::new(ErrorKind::Conflict, message).with("path", wanted.path));
    }
    Ok(opened)
}

/// Whether the image is still to be filled as it was read.
fn is_wanted(repo: &Repo, image: &ImageRecord) -> Result<bool> {
    let now = repo.image(image.id())?;
    Ok(now.is_some_and(|now| now.state == State::Pending && now.volume == image.volume))
}

fn identity(device: &FileDevice, path: &str, format: Format, host: &str) -> Result<File> {
    use std::os::unix::fs::MetadataExt;
    let failed =
        |error| Error::from(vdsmstore_io::Error::os("a file cannot be examined", error).with_path(path));
    let metadata = device.file().metadata().map_err(failed)?;
    Ok(File {
        path: path.to_owned(),
        format: format.to_string(),
        host: host.to_owned(),
        device: metadata.dev(),
        inode: metadata.ino(),
        length: device.len()?,
        modified: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
    })
}
