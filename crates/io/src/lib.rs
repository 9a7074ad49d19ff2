//! Devices, image formats and data movement: map, plan, execute. Knows nothing of repositories.
//!
//! The three steps: [`Image::runs`] says where the bytes of an image lie, [`plan::copy`] turns two such maps
//! into a list of moves, [`execute()`] moves the bytes.

pub mod device;
mod error;
pub mod execute;
mod format;
pub mod hash;
mod image;
mod map;
pub mod mutation;
pub mod plan;
pub mod sys;

#[cfg(feature = "sim")]
pub use device::sim::{Power, SimDevice, SimStorage};
pub use device::{Device, DeviceExtent, DeviceId, Direct, FileDevice, Offload};
pub use error::{Error, ErrorKind, Result};
pub use execute::{Control, Keep, Outcome, compare, compress, diff, execute, execute_hashed, stream};
pub use format::{Format, qcow2};
pub use image::{Image, ImageOptions, Layer};
pub use map::{Run, RunKind, Runs};
pub use plan::{Action, Move, Plan, Target};
