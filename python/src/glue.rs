//! The calls of the C functions: all the unsafe code of the module.

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::{NonNull, null, null_mut};

use vdsmstore as c;

/// An error of the C interface.
pub(crate) struct OwnedError(c_int, NonNull<c::ErrorObject>);

// SAFETY: the object is immutable and owned, and C allows it to be used and freed by any thread.
unsafe impl Send for OwnedError {}

impl OwnedError {
    /// What the function returned.
    pub(crate) fn code(&self) -> c_int {
        self.0
    }

    pub(crate) fn kind(&self) -> &CStr {
        // SAFETY: the error lives, and its texts as long.
        unsafe { CStr::from_ptr(c::vdsmstore_error_kind(self.1.as_ptr())) }
    }

    pub(crate) fn message(&self) -> &CStr {
        // SAFETY: as above.
        unsafe { CStr::from_ptr(c::vdsmstore_error_message(self.1.as_ptr())) }
    }

    pub(crate) fn details(&self) -> &CStr {
        // SAFETY: as above.
        unsafe { CStr::from_ptr(c::vdsmstore_error_details(self.1.as_ptr())) }
    }
}

impl Drop for OwnedError {
    fn drop(&mut self) {
        // SAFETY: owned, so freed once.
        unsafe { c::vdsmstore_error_free(self.1.as_ptr()) }
    }
}

type Failure = Result<(), OwnedError>;
type Text = Result<String, OwnedError>;

/// A call that returns nothing but its error.
fn plain(call: impl FnOnce(*mut *mut c::ErrorObject) -> c_int) -> Failure {
    let mut error = null_mut();
    let code = call(&raw mut error);
    NonNull::new(error).map_or(Ok(()), |error| Err(OwnedError(code, error)))
}

/// A call that returns a text.
fn texting(call: impl FnOnce(*mut *mut c_char, *mut *mut c::ErrorObject) -> c_int) -> Text {
    let mut out = null_mut();
    plain(|error| call(&raw mut out, error))?;
    // SAFETY: on success the text is there, ends with NUL, and is ours to free.
    unsafe {
        let value = CStr::from_ptr(out).to_string_lossy().into_owned();
        c::vdsmstore_string_free(out);
        Ok(value)
    }
}

/// The pointer of an optional text.
fn pointer(text: Option<&CString>) -> *const c_char {
    text.map_or(null(), |text| text.as_ptr())
}

/// An object of the C interface, freed when the Python object is.
struct Handle<T>(NonNull<T>);

// SAFETY: the objects may be used by any thread, and by many at once; freed when no call can use them any more.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Handle<T> {}

impl<T> Handle<T> {
    fn get(&self) -> *const T {
        self.0.as_ptr()
    }
}

/// Calls a verb without the GIL: `verb!(py, kind, function, store, texts...)`. The texts are locals of type CString
/// or `Option<CString>` that outlive the call.
macro_rules! verb {
    ($py:ident, $kind:ident($($out:ident),*), $function:ident, $self:ident, $($argument:expr),*) => {
        enter($py, || {
            // SAFETY: the object lives as long as `self`, the texts are NULL or end with NUL and outlive the call,
            // and the out-parameters are places on the stack of `plain` and `texting`.
            $kind(|$($out),*| unsafe { c::$function($self.0.get(), $($argument,)* $($out),*) })
        })
    };
}

/// Makes C texts of arguments under their own names.
macro_rules! texts {
    ($py:ident, $($name:ident = $label:literal),*) => { $(let $name = text($py, $label, $name)?;)* };
}

mod difference;
mod image;
mod store;

pub(crate) use difference::Difference;
pub(crate) use image::Image;
pub(crate) use store::Store;
