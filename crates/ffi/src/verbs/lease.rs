//! Verbs that hand an image to a program outside.

use std::ffi::{c_char, c_int};

use vdsmstore_core::options::{ForceOptions, PrepareOptions, parse};

use crate::error::ErrorObject;
use crate::guard::{Out, guard, json_text, text};
use crate::store::StoreObject;
use crate::string::json;

/// Makes an image ready for QEMU. It is recorded durably, and outlives this process; again on the same host it adopts
/// what is there.
///
/// `options`: `readOnly` (needed for a snapshot).
/// `*prepared`: JSON object: `path`, `format`, `readOnly`, `blockdev`, `libvirt`; freed with `vdsmstore_string_free`.
///
/// Errors: RepositoryNotFound, ImageNotFound, ImageBroken, ImageInUse, ReadOnlyImage, UnsupportedOperation.
///
/// # Safety
/// `store` is NULL or a store that has not been freed; the texts are NULL or end with NUL; the out-parameters are NULL
/// or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_prepare_image(
    store: *const StoreObject,
    repository_id: *const c_char,
    image_id: *const c_char,
    options: *const c_char,
    prepared: *mut *mut c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, store, repo_id, image, options) = unsafe {
            (
                Out::new("prepared", prepared)?,
                StoreObject::get(store)?,
                text("repositoryId", repository_id)?,
                text("imageId", image_id)?,
                json_text("options", options)?,
            )
        };
        out.set_text(json(&store.prepare_image(repo_id, image, &parse::<PrepareOptions>(options)?)?)?);
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// Releases a prepared image.
///
/// `options`: `force` (the holder is known to be dead).
///
/// Errors: RepositoryNotFound, ImageNotFound, ImageInUse.
///
/// # Safety
/// As `vdsmstore_prepare_image`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_teardown_image(
    store: *const StoreObject,
    repository_id: *const c_char,
    image_id: *const c_char,
    options: *const c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (store, repo_id, image, options) = unsafe {
            (
                StoreObject::get(store)?,
                text("repositoryId", repository_id)?,
                text("imageId", image_id)?,
                json_text("options", options)?,
            )
        };
        store.teardown_image(repo_id, image, &parse::<ForceOptions>(options)?)
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}
