//! The calls of the C functions: all the unsafe code of the module.

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::{NonNull, null, null_mut};

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use vdsmstore as c;

use crate::enter::{enter, enter_waiting, optional, text};

/// An error of the C interface.
pub(crate) struct OwnedError(c_int, NonNull<c::ErrorObject>);

// SAFETY: the object is immutable and owned, and C allows it to be used and freed by any thread.
unsafe impl Send for OwnedError {}

impl OwnedError {
    /// What the function returned.
    pub(crate) fn code(&self) -> c_int {
        self.0
    }

    pub(crate) fn kind(&self) -> &CStr {
        // SAFETY: the error lives, and its texts as long.
        unsafe { CStr::from_ptr(c::vdsmstore_error_kind(self.1.as_ptr())) }
    }

    pub(crate) fn message(&self) -> &CStr {
        // SAFETY: as above.
        unsafe { CStr::from_ptr(c::vdsmstore_error_message(self.1.as_ptr())) }
    }

    pub(crate) fn details(&self) -> &CStr {
        // SAFETY: as above.
        unsafe { CStr::from_ptr(c::vdsmstore_error_details(self.1.as_ptr())) }
    }
}

impl Drop for OwnedError {
    fn drop(&mut self) {
        // SAFETY: owned, so freed once.
        unsafe { c::vdsmstore_error_free(self.1.as_ptr()) }
    }
}

type Failure = Result<(), OwnedError>;
type Text = Result<String, OwnedError>;

/// A call that returns nothing but its error.
fn plain(call: impl FnOnce(*mut *mut c::ErrorObject) -> c_int) -> Failure {
    let mut error = null_mut();
    let code = call(&raw mut error);
    NonNull::new(error).map_or(Ok(()), |error| Err(OwnedError(code, error)))
}

/// A call that returns a text.
fn texting(call: impl FnOnce(*mut *mut c_char, *mut *mut c::ErrorObject) -> c_int) -> Text {
    let mut out = null_mut();
    plain(|error| call(&raw mut out, error))?;
    // SAFETY: on success the text is there, ends with NUL, and is ours to free.
    unsafe {
        let value = CStr::from_ptr(out).to_string_lossy().into_owned();
        c::vdsmstore_string_free(out);
        Ok(value)
    }
}

/// The pointer of an optional text.
fn pointer(text: Option<&CString>) -> *const c_char {
    text.map_or(null(), |text| text.as_ptr())
}

/// An object of the C interface, freed when the Python object is.
struct Handle<T>(NonNull<T>);

// SAFETY: the objects may be used by any thread, and by many at once; freed when no call can use them any more.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Handle<T> {}

impl<T> Handle<T> {
    fn get(&self) -> *const T {
        self.0.as_ptr()
    }
}

/// A store.
#[pyclass(frozen, module = "vdsmstore._vdsmstore")]
pub(crate) struct Store(Handle<c::StoreObject>);

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: owned by the Python object, which nobody refers to any more.
        unsafe { c::vdsmstore_free(self.0.0.as_ptr()) }
    }
}

/// An image open for I/O.
#[pyclass(frozen, module = "vdsmstore._vdsmstore")]
pub(crate) struct Image(Handle<c::ImageObject>);

impl Drop for Image {
    fn drop(&mut self) {
        // SAFETY: owned by the Python object, which nobody refers to any more.
        unsafe { c::vdsmstore_image_free(self.0.0.as_ptr()) }
    }
}

/// A comparison of two images.
#[pyclass(frozen, module = "vdsmstore._vdsmstore")]
pub(crate) struct Difference(Handle<c::DifferenceObject>);

impl Drop for Difference {
    fn drop(&mut self) {
        // SAFETY: owned by the Python object, which nobody refers to any more.
        unsafe { c::vdsmstore_difference_free(self.0.0.as_ptr()) }
    }
}

/// Calls a verb without the GIL: `verb!(py, kind, function, store, texts...)`. The texts are locals of type CString
/// or `Option<CString>` that outlive the call.
macro_rules! verb {
    ($py:ident, $kind:ident($($out:ident),*), $function:ident, $self:ident, $($argument:expr),*) => {
        enter($py, || {
            // SAFETY: the object lives as long as `self`, the texts are NULL or end with NUL and outlive the call,
            // and the out-parameters are places on the stack of `plain` and `texting`.
            $kind(|$($out),*| unsafe { c::$function($self.0.get(), $($argument,)* $($out),*) })
        })
    };
}

/// Makes C texts of arguments under their own names.
macro_rules! texts {
    ($py:ident, $($name:ident = $label:literal),*) => { $(let $name = text($py, $label, $name)?;)* };
}

#[pymethods]
impl Store {
    #[new]
    fn new(py: Python<'_>, options: &str) -> PyResult<Self> {
        texts!(py, options = "options");
        enter(py, || {
            let mut store = null_mut();
            // SAFETY: the text ends with NUL, and the out-parameters are places on this stack.
            plain(|error| unsafe { c::vdsmstore_open(options.as_ptr(), &raw mut store, error) })?;
            // SAFETY: on success the store is there.
            Ok(Self(Handle(unsafe { NonNull::new_unchecked(store) })))
        })
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        verb!(py, plain(error), vdsmstore_close, self,)
    }

    fn connect_storage_repository(
        &self,
        py: Python<'_>,
        repo_id: &str,
        format: &str,
        parameters: &str,
        options: &str,
    ) -> PyResult<()> {
        texts!(
            py,
            repo_id = "repoId",
            format = "repoFormat",
            parameters = "connectionParameters",
            options = "options"
        );
        verb!(
            py,
            plain(error),
            vdsmstore_connect_storage_repository,
            self,
            repo_id.as_ptr(),
            format.as_ptr(),
            parameters.as_ptr(),
            options.as_ptr()
        )
    }

    fn disconnect_storage_repository(&self, py: Python<'_>, repo_id: &str, options: &str) -> PyResult<()> {
        texts!(py, repo_id = "repoId", options = "options");
        verb!(
            py,
            plain(error),
            vdsmstore_disconnect_storage_repository,
            self,
            repo_id.as_ptr(),
            options.as_ptr()
        )
    }

    fn format_storage_repository(
        &self,
        py: Python<'_>,
        format: &str,
        parameters: &str,
        options: &str,
    ) -> PyResult<()> {
        texts!(py, format = "repoFormat", parameters = "connectionParameters", options = "options");
        verb!(
            py,
            plain(error),
            vdsmstore_format_storage_repository,
            self,
            format.as_ptr(),
            parameters.as_ptr(),
            options.as_ptr()
        )
    }

    fn list_storage_repositories(&self, py: Python<'_>, options: &str) -> PyResult<String> {
        texts!(py, options = "options");
        verb!(py, texting(out, error), vdsmstore_list_storage_repositories, self, options.as_ptr())
    }

    fn get_storage_repository_info(&self, py: Python<'_>, repo_id: &str, options: &str) -> PyResult<String> {
        texts!(py, repo_id = "repositoryId", options = "options");
        verb!(
            py,
            texting(out, error),
            vdsmstore_get_storage_repository_info,
            self,
            repo_id.as_ptr(),
            options.as_ptr()
        )
    }

    #[pyo3(signature = (repo_id, size, base, user_data, options))]
    fn create_virtual_disk(
        &self,
        py: Python<'_>,
        repo_id: &str,
        size: Option<i64>,
        base: Option<&str>,
        user_data: &str,
        options: &str,
    ) -> PyResult<String> {
        texts!(py, repo_id = "targetRepoId", user_data = "userData", options = "options");
        let base = optional(py, "baseSnapshotId", base)?;
        let size = size.unwrap_or(c::VDSMSTORE_SIZE_OF_BASE);
        verb!(
            py,
            texting(out, error),
            vdsmstore_create_virtual_disk,
            self,
            repo_id.as_ptr(),
            size,
            pointer(base.as_ref()),
            user_data.as_ptr(),
            options.as_ptr()
        )
    }

    fn create_snapshot(
        &self,
        py: Python<'_>,
        repo_id: &str,
        disk: &str,
        user_data: &str,
        options: &str,
    ) -> PyResult<String> {
        texts!(
            py,
            repo_id = "targetRepoId",
            disk = "baseVirtualDiskId",
            user_data = "userData",
            options = "options"
        );
        verb!(
            py,
            texting(out, error),
            vdsmstore_create_snapshot,
            self,
            repo_id.as_ptr(),
            disk.as_ptr(),
            user_data.as_ptr(),
            options.as_ptr()
        )
    }

    #[pyo3(signature = (repo_id, image, base, user_data, options))]
    fn copy_image(
        &self,
        py: Python<'_>,
        repo_id: &str,
        image: &str,
        base: Option<&str>,
        user_data: &str,
        options: &str,
    ) -> PyResult<String> {
        texts!(py, repo_id = "targetRepoId", image = "imageId", user_data = "userData", options = "options");
        let base = optional(py, "baseImageId", base)?;
        verb!(
            py,
            texting(out, error),
            vdsmstore_copy_image,
            self,
            repo_id.as_ptr(),
            image.as_ptr(),
            pointer(base.as_ref()),
            user_data.as_ptr(),
            options.as_ptr()
        )
    }

    fn import_image(
        &self,
        py: Python<'_>,
        repo_id: &str,
        path: &str,
        format: &str,
        user_data: &str,
        options: &str,
    ) -> PyResult<String> {
        texts!(
            py,
            repo_id = "targetRepoId",
            path = "path",
            format = "format",
            user_data = "userData",
            options = "options"
        );
        verb!(
            py,
            texting(out, error),
            vdsmstore_import_image,
            self,
            repo_id.as_ptr(),
            path.as_ptr(),
            format.as_ptr(),
            user_data.as_ptr(),
            options.as_ptr()
        )
    }

    fn remove_image(&self, py: Python<'_>, repo_id: &str, image: &str, options: &str) -> PyResult<()> {
        texts!(py, repo_id = "repositoryId", image = "imageId", options = "options");
        verb!(
            py,
            plain(error),
            vdsmstore_remove_image,
            self,
            repo_id.as_ptr(),
            image.as_ptr(),
            options.as_ptr()
        )
    }

    fn get_image_status(
        &self,
        py: Python<'_>,
        repo_id: &str,
        image: &str,
        options: &str,
    ) -> PyResult<String> {
        texts!(py, repo_id = "repositoryId", image = "imageId", options = "options");
        verb!(
            py,
            texting(out, error),
            vdsmstore_get_image_status,
            self,
            repo_id.as_ptr(),
            image.as_ptr(),
            options.as_ptr()
        )
    }

    fn get_image_info(&self, py: Python<'_>, repo_id: &str, image: &str, options: &str) -> PyResult<String> {
        texts!(py, repo_id = "repositoryId", image = "imageId", options = "options");
        verb!(
            py,
            texting(out, error),
            vdsmstore_get_image_info,
            self,
            repo_id.as_ptr(),
            image.as_ptr(),
            options.as_ptr()
        )
    }

    fn list_images(&self, py: Python<'_>, repo_id: &str, options: &str) -> PyResult<String> {
        texts!(py, repo_id = "repositoryId", options = "options");
        verb!(py, texting(out, error), vdsmstore_list_images, self, repo_id.as_ptr(), options.as_ptr())
    }

    fn set_image_user_data(
        &self,
        py: Python<'_>,
        repo_id: &str,
        image: &str,
        user_data: &str,
        options: &str,
    ) -> PyResult<()> {
        texts!(py, repo_id = "repositoryId", image = "imageId", user_data = "userData", options = "options");
        verb!(
            py,
            plain(error),
            vdsmstore_set_image_user_data,
            self,
            repo_id.as_ptr(),
            image.as_ptr(),
            user_data.as_ptr(),
            options.as_ptr()
        )
    }

    fn prepare_image(&self, py: Python<'_>, repo_id: &str, image: &str, options: &str) -> PyResult<String> {
        texts!(py, repo_id = "repositoryId", image = "imageId", options = "options");
        verb!(
            py,
            texting(out, error),
            vdsmstore_prepare_image,
            self,
            repo_id.as_ptr(),
            image.as_ptr(),
            options.as_ptr()
        )
    }

    fn teardown_image(&self, py: Python<'_>, repo_id: &str, image: &str, options: &str) -> PyResult<()> {
        texts!(py, repo_id = "repositoryId", image = "imageId", options = "options");
        verb!(
            py,
            plain(error),
            vdsmstore_teardown_image,
            self,
            repo_id.as_ptr(),
            image.as_ptr(),
            options.as_ptr()
        )
    }

    fn wait_image(
        &self,
        py: Python<'_>,
        repo_id: &str,
        image: &str,
        seconds: f64,
        options: &str,
    ) -> PyResult<String> {
        texts!(py, repo_id = "repositoryId", image = "imageId", options = "options");
        enter_waiting(py, seconds, |slice| {
            // SAFETY: as in `verb`.
            texting(|out, error| unsafe {
                let (repo_id, image) = (repo_id.as_ptr(), image.as_ptr());
                c::vdsmstore_wait_image(self.0.get(), repo_id, image, slice, options.as_ptr(), out, error)
            })
        })
    }

    fn wait_task(&self, py: Python<'_>, task: &str, seconds: f64, options: &str) -> PyResult<()> {
        texts!(py, task = "taskId", options = "options");
        enter_waiting(py, seconds, |slice| {
            // SAFETY: as in `verb`.
            plain(|error| unsafe {
                c::vdsmstore_wait_task(self.0.get(), task.as_ptr(), slice, options.as_ptr(), error)
            })
        })
    }

    fn list_tasks(&self, py: Python<'_>, options: &str) -> PyResult<String> {
        texts!(py, options = "options");
        verb!(py, texting(out, error), vdsmstore_list_tasks, self, options.as_ptr())
    }

    fn open_image(
        &self,
        py: Python<'_>,
        repo_id: &str,
        image: &str,
        mode: &str,
        options: &str,
    ) -> PyResult<Image> {
        texts!(py, repo_id = "repositoryId", image = "imageId", mode = "mode", options = "options");
        enter(py, || {
            let mut opened = null_mut();
            // SAFETY: as in `verb`; the out-parameter is a place on this stack.
            plain(|error| unsafe {
                c::vdsmstore_open_image(
                    self.0.get(),
                    repo_id.as_ptr(),
                    image.as_ptr(),
                    mode.as_ptr(),
                    options.as_ptr(),
                    &raw mut opened,
                    error,
                )
            })?;
            // SAFETY: on success the image is there.
            Ok(Image(Handle(unsafe { NonNull::new_unchecked(opened) })))
        })
    }

    fn check_storage_repository(&self, py: Python<'_>, repo_id: &str, options: &str) -> PyResult<String> {
        texts!(py, repo_id = "repositoryId", options = "options");
        verb!(
            py,
            texting(out, error),
            vdsmstore_check_storage_repository,
            self,
            repo_id.as_ptr(),
            options.as_ptr()
        )
    }

    fn fix_storage_repository(
        &self,
        py: Python<'_>,
        repo_id: &str,
        fix: &str,
        options: &str,
    ) -> PyResult<String> {
        texts!(py, repo_id = "repositoryId", fix = "fix", options = "options");
        verb!(
            py,
            texting(out, error),
            vdsmstore_fix_storage_repository,
            self,
            repo_id.as_ptr(),
            fix.as_ptr(),
            options.as_ptr()
        )
    }

    fn stop_image_task(&self, py: Python<'_>, repo_id: &str, image: &str, options: &str) -> PyResult<()> {
        texts!(py, repo_id = "repositoryId", image = "imageId", options = "options");
        verb!(
            py,
            plain(error),
            vdsmstore_stop_image_task,
            self,
            repo_id.as_ptr(),
            image.as_ptr(),
            options.as_ptr()
        )
    }

    fn stop_task(&self, py: Python<'_>, task: &str, options: &str) -> PyResult<()> {
        texts!(py, task = "taskId", options = "options");
        verb!(py, plain(error), vdsmstore_stop_task, self, task.as_ptr(), options.as_ptr())
    }

    fn set_image_strategy(
        &self,
        py: Python<'_>,
        repo_id: &str,
        image: &str,
        strategy: &str,
        options: &str,
    ) -> PyResult<()> {
        texts!(py, repo_id = "repositoryId", image = "imageId", strategy = "strategy", options = "options");
        verb!(
            py,
            plain(error),
            vdsmstore_set_image_strategy,
            self,
            repo_id.as_ptr(),
            image.as_ptr(),
            strategy.as_ptr(),
            options.as_ptr()
        )
    }

    fn resize_virtual_disk(
        &self,
        py: Python<'_>,
        repo_id: &str,
        image: &str,
        size: i64,
        options: &str,
    ) -> PyResult<()> {
        texts!(py, repo_id = "repositoryId", image = "imageId", options = "options");
        verb!(
            py,
            plain(error),
            vdsmstore_resize_virtual_disk,
            self,
            repo_id.as_ptr(),
            image.as_ptr(),
            size,
            options.as_ptr()
        )
    }

    fn export_image(
        &self,
        py: Python<'_>,
        repo_id: &str,
        image: &str,
        path: &str,
        format: &str,
        options: &str,
    ) -> PyResult<String> {
        texts!(
            py,
            repo_id = "repositoryId",
            image = "imageId",
            path = "path",
            format = "format",
            options = "options"
        );
        verb!(
            py,
            texting(out, error),
            vdsmstore_export_image,
            self,
            repo_id.as_ptr(),
            image.as_ptr(),
            path.as_ptr(),
            format.as_ptr(),
            options.as_ptr()
        )
    }

    #[pyo3(signature = (repo_id, image, base, options))]
    fn measure_image(
        &self,
        py: Python<'_>,
        repo_id: &str,
        image: &str,
        base: Option<&str>,
        options: &str,
    ) -> PyResult<String> {
        texts!(py, repo_id = "repositoryId", image = "imageId", options = "options");
        let base = optional(py, "baseImageId", base)?;
        verb!(
            py,
            texting(out, error),
            vdsmstore_measure_image,
            self,
            repo_id.as_ptr(),
            image.as_ptr(),
            pointer(base.as_ref()),
            options.as_ptr()
        )
    }

    #[pyo3(signature = (repo_id, image, base, options))]
    fn diff_images(
        &self,
        py: Python<'_>,
        repo_id: &str,
        image: &str,
        base: Option<&str>,
        options: &str,
    ) -> PyResult<Difference> {
        texts!(py, repo_id = "repositoryId", image = "imageId", options = "options");
        let base = optional(py, "baseImageId", base)?;
        enter(py, || {
            let mut opened = null_mut();
            // SAFETY: as in `verb`; the out-parameter is a place on this stack.
            plain(|error| unsafe {
                c::vdsmstore_diff_images(
                    self.0.get(),
                    repo_id.as_ptr(),
                    image.as_ptr(),
                    pointer(base.as_ref()),
                    options.as_ptr(),
                    &raw mut opened,
                    error,
                )
            })?;
            // SAFETY: on success the difference is there.
            Ok(Difference(Handle(unsafe { NonNull::new_unchecked(opened) })))
        })
    }
}

#[pymethods]
impl Difference {
    fn next(&self, py: Python<'_>, max: usize) -> PyResult<String> {
        verb!(py, texting(out, error), vdsmstore_difference_next, self, max)
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
