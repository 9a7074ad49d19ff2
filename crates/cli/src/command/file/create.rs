//! `file create`, and how new files are made.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use vdsmstore_core::{Error, ErrorKind, Result};
use vdsmstore_io::qcow2::{self, Backing, Compression, CreateOptions};
use vdsmstore_io::{Device, FileDevice};

use super::{Context, open};
use crate::args::FileFormat;
use crate::args::file::FileCreate;
use crate::config::usage;
use crate::session::Outcome;

/// The options of `-o`.
#[derive(Debug)]
pub struct Options {
    compression: Compression,
    allocate: bool,
    /// The caller flushes it when there is something in it.
    pub flushed_later: bool,
}

impl Options {
    pub fn parse(given: &[String], format: FileFormat) -> Result<Options> {
        let mut options =
            Options { compression: Compression::Deflate, allocate: false, flushed_later: false };
        for option in given {
            let (name, value) =
                option.split_once('=').ok_or_else(|| usage(format!("-o {option}: NAME=VALUE is needed")))?;
            match (format, name, value) {
                (FileFormat::Qcow2, "compression_type", "zlib") => options.compression = Compression::Deflate,
                (FileFormat::Qcow2, "compression_type", "zstd") => options.compression = Compression::Zstd,
                // What is made anyway.
                (FileFormat::Qcow2, "cluster_size", "65536" | "64k" | "64K")
                | (FileFormat::Qcow2, "compat", "1.1" | "v3")
                | (FileFormat::Qcow2, "refcount_bits", "16")
                | (_, "preallocation", "off") => {}
                (FileFormat::Raw, "preallocation", "falloc") => options.allocate = true,
                _ => {
                    return Err(usage(format!(
                        "-o {option}: not an option of new {} files here",
                        open::format(format)
                    )));
                }
            }
        }
        Ok(options)
    }
}

/// Makes a new file with an empty disk. It is removed again if that fails.
pub fn create(
    path: &Path,
    format: FileFormat,
    size: u64,
    backing: Option<Backing>,
    options: &Options,
) -> Result<Arc<FileDevice>> {
    let device = FileDevice::create_new(path)?;
    let made = match format {
        FileFormat::Raw => device.set_len(size).and_then(|()| {
            if options.allocate {
                device.allocate(0, size)?;
            }
            if options.flushed_later { Ok(()) } else { device.flush() }
        }),
        FileFormat::Qcow2 => {
            let create = CreateOptions { size, backing, preallocate_metadata: false };
            let layout = qcow2::Layout { compression: options.compression, ..qcow2::Layout::default() };
            qcow2::create_with(&device, &create, &layout)
        }
    };
    match made {
        Ok(()) => Ok(Arc::new(device)),
        Err(error) => {
            // The first error is the one to tell.
            let _ = std::fs::remove_file(path);
            Err(error.into())
        }
    }
}

pub fn run(context: &Context, arguments: &FileCreate) -> Result<Outcome> {
    let options = Options::parse(&arguments.options, arguments.format)?;
    let size = arguments.size.unsigned_abs();
    let backing = match (&arguments.backing, arguments.backing_format) {
        (Some(_), _) if arguments.format == FileFormat::Raw => {
            return Err(usage("a raw file has no backing file"));
        }
        (Some(name), Some(format)) => Some(Backing { name: name.clone(), format: open::format(format) }),
        _ => None,
    };
    if arguments.format == FileFormat::Raw && !size.is_multiple_of(512) {
        return Err(Error::new(ErrorKind::InvalidSize, "the size must be a multiple of 512"));
    }
    create(&arguments.file, arguments.format, size, backing, &options)?;
    if context.out.json() {
        let name = arguments.file.display().to_string();
        let format = open::format(arguments.format).to_string();
        context.out.value(
            &json!({ "filename": name, "format": format, "virtual-size": size.next_multiple_of(512) }),
        )?;
    }
    Ok(Outcome::Done)
}
