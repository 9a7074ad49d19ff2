//! Devices, image formats and data movement: map, plan, execute. Knows nothing of repositories.

pub mod device;
mod error;

pub use device::{Device, DeviceExtent, DeviceId, FileDevice};
pub use error::{Error, ErrorKind, Result};
