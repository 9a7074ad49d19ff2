//! Which release this is.

use std::ffi::c_char;

/// The release that this header belongs to; compare with `vdsmstore_version()`.
pub const VDSMSTORE_VERSION_MAJOR: i32 = 0;
/// See `VDSMSTORE_VERSION_MAJOR`.
pub const VDSMSTORE_VERSION_MINOR: i32 = 1;
/// See `VDSMSTORE_VERSION_MAJOR`.
pub const VDSMSTORE_VERSION_PATCH: i32 = 0;

/// The release of the library that is loaded, as `"0.1.0"`. The text is static: do not free it.
#[unsafe(no_mangle)]
pub extern "C" fn vdsmstore_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The same as one number: major * 1000000 + minor * 1000 + patch.
#[unsafe(no_mangle)]
pub extern "C" fn vdsmstore_version_number() -> i32 {
    VDSMSTORE_VERSION_MAJOR * 1_000_000 + VDSMSTORE_VERSION_MINOR * 1_000 + VDSMSTORE_VERSION_PATCH
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    #[test]
    fn the_macros_are_cargos_version() {
        let text = format!("{VDSMSTORE_VERSION_MAJOR}.{VDSMSTORE_VERSION_MINOR}.{VDSMSTORE_VERSION_PATCH}");
        assert_eq!(text, env!("CARGO_PKG_VERSION"));
        // SAFETY: the function returns a static text that ends with NUL.
        let loaded = unsafe { CStr::from_ptr(vdsmstore_version()) };
        assert_eq!(loaded.to_str(), Ok(env!("CARGO_PKG_VERSION")));
        assert_eq!(vdsmstore_version_number(), 1_000);
    }
}
