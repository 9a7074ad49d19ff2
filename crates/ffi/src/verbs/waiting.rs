//! Verbs about what runs.

use std::ffi::{c_char, c_int};

use vdsmstore_core::options::{NoOptions, WaitOptions, parse};

use crate::error::ErrorObject;
use crate::guard::{Out, duration, guard, json_text, text};
use crate::store::StoreObject;
use crate::string::json;

/// Waits until no task of this store runs on the image; a task that failed is no error of this call.
///
/// `timeout`: at most so many seconds; negative: for ever. `options`: `status` (`"optimized"`: until any host has brought the
/// image there). `*status`: as of `vdsmstore_get_image_status`; freed with `vdsmstore_string_free`.
///
/// Errors: RepositoryNotFound, ImageNotFound, Timeout.
///
/// # Safety
/// `store` is NULL or a store that has not been freed; the texts are NULL or end with NUL; the out-parameters are NULL
/// or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_wait_image(
    store: *const StoreObject,
    repository_id: *const c_char,
    image_id: *const c_char,
    timeout: f64,
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
        let options = parse::<WaitOptions>(options)?;
        out.set_text(json(&store.wait_image(repo_id, image, duration(timeout)?, &options)?)?);
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// Waits until a task has ended; what it failed with is the error of this call.
///
/// `timeout`: at most so many seconds; negative: for ever. `options`: none.
///
/// Errors: TaskNotFound, Timeout, Stopped.
///
/// # Safety
/// As `vdsmstore_wait_image`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_wait_task(
    store: *const StoreObject,
    task_id: *const c_char,
    timeout: f64,
    options: *const c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (store, task, options) =
            unsafe { (StoreObject::get(store)?, text("taskId", task_id)?, json_text("options", options)?) };
        parse::<NoOptions>(options)?;
        store.wait_task(task, duration(timeout)?)
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// What runs in this store.
///
/// `options`: none. `*tasks`: JSON array of objects: `taskId`, `type`, `repoId`, `imageId`, `stage`,
/// `percent_complete`, `bytesDone`, `bytesTotal`, `started`; freed with `vdsmstore_string_free`.
///
/// Errors: none of its own.
///
/// # Safety
/// As `vdsmstore_wait_image`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_list_tasks(
    store: *const StoreObject,
    options: *const c_char,
    tasks: *mut *mut c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, store, options) =
            unsafe { (Out::new("tasks", tasks)?, StoreObject::get(store)?, json_text("options", options)?) };
        parse::<NoOptions>(options)?;
        out.set_text(json(&store.list_tasks()?)?);
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}
