//! `vdsmstore._vdsmstore`: the C functions as two Python classes. Texts, dicts as JSON, and numbers go in and out;
//! everything that is Python's taste lies in the package around it.

#![deny(unsafe_code)]

mod enter;
#[allow(unsafe_code)]
mod glue;

/// The C functions of vdsmstore as Python classes. Private: use the package.
#[pyo3::pymodule]
mod _vdsmstore {
    #[pymodule_export]
    use crate::glue::{Difference, Image, Store};

    /// The release.
    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "Python's name")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    /// Whether this was built without optimisation.
    #[pymodule_export]
    const DEBUG_BUILD: bool = cfg!(debug_assertions);
}
