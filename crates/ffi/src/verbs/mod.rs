//! The verbs of the API, all on a store.

mod images;
mod lease;
mod making;
mod repositories;
mod waiting;

pub use images::*;
pub use lease::*;
pub use making::*;
pub use repositories::*;
pub use waiting::*;
