//! What bytes mean: the image formats.

pub mod qcow2;

use std::fmt;
use std::str::FromStr;

use crate::{Error, ErrorKind};

/// An image format. Never guessed from content (R1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Format {
    /// The device is the disk.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        })
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "raw" => Ok(Format::Raw),
            "qcow2" => Ok(Format::Qcow2),
            _ => Err(Error::new(ErrorKind::InvalidInput, "unknown image format")),
        }
    }
}
