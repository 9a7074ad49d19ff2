//! Verbs that this release has not built: each fails with UnsupportedOperation, whatever it is given.

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
    _store: *const StoreObject,
    _repository_id: *const c_char,
    _options: *const c_char,
    _fixes: *mut *mut c_char,
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
    _store: *const StoreObject,
    _repository_id: *const c_char,
    _fix: *const c_char,
    _options: *const c_char,
    _task_id: *mut *mut c_char,
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
    _store: *const StoreObject,
    _repository_id: *const c_char,
    _image_id: *const c_char,
    _strategy: *const c_char,
    _options: *const c_char,
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
    _store: *const StoreObject,
    _repository_id: *const c_char,
    _image_id: *const c_char,
    _size: i64,
    _options: *const c_char,
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
    _store: *const StoreObject,
    _repository_id: *const c_char,
    _image_id: *const c_char,
    _options: *const c_char,
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
    _store: *const StoreObject,
    _task_id: *const c_char,
    _options: *const c_char,
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
    _store: *const StoreObject,
    _repository_id: *const c_char,
    _image_id: *const c_char,
    _path: *const c_char,
    _format: *const c_char,
    _options: *const c_char,
    _task_id: *mut *mut c_char,
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
    _store: *const StoreObject,
    _repository_id: *const c_char,
    _image_id: *const c_char,
    _base_image_id: *const c_char,
    _options: *const c_char,
    _measure: *mut *mut c_char,
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
    _store: *const StoreObject,
    _repository_id: *const c_char,
    _image_id: *const c_char,
    _allocated: i64,
    _options: *const c_char,
    _allocated_now: *mut i64,
    error: *mut *mut ErrorObject,
) -> c_int {
    // SAFETY: by contract.
    unsafe { unbuilt("extendImage", error) }
}
