//! Verbs that this release has not built: each fails with UnsupportedOperation, whatever it is given.

#![allow(unused_variables)]

use std::ffi::{c_char, c_int};

use vdsmstore_core::{Error, ErrorKind};

use crate::error::ErrorObject;
use crate::guard::guard;
use crate::store::StoreObject;

/// # Safety
/// `error` is NULL or valid for writing.
unsafe fn unbuilt(verb: &str, error: *mut *mut ErrorObject) -> c_int {
    let message = format!("{verb} is not supported by this release");
    // SAFETY: by contract.
    unsafe { guard(error, || Err(Error::new(ErrorKind::UnsupportedOperation, message))) }
}

/// What is wrong in a repository. Not built yet: UnsupportedOperation.
///
/// # Safety
/// `error` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_check_storage_repository(
    store: *const StoreObject,
    repository_id: *const c_char,
    options: *const c_char,
    fixes: *mut *mut c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    // SAFETY: by contract.
    unsafe { unbuilt("checkStorageRepository", error) }
}

/// Starts one fix. Not built yet: UnsupportedOperation.
///
/// # Safety
/// `error` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_fix_storage_repository(
    store: *const StoreObject,
    repository_id: *const c_char,
    fix: *const c_char,
    options: *const c_char,
    task_id: *mut *mut c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    // SAFETY: by contract.
    unsafe { unbuilt("fixStorageRepository", error) }
}

/// Asks for another representation. Not built yet: UnsupportedOperation.
///
/// # Safety
/// `error` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_set_image_strategy(
    store: *const StoreObject,
    repository_id: *const c_char,
    image_id: *const c_char,
    strategy: *const c_char,
    options: *const c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    // SAFETY: by contract.
    unsafe { unbuilt("setImageStrategy", error) }
}

/// Grows a virtual disk. Not built yet: UnsupportedOperation.
///
/// # Safety
/// `error` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_resize_virtual_disk(
    store: *const StoreObject,
    repository_id: *const c_char,
    image_id: *const c_char,
    size: i64,
    options: *const c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    // SAFETY: by contract.
    unsafe { unbuilt("resizeVirtualDisk", error) }
}

/// Stops what runs on an image. Not built yet: UnsupportedOperation.
///
/// # Safety
/// `error` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_stop_image_task(
    store: *const StoreObject,
    repository_id: *const c_char,
    image_id: *const c_char,
    options: *const c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    // SAFETY: by contract.
    unsafe { unbuilt("stopImageTask", error) }
}

/// Stops a task. Not built yet: UnsupportedOperation.
///
/// # Safety
/// `error` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_stop_task(
    store: *const StoreObject,
    task_id: *const c_char,
    options: *const c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    // SAFETY: by contract.
    unsafe { unbuilt("stopTask", error) }
}

/// Writes an image to a file. Not built yet: UnsupportedOperation.
///
/// # Safety
/// `error` is NULL or valid for writing.
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
    // SAFETY: by contract.
    unsafe { unbuilt("exportImage", error) }
}

/// What a copy would take. Not built yet: UnsupportedOperation.
///
/// # Safety
/// `error` is NULL or valid for writing.
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
    // SAFETY: by contract.
    unsafe { unbuilt("measureImage", error) }
}

/// Room for so many bytes. Not built yet: UnsupportedOperation.
///
/// # Safety
/// `error` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_extend_image(
    store: *const StoreObject,
    repository_id: *const c_char,
    image_id: *const c_char,
    allocated: i64,
    options: *const c_char,
    allocated_now: *mut i64,
    error: *mut *mut ErrorObject,
) -> c_int {
    // SAFETY: by contract.
    unsafe { unbuilt("extendImage", error) }
}
