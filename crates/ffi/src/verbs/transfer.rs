//! Verbs that read an image for somebody else.

use std::ffi::{c_char, c_int};

use vdsmstore_core::options::{ExportOptions, MeasureOptions, parse};

use crate::error::ErrorObject;
use crate::guard::{Out, guard, json_text, optional_text, text};
use crate::store::StoreObject;
use crate::string::{json, owned};

/// Starts writing an image to a file, which has its name only when it is whole. Begins anew after a stop.
///
/// `path`: absolute. `format`: `"raw"` or `"qcow2"`. `options`: `overwrite` (replace a file of that name),
/// `compress` (a qcow2 file: `"zstd"` or `"deflate"`), `taskId`, `bandwidth`.
/// `*task_id`: of the started task, for `vdsmstore_wait_task`; freed with `vdsmstore_string_free`.
///
/// Errors: RepositoryNotFound, ImageNotFound, ImageBroken, ImageInUse, CorruptImage, TaskIdInUse.
///
/// # Safety
/// `store` is NULL or a store that has not been freed; the texts are NULL or end with NUL; the out-parameters are NULL
/// or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_export_image(
    store: *const StoreObject,
    repository_id: *const c_char,
    image_id: *const c_char,
    path: *const c_char,
    format: *const c_char,
    options: *const c_char,
    task_id: *mut *mut c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, store, repo_id, image, path, format, options) = unsafe {
            (
                Out::new("task_id", task_id)?,
                StoreObject::get(store)?,
                text("repositoryId", repository_id)?,
                text("imageId", image_id)?,
                text("path", path)?,
                text("format", format)?,
                json_text("options", options)?,
            )
        };
        let options = parse::<ExportOptions>(options)?;
        out.set_text(owned(&store.export_image(repo_id, image, path, format, &options)?));
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// What a copy of an image, or of its difference to a base, would take.
///
/// `base_image_id`: NULL: none. `options`: `format` (`"raw"` or `"qcow2"`; default raw).
/// `*measure`: JSON object: `required`, `fullyAllocated` (when all of it is written), `read` (by making it): bytes;
/// freed with `vdsmstore_string_free`.
///
/// Errors: RepositoryNotFound, ImageNotFound, ImageBroken, ImageInUse, CorruptImage.
///
/// # Safety
/// As `vdsmstore_export_image`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_measure_image(
    store: *const StoreObject,
    repository_id: *const c_char,
    image_id: *const c_char,
    base_image_id: *const c_char,
    options: *const c_char,
    measure: *mut *mut c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, store, repo_id, image, base, options) = unsafe {
            (
                Out::new("measure", measure)?,
                StoreObject::get(store)?,
                text("repositoryId", repository_id)?,
                text("imageId", image_id)?,
                optional_text("baseImageId", base_image_id)?,
                json_text("options", options)?,
            )
        };
        let options = parse::<MeasureOptions>(options)?;
        out.set_text(json(&store.measure_image(repo_id, image, base, &options)?)?);
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}
