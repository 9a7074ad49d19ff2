//! What every function does at the boundary: NULL, UTF-8, out-parameters, panics, the error object.

use std::any::Any;
use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::time::Duration;

use vdsmstore_core::{Error, ErrorKind, Result};

use crate::error::ErrorObject;

/// Runs the body of a function. Its error, or its panic, becomes the return code and the error object.
///
/// # Safety
/// `error` is NULL or valid for writing a pointer.
pub(crate) unsafe fn guard(error: *mut *mut ErrorObject, body: impl FnOnce() -> Result<()>) -> c_int {
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(panicked(panic)));
    let (code, object) = match result {
        Ok(()) => (0, std::ptr::null_mut()),
        Err(failure) => {
            let code = -failure.kind().code();
            let object = if error.is_null() { std::ptr::null_mut() } else { ErrorObject::new(&failure) };
            (code, object)
        }
    };
    if !error.is_null() {
        // SAFETY: not NULL, so valid for writing by contract.
        unsafe { error.write(object) };
    }
    code
}

/// Runs a body that cannot report: a panic is swallowed.
pub(crate) fn quietly(body: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
        std::mem::forget(panic);
    }
}

fn panicked(panic: Box<dyn Any + Send>) -> Error {
    let reason = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    // The payload is the panicking code's own type, whose destructor could panic again.
    std::mem::forget(panic);
    Error::new(ErrorKind::Internal, format!("a bug in vdsmstore: {reason}"))
}

/// An `InvalidParameter` error.
pub(crate) fn invalid(parameter: &str, reason: &str) -> Error {
    Error::new(ErrorKind::InvalidParameter, format!("{parameter}: {reason}")).with("parameter", parameter)
}

/// A text that must be given.
///
/// # Safety
/// `text` is NULL or points to a text that ends with NUL and stays unchanged for `'a`.
pub(crate) unsafe fn text<'a>(name: &str, text: *const c_char) -> Result<&'a str> {
    // SAFETY: by contract.
    unsafe { optional_text(name, text) }?.ok_or_else(|| invalid(name, "is NULL"))
}

/// A text that may be NULL.
///
/// # Safety
/// As [`text`].
pub(crate) unsafe fn optional_text<'a>(name: &str, text: *const c_char) -> Result<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: not NULL, so it ends with NUL and lives long enough by contract.
    let bytes = unsafe { CStr::from_ptr(text) };
    bytes.to_str().map(Some).map_err(|_| invalid(name, "is not UTF-8"))
}

/// JSON text; NULL is `{}`.
///
/// # Safety
/// As [`text`].
pub(crate) unsafe fn json_text<'a>(name: &str, text: *const c_char) -> Result<&'a str> {
    // SAFETY: by contract.
    Ok(unsafe { optional_text(name, text) }?.unwrap_or("{}"))
}

/// A time-out in seconds; negative or infinite: none.
pub(crate) fn duration(seconds: f64) -> Result<Option<Duration>> {
    if seconds.is_nan() {
        return Err(invalid("timeout", "is not a number"));
    }
    // What does not fit is longer than anybody waits.
    Ok(if seconds < 0.0 { None } else { Duration::try_from_secs_f64(seconds).ok() })
}

/// An out-parameter, checked before any work is done and written only on success.
pub(crate) struct Out<T>(NonNull<T>);

impl<T> Out<T> {
    /// Checks that there is a place for the result.
    ///
    /// # Safety
    /// `place` is NULL or valid for writing a `T` while the result lives.
    pub(crate) unsafe fn new(name: &str, place: *mut T) -> Result<Self> {
        NonNull::new(place).map(Self).ok_or_else(|| invalid(name, "is NULL"))
    }

    /// Writes the result.
    pub(crate) fn set(self, value: T) {
        // SAFETY: valid for writing by the contract of `new`.
        unsafe { self.0.write(value) }
    }
}

impl Out<*mut c_char> {
    /// Writes a text, which the caller frees with `vdsmstore_string_free`.
    pub(crate) fn set_text(self, text: CString) {
        self.set(text.into_raw());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_internal_error() {
        let mut error = std::ptr::null_mut();
        // SAFETY: the place is valid.
        let code = unsafe { guard(&raw mut error, || panic!("oh {}", "no")) };
        assert_eq!(code, -100);
        // SAFETY: `error` was just written, and is freed once.
        unsafe {
            let message = CStr::from_ptr(crate::vdsmstore_error_message(error));
            assert_eq!(message.to_str(), Ok("a bug in vdsmstore: oh no"));
            crate::vdsmstore_error_free(error);
        }
    }

    #[test]
    fn a_payload_that_panics_when_dropped_is_harmless() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        // SAFETY: NULL is allowed.
        let code = unsafe { guard(std::ptr::null_mut(), || std::panic::panic_any(Bomb)) };
        assert_eq!(code, -100);
        quietly(|| std::panic::panic_any(Bomb));
    }

    #[test]
    fn durations() {
        assert_eq!(duration(-1.0).unwrap(), None);
        assert_eq!(duration(f64::INFINITY).unwrap(), None);
        assert_eq!(duration(1e300).unwrap(), None);
        assert_eq!(duration(0.0).unwrap(), Some(Duration::ZERO));
        assert_eq!(duration(1.5).unwrap(), Some(Duration::from_millis(1500)));
        assert_eq!(duration(f64::NAN).unwrap_err().kind(), ErrorKind::InvalidParameter);
    }
}
