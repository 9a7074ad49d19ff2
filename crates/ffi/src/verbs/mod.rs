//! The verbs of the API, all on a store.

mod images;
mod lease;
mod making;
mod repair;
mod repositories;
mod transfer;
mod waiting;

pub use images::*;
pub use lease::*;
pub use making::*;
pub use repair::*;
pub use repositories::*;
pub use transfer::*;
pub use waiting::*;
