//! Verbs about what is unfinished.

use std::ffi::{c_char, c_int};

use serde_json::Value;
use vdsmstore_core::options::{CheckOptions, FixOptions, NoOptions, parse};
use vdsmstore_core::{Error, ErrorKind, Fix, Result};

use crate::error::ErrorObject;
use crate::guard::{Out, guard, invalid, json_text, text};
use crate::store::StoreObject;
use crate::string::{json, owned};

/// What is wrong in a repository, or could be better. Takes no locks, changes nothing.
///
/// `options`: `exactCost` (costs from the images' maps, not from their sizes).
/// `*fixes`: JSON array of objects: `type` (`"clean"`, `"optimize"`, `"merge"`, `"mend"`), `imageId`, `description`,
/// `cost` (`read`, `write`, `frees`, `needs`), `data` (opaque), each to be given to `vdsmstore_fix_storage_repository`
/// by any host; freed with `vdsmstore_string_free`.
///
/// Errors: RepositoryNotFound.
///
/// # Safety
/// `store` is NULL or a store that has not been freed; the texts are NULL or end with NUL; the out-parameters are NULL
/// or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_check_storage_repository(
    store: *const StoreObject,
    repository_id: *const c_char,
    options: *const c_char,
    fixes: *mut *mut c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, store, repo_id, options) = unsafe {
            (
                Out::new("fixes", fixes)?,
                StoreObject::get(store)?,
                text("repositoryId", repository_id)?,
                json_text("options", options)?,
            )
        };
        let options = parse::<CheckOptions>(options)?;
        out.set_text(json(&store.check_storage_repository(repo_id, &options)?)?);
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// Starts one fix. It is looked at again under locks: one that has become unnecessary succeeds and does nothing, one
/// that a check would not list is refused, here or when its task comes to it, and changes nothing.
///
/// `fix`: one object of what `vdsmstore_check_storage_repository` returned, as JSON. `options`: `taskId`, `bandwidth`.
/// `*task_id`: of the started task, for `vdsmstore_wait_task`; freed with `vdsmstore_string_free`.
///
/// Errors: RepositoryNotFound, FixRefused, ImageInUse, TaskIdInUse.
///
/// # Safety
/// As `vdsmstore_check_storage_repository`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_fix_storage_repository(
    store: *const StoreObject,
    repository_id: *const c_char,
    fix: *const c_char,
    options: *const c_char,
    task_id: *mut *mut c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, store, repo_id, fix, options) = unsafe {
            (
                Out::new("task_id", task_id)?,
                StoreObject::get(store)?,
                text("repositoryId", repository_id)?,
                text("fix", fix)?,
                json_text("options", options)?,
            )
        };
        let options = parse::<FixOptions>(options)?;
        out.set_text(owned(&store.fix_storage_repository(repo_id, &parse_fix(fix)?, &options)?));
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// What is no JSON object was never a fix; an object that is none was changed, or comes from another release.
fn parse_fix(text: &str) -> Result<Fix> {
    let value: Value =
        serde_json::from_str(text).map_err(|error| invalid("fix", &format!("no JSON: {error}")))?;
    if !value.is_object() {
        return Err(invalid("fix", "is no JSON object"));
    }
    serde_json::from_value(value)
        .map_err(|error| Error::new(ErrorKind::FixRefused, format!("fix refused: {error}")))
}

/// Stops what runs on an image in this store, in a resumable state; returns when it has stopped. Nothing runs: does
/// nothing.
///
/// `options`: none.
///
/// Errors: RepositoryNotFound, Timeout.
///
/// # Safety
/// As `vdsmstore_check_storage_repository`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_stop_image_task(
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
        parse::<NoOptions>(options)?;
        store.stop_image_task(repo_id, image)
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// Stops a task, in a resumable state; returns when it has stopped. One that has ended: does nothing.
///
/// `options`: none.
///
/// Errors: TaskNotFound, Timeout.
///
/// # Safety
/// As `vdsmstore_check_storage_repository`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_stop_task(
    store: *const StoreObject,
    task_id: *const c_char,
    options: *const c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (store, task, options) =
            unsafe { (StoreObject::get(store)?, text("taskId", task_id)?, json_text("options", options)?) };
        parse::<NoOptions>(options)?;
        store.stop_task(task)
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}
