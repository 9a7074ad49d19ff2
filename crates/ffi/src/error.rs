//! `vdsmstore_error_t`: why a call failed.

use std::ffi::{CString, c_char, c_int};

use vdsmstore_core::Error;

use crate::guard::quietly;
use crate::string::owned;

/// Why a call failed: a code, the kind's name, a message, details. Owned by the caller, immutable, usable from any
/// thread.
pub struct ErrorObject {
    code: c_int,
    kind: CString,
    message: CString,
    details: CString,
}

impl ErrorObject {
    pub(crate) fn new(error: &Error) -> *mut Self {
        let mut message = error.message().to_owned();
        let mut source = std::error::Error::source(error);
        // The causes that the message does not repeat already.
        while let Some(cause) = source {
            let text = cause.to_string();
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            source = cause.source();
        }
        Box::into_raw(Box::new(Self {
            code: error.kind().code(),
            kind: owned(error.kind().name()),
            message: owned(&message),
            details: owned(&serde_json::to_string(error.details()).unwrap_or_else(|_| "{}".to_owned())),
        }))
    }
}

/// The code, one of `VDSMSTORE_ERROR_*`: what the failed function returned, without the minus. 0 for NULL.
///
/// # Safety
/// `error` is NULL or an error that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_error_code(error: *const ErrorObject) -> c_int {
    // SAFETY: by contract.
    unsafe { error.as_ref() }.map_or(0, |error| error.code)
}

/// The kind's name, as `"ImageNotFound"`: tells apart kinds that share a code. It belongs to the error, and is valid
/// until that is freed. NULL for NULL.
///
/// # Safety
/// `error` is NULL or an error that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_error_kind(error: *const ErrorObject) -> *const c_char {
    // SAFETY: by contract.
    unsafe { error.as_ref() }.map_or(std::ptr::null(), |error| error.kind.as_ptr())
}

/// One line for people: the object and the reason. It belongs to the error, and is valid until that is freed. NULL
/// for NULL.
///
/// # Safety
/// `error` is NULL or an error that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_error_message(error: *const ErrorObject) -> *const c_char {
    // SAFETY: by contract.
    unsafe { error.as_ref() }.map_or(std::ptr::null(), |error| error.message.as_ptr())
}

/// Values a program may want, as a JSON object: `parameter`, `host`, `taskId`, `path`, `offset`, `length`, `errno`.
/// It belongs to the error, and is valid until that is freed. NULL for NULL.
///
/// # Safety
/// `error` is NULL or an error that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_error_details(error: *const ErrorObject) -> *const c_char {
    // SAFETY: by contract.
    unsafe { error.as_ref() }.map_or(std::ptr::null(), |error| error.details.as_ptr())
}

/// Frees an error and the texts that belong to it. NULL: does nothing.
///
/// # Safety
/// `error` is NULL or an error that has not been freed, and nobody uses it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_error_free(error: *mut ErrorObject) {
    if !error.is_null() {
        // SAFETY: it comes from `Box::into_raw` in `ErrorObject::new` and is freed once, by contract.
        quietly(|| drop(unsafe { Box::from_raw(error) }));
    }
}
