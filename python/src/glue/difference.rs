//! What two images differ in.

use pyo3::prelude::*;
use vdsmstore as c;

use super::{Handle, texting};
use crate::enter::enter;

/// A comparison of two images.
#[pyclass(frozen, module = "vdsmstore._vdsmstore")]
pub(crate) struct Difference(pub(super) Handle<c::DifferenceObject>);

impl Drop for Difference {
    fn drop(&mut self) {
        // SAFETY: owned by the Python object, which nobody refers to any more.
        unsafe { c::vdsmstore_difference_free(self.0.0.as_ptr()) }
    }
}

#[pymethods]
impl Difference {
    fn next(&self, py: Python<'_>, max: usize) -> PyResult<String> {
        verb!(py, texting(out, error), vdsmstore_difference_next, self, max)
    }
}
