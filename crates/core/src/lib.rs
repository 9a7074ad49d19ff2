//! The storage engine: repositories, records, locks, image graphs, jobs, and the API's verbs.
//!
//! [`Store`] is where to begin.

mod check;
mod error;
mod fix;
mod graph;
#[cfg(feature = "sim")]
#[doc(hidden)]
pub mod hostile;
pub mod id;
mod image;
mod job;
mod machine;
pub mod options;
mod record;
mod repo;
pub mod repository;
#[cfg(feature = "sim")]
pub mod sim;
mod store;
mod types;

pub use error::{Error, ErrorKind, Result};
pub use fix::{Cost, Fix, FixType};
pub use graph::difference::Difference;
pub use id::ImageId;
pub use image::Image;
pub use store::{Store, StoreOptions};
pub use types::*;

/// A checksum that does not change between releases (FNV-1a, 64 bits): against mistakes, not against forgers.
pub(crate) fn checksum(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
