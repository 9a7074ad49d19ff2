//! Verbs on images that exist.

use std::ffi::{c_char, c_int};

use vdsmstore_core::options::{ListOptions, NoOptions, RemoveOptions, ResizeOptions, Strategy, parse};

use crate::error::ErrorObject;
use crate::guard::{Out, guard, invalid, json_text, text};
use crate::store::StoreObject;
use crate::string::json;

/// Removes an image: its id is gone when this returns, its space when nothing needs it. Images built on it are not
/// touched.
///
/// `options`: `AutoFix`, `taskId`.
///
/// Errors: RepositoryNotFound, ImageNotFound, ImageInUse, TaskIdInUse.
///
/// # Safety
/// `store` is NULL or a store that has not been freed; the texts are NULL or end with NUL; `error` is NULL or valid
/// for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_remove_image(
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
        store.remove_image(repo_id, image, &parse::<RemoveOptions>(options)?)
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// Whether an image can be used, and what works on it.
///
/// `options`: none. `*status`: JSON object: `status` (`"optimized"`, `"degraded"`, `"broken"`), `hostID`, `stage`,
/// `percent_complete`, `last_error`, `tasks`; freed with `vdsmstore_string_free`.
///
/// Errors: RepositoryNotFound, ImageNotFound.
///
/// # Safety
/// As `vdsmstore_remove_image`; the out-parameter is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_get_image_status(
    store: *const StoreObject,
    repository_id: *const c_char,
    image_id: *const c_char,
    options: *const c_char,
    status: *mut *mut c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, store, repo_id, image, options) = unsafe {
            (
                Out::new("status", status)?,
                StoreObject::get(store)?,
                text("repositoryId", repository_id)?,
                text("imageId", image_id)?,
                json_text("options", options)?,
            )
        };
        parse::<NoOptions>(options)?;
        out.set_text(json(&store.get_image_status(repo_id, image)?)?);
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// What an image is.
///
/// `options`: none. `*info`: JSON object: `imageId`, `mutable`, `size`, `allocated`, `userData` (byte for byte as it
/// was given), `strategy`, `created`, `depth`, `prepared`; freed with `vdsmstore_string_free`.
///
/// Errors: RepositoryNotFound, ImageNotFound.
///
/// # Safety
/// As `vdsmstore_get_image_status`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_get_image_info(
    store: *const StoreObject,
    repository_id: *const c_char,
    image_id: *const c_char,
    options: *const c_char,
    info: *mut *mut c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, store, repo_id, image, options) = unsafe {
            (
                Out::new("info", info)?,
                StoreObject::get(store)?,
                text("repositoryId", repository_id)?,
                text("imageId", image_id)?,
                json_text("options", options)?,
            )
        };
        parse::<NoOptions>(options)?;
        out.set_text(json(&store.get_image_info(repo_id, image)?)?);
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// The images of a repository in order of their ids.
///
/// `options`: `details`, `kind` (`"disk"` or `"snapshot"`), `after` (only ids greater than this one), `limit`.
/// `*images`: JSON array of ids, or with `details` of what `vdsmstore_get_image_info` returns; freed with
/// `vdsmstore_string_free`.
///
/// Errors: RepositoryNotFound.
///
/// # Safety
/// As `vdsmstore_get_image_status`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_list_images(
    store: *const StoreObject,
    repository_id: *const c_char,
    options: *const c_char,
    images: *mut *mut c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, store, repo_id, options) = unsafe {
            (
                Out::new("images", images)?,
                StoreObject::get(store)?,
                text("repositoryId", repository_id)?,
                json_text("options", options)?,
            )
        };
        let options = parse::<ListOptions>(options)?;
        out.set_text(if options.details {
            json(&store.list_image_infos(repo_id, &options)?)?
        } else {
            json(&store.list_images(repo_id, &options)?)?
        });
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// Replaces the user data of an image.
///
/// `user_data`: any JSON, up to 1 MiB; kept byte for byte. `options`: none.
///
/// Errors: RepositoryNotFound, ImageNotFound.
///
/// # Safety
/// As `vdsmstore_remove_image`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_set_image_user_data(
    store: *const StoreObject,
    repository_id: *const c_char,
    image_id: *const c_char,
    user_data: *const c_char,
    options: *const c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (store, repo_id, image, user_data, options) = unsafe {
            (
                StoreObject::get(store)?,
                text("repositoryId", repository_id)?,
                text("imageId", image_id)?,
                text("userData", user_data)?,
                json_text("options", options)?,
            )
        };
        parse::<NoOptions>(options)?;
        store.set_image_user_data(repo_id, image, user_data)
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// Says which representation of an image is the best: what brings it there is listed by
/// `vdsmstore_check_storage_repository`.
///
/// `strategy`: `"space"` or `"performance"`. `options`: none.
///
/// Errors: RepositoryNotFound, ImageNotFound.
///
/// # Safety
/// As `vdsmstore_remove_image`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_set_image_strategy(
    store: *const StoreObject,
    repository_id: *const c_char,
    image_id: *const c_char,
    strategy: *const c_char,
    options: *const c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (store, repo_id, image, strategy, options) = unsafe {
            (
                StoreObject::get(store)?,
                text("repositoryId", repository_id)?,
                text("imageId", image_id)?,
                text("strategy", strategy)?,
                json_text("options", options)?,
            )
        };
        parse::<NoOptions>(options)?;
        let strategy = match strategy {
            "space" => Strategy::Space,
            "performance" => Strategy::Performance,
            other => {
                return Err(invalid("strategy", &format!("is \"space\" or \"performance\", not {other:?}")));
            }
        };
        store.set_image_strategy(repo_id, image, strategy)
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// Grows a virtual disk; the new bytes read as zeroes. Complete when this returns.
///
/// `size`: bytes, a multiple of 512, not less than now. `options`: `AutoFix`, which changes nothing.
///
/// Errors: InvalidSize, RepositoryNotFound, ImageNotFound, ImageBroken, ImageInUse, NotADisk.
///
/// # Safety
/// As `vdsmstore_remove_image`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_resize_virtual_disk(
    store: *const StoreObject,
    repository_id: *const c_char,
    image_id: *const c_char,
    size: i64,
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
        store.resize_virtual_disk(repo_id, image, size, &parse::<ResizeOptions>(options)?)
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}
