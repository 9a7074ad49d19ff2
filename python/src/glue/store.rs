//! Everything that is asked of a store.

use std::ptr::{NonNull, null_mut};

use pyo3::prelude::*;
use vdsmstore as c;

use super::{Difference, Handle, Image, plain, pointer, texting};
use crate::enter::{enter, enter_waiting, optional, text};

/// A store.
#[pyclass(frozen, module = "vdsmstore._vdsmstore")]
pub(crate) struct Store(Handle<c::StoreObject>);

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: owned by the Python object, which nobody refers to any more.
        unsafe { c::vdsmstore_free(self.0.0.as_ptr()) }
    }
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
