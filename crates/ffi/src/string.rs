//! Texts that go from the library to its caller.

use std::ffi::{CString, c_char};

use serde::Serialize;
use vdsmstore_core::{Error, ErrorKind, Result};

use crate::guard::quietly;

/// A text for the caller, who owns it. A NUL inside, which C could not see past, is replaced.
pub(crate) fn owned(text: &str) -> CString {
    CString::new(text).unwrap_or_else(|_| CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default())
}

/// A value as JSON text.
pub(crate) fn json(value: &impl Serialize) -> Result<CString> {
    serde_json::to_string(value).map(|text| owned(&text)).map_err(|error| {
        Error::new(ErrorKind::Internal, "the result cannot be written as JSON").because(error)
    })
}

/// Frees a string that a function of this library returned in an out-parameter. NULL: does nothing.
///
/// # Safety
/// `string` is NULL or was returned by this library, to be freed, and has not been freed yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_string_free(string: *mut c_char) {
    if !string.is_null() {
        // SAFETY: by contract it comes from `CString::into_raw` in `Out::set_text` and is freed once.
        quietly(|| drop(unsafe { CString::from_raw(string) }));
    }
}
