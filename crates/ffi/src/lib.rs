//! The C interface of vdsmstore. The header `include/vdsmstore.h` is generated of this crate, and says to C programs
//! what holds for all functions; the Python module goes through the same functions.

mod codes;
mod difference;
mod error;
mod guard;
mod image;
mod store;
mod string;
mod unbuilt;
mod verbs;
mod version;

pub use codes::*;
pub use difference::*;
pub use error::*;
pub use image::*;
pub use store::*;
pub use string::*;
pub use unbuilt::*;
pub use verbs::*;
pub use version::*;
