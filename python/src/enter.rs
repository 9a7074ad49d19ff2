//! The way into the engine that every method takes: without the GIL, polled for Ctrl-C, errors mapped.

use std::ffi::{CStr, CString, c_int};
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use crate::glue::OwnedError;

/// How long a call that waits may keep Ctrl-C waiting.
const SLICE: Duration = Duration::from_millis(100);

/// `VDSMSTORE_ERROR_TIMEOUT`, as functions return it.
const TIMED_OUT: c_int = -vdsmstore::VDSMSTORE_ERROR_TIMEOUT;

/// A text argument for C.
pub(crate) fn text(py: Python<'_>, name: &str, value: &str) -> PyResult<CString> {
    CString::new(value).map_err(|_| {
        let message = format!("{name}: has a NUL character inside");
        raise(py, "InvalidParameter", vdsmstore::VDSMSTORE_ERROR_INVALID_PARAMETER, &message, "{}")
    })
}

/// An optional text argument for C.
pub(crate) fn optional(py: Python<'_>, name: &str, value: Option<&str>) -> PyResult<Option<CString>> {
    value.map(|value| text(py, name, value)).transpose()
}

/// Runs a call without the GIL; its error becomes the exception of its kind.
pub(crate) fn enter<T: Send>(
    py: Python<'_>,
    call: impl FnOnce() -> Result<T, OwnedError> + Send,
) -> PyResult<T> {
    py.detach(call).map_err(|error| exception(py, &error))
}

/// Runs a call that waits for at most so many seconds (negative: for ever), in slices, so that Ctrl-C works.
pub(crate) fn enter_waiting<T: Send>(
    py: Python<'_>,
    seconds: f64,
    call: impl Fn(f64) -> Result<T, OwnedError> + Send + Sync,
) -> PyResult<T> {
    // What does not fit is longer than anybody waits; not-a-number goes through, to be refused.
    let deadline =
        Duration::try_from_secs_f64(seconds).ok().and_then(|whole| Instant::now().checked_add(whole));
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let slice = left.map_or(SLICE, |left| left.min(SLICE));
        let last = left.is_some_and(|left| left <= SLICE);
        let argument = if seconds.is_nan() { seconds } else { slice.as_secs_f64() };
        let started = Instant::now();
        match py.detach(|| call(argument)) {
            // Sooner than the slice, it is what the awaited task failed with.
            Err(error) if error.code() == TIMED_OUT && !last && started.elapsed() >= slice => {
                py.check_signals()?;
            }
            Err(error) => return Err(exception(py, &error)),
            Ok(value) => return Ok(value),
        }
    }
}

fn exception(py: Python<'_>, error: &OwnedError) -> PyErr {
    let lossy = |text: &CStr| text.to_string_lossy().into_owned();
    let (kind, message, details) = (lossy(error.kind()), lossy(error.message()), lossy(error.details()));
    raise(py, &kind, -error.code(), &message, &details)
}

/// The exception is made in Python, where the classes are.
fn raise(py: Python<'_>, kind: &str, code: c_int, message: &str, details: &str) -> PyErr {
    let make = || py.import("vdsmstore.errors")?.getattr("from_kind")?.call1((kind, code, message, details));
    make().map_or_else(|error| error, PyErr::from_value)
}
