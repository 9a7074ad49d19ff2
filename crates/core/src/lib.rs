//! The storage engine: repositories, records, locks, image graphs, jobs, and the API's verbs.
//!
//! [`Store`] is where to begin.

mod error;
mod graph;
pub mod id;
mod image;
mod job;
pub mod options;
mod record;
mod repo;
pub mod repository;
#[cfg(feature = "sim")]
pub mod sim;
mod store;
mod types;

pub use error::{Error, ErrorKind, Result};
pub use id::ImageId;
pub use image::Image;
pub use store::{Store, StoreOptions};
pub use types::*;
