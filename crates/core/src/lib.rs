//! The storage engine: repositories, records, locks, image graphs, jobs, and the API's verbs.

pub mod error;
pub mod id;
pub mod repository;
#[cfg(feature = "sim")]
pub mod sim;

pub use error::{Error, ErrorKind, Result};
pub use id::ImageId;
