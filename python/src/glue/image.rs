//! Reading and writing an image.

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use vdsmstore as c;

use super::{Handle, plain, texting};
use crate::enter::enter;

/// An image open for I/O.
#[pyclass(frozen, module = "vdsmstore._vdsmstore")]
pub(crate) struct Image(pub(super) Handle<c::ImageObject>);

impl Drop for Image {
    fn drop(&mut self) {
        // SAFETY: owned by the Python object, which nobody refers to any more.
        unsafe { c::vdsmstore_image_free(self.0.0.as_ptr()) }
    }
}

/// An address that Python vouches for: a buffer that stays where it is during the call.
struct Buffer(usize);

impl Image {
    fn write_from(&self, py: Python<'_>, offset: i64, buffer: &Buffer, length: usize) -> PyResult<()> {
        verb!(py, plain(error), vdsmstore_image_write, self, offset, buffer.0 as *const _, length)
    }
}

#[pymethods]
impl Image {
    fn size(&self, py: Python<'_>) -> PyResult<u64> {
        enter(py, || {
            let mut size = 0;
            // SAFETY: as in `verb`; the out-parameter is a place on this stack.
            plain(|error| unsafe { c::vdsmstore_image_size(self.0.get(), &raw mut size, error) })?;
            Ok(size)
        })
    }

    /// `length` is within the image's size: the caller has checked it, so that nothing absurd is allocated.
    fn read<'py>(&self, py: Python<'py>, offset: i64, length: usize) -> PyResult<Bound<'py, PyBytes>> {
        PyBytes::new_with(py, length, |bytes| {
            let buffer = Buffer(bytes.as_mut_ptr().addr());
            self.read_at(py, offset, buffer.0, length)
        })
    }

    /// Reads into memory at an address: the caller holds a buffer there, which is writable, that long, and pinned.
    fn read_at(&self, py: Python<'_>, offset: i64, address: usize, length: usize) -> PyResult<()> {
        verb!(py, plain(error), vdsmstore_image_read, self, offset, address as *mut _, length)
    }

    #[expect(clippy::needless_pass_by_value, reason = "Python's arguments are owned")]
    fn write(&self, py: Python<'_>, offset: i64, data: Bound<'_, PyBytes>) -> PyResult<()> {
        let bytes = data.as_bytes();
        self.write_from(py, offset, &Buffer(bytes.as_ptr().addr()), bytes.len())
    }

    /// Writes memory at an address: the caller holds a buffer there, which is that long, and pinned.
    fn write_at(&self, py: Python<'_>, offset: i64, address: usize, length: usize) -> PyResult<()> {
        self.write_from(py, offset, &Buffer(address), length)
    }

    fn write_zeroes(&self, py: Python<'_>, offset: i64, length: i64) -> PyResult<()> {
        verb!(py, plain(error), vdsmstore_image_write_zeroes, self, offset, length)
    }

    fn discard(&self, py: Python<'_>, offset: i64, length: i64) -> PyResult<()> {
        verb!(py, plain(error), vdsmstore_image_discard, self, offset, length)
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        verb!(py, plain(error), vdsmstore_image_flush, self,)
    }

    fn extents(&self, py: Python<'_>, offset: i64, max: usize) -> PyResult<String> {
        verb!(py, texting(out, error), vdsmstore_image_extents, self, offset, max)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        verb!(py, plain(error), vdsmstore_image_close, self,)
    }
}
