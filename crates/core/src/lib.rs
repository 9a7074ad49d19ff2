//! The storage engine: repositories, records, locks, image graphs, jobs, and the API's verbs.

mod error;
pub mod id;
mod image;
pub mod options;
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
