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
