//! `vdsmstore_image_t`: an image open for I/O in this process.

use std::ffi::{c_char, c_int, c_void};

use vdsmstore_core::options::{NoOptions, parse};
use vdsmstore_core::{Image, Result};

use crate::error::ErrorObject;
use crate::guard::{Out, guard, invalid, json_text, quietly, text};
use crate::store::{Owner, StoreObject};
use crate::string::json;

/// An image open for I/O. Usable from many threads at once.
pub struct ImageObject {
    image: Image,
    owner: Owner,
}

impl ImageObject {
    /// # Safety
    /// `image` is NULL or an image that has not been freed, and is not freed during `'a`.
    unsafe fn get<'a>(image: *const Self) -> Result<&'a Image> {
        // SAFETY: by contract.
        let object = unsafe { image.as_ref() }.ok_or_else(|| invalid("image", "is NULL"))?;
        object.owner.check()?;
        Ok(&object.image)
    }
}

/// The length of a buffer, if there can be a buffer of that length.
fn buffer_length(buffer: *const c_void, length: usize) -> Result<usize> {
    if buffer.is_null() && length > 0 {
        return Err(invalid("buffer", "is NULL"));
    }
    if isize::try_from(length).is_err() {
        return Err(invalid("length", "is more than there can be memory"));
    }
    Ok(length)
}

/// Opens an image for I/O in this process. Opening for writing leases it: nobody else may open or prepare it.
///
/// `mode`: `"r"`, or `"rw"` (virtual disks only); NULL: `"r"`. `options`: none.
/// `*image`: owned by the caller: `vdsmstore_image_close`, then `vdsmstore_image_free`.
///
/// Errors: RepositoryNotFound, ImageNotFound, ImageBroken, ImageInUse, ReadOnlyImage, CorruptImage.
///
/// # Safety
/// `store` is NULL or a store that has not been freed; the texts are NULL or end with NUL; the out-parameters are NULL
/// or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_open_image(
    store: *const StoreObject,
    repository_id: *const c_char,
    image_id: *const c_char,
    mode: *const c_char,
    options: *const c_char,
    image: *mut *mut ImageObject,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, store, repo_id, id, mode, options) = unsafe {
            (
                Out::new("image", image)?,
                StoreObject::get(store)?,
                text("repositoryId", repository_id)?,
                text("imageId", image_id)?,
                if mode.is_null() { "r" } else { text("mode", mode)? },
                json_text("options", options)?,
            )
        };
        parse::<NoOptions>(options)?;
        let writable = match mode {
            "r" => false,
            "rw" => true,
            other => return Err(invalid("mode", &format!("is \"r\" or \"rw\", not {other:?}"))),
        };
        let image = store.open_image(repo_id, id, writable)?;
        out.set(Box::into_raw(Box::new(ImageObject { image, owner: Owner::this_process() })));
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// Reads `length` bytes at `offset` into `buffer`: all of them, or it fails.
///
/// Errors: InvalidParameter (outside of the image), Closed, ForkedProcess, LeaseLost, CorruptImage, IoError.
///
/// # Safety
/// `image` is NULL or an image that has not been freed; `buffer` is valid for writing `length` bytes, and nobody else
/// uses it meanwhile; `error` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_image_read(
    image: *const ImageObject,
    offset: i64,
    buffer: *mut c_void,
    length: usize,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let image = unsafe { ImageObject::get(image)? };
        let length = buffer_length(buffer, length)?;
        let bytes = if length == 0 {
            &mut []
        } else {
            // SAFETY: not NULL, `length` bytes, fits isize, exclusively ours, by contract.
            unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) }
        };
        image.read(offset, bytes)
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// Writes `length` bytes at `offset`. Durable after `vdsmstore_image_flush`.
///
/// Errors: InvalidParameter (outside of the image), ReadOnlyImage, Closed, ForkedProcess, LeaseLost, NoSpace, IoError.
///
/// # Safety
/// As `vdsmstore_image_read`, but that `buffer` is only read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_image_write(
    image: *const ImageObject,
    offset: i64,
    buffer: *const c_void,
    length: usize,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let image = unsafe { ImageObject::get(image)? };
        let length = buffer_length(buffer, length)?;
        let bytes = if length == 0 {
            &[]
        } else {
            // SAFETY: not NULL, `length` bytes, fits isize, unchanged meanwhile, by contract.
            unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), length) }
        };
        image.write(offset, bytes)
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// Makes a range read as zeroes.
///
/// Errors: as `vdsmstore_image_write`.
///
/// # Safety
/// `image` is NULL or an image that has not been freed; `error` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_image_write_zeroes(
    image: *const ImageObject,
    offset: i64,
    length: i64,
    error: *mut *mut ErrorObject,
) -> c_int {
    // SAFETY: by contract.
    unsafe { guard(error, || ImageObject::get(image)?.write_zeroes(offset, length)) }
}

/// Makes a range read as zeroes, and gives its space back where that is possible.
///
/// Errors: as `vdsmstore_image_write`.
///
/// # Safety
/// As `vdsmstore_image_write_zeroes`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_image_discard(
    image: *const ImageObject,
    offset: i64,
    length: i64,
    error: *mut *mut ErrorObject,
) -> c_int {
    // SAFETY: by contract.
    unsafe { guard(error, || ImageObject::get(image)?.discard(offset, length)) }
}

/// Everything written before is durable after.
///
/// Errors: Closed, ForkedProcess, LeaseLost, NoSpace, IoError.
///
/// # Safety
/// As `vdsmstore_image_write_zeroes`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_image_flush(
    image: *const ImageObject,
    error: *mut *mut ErrorObject,
) -> c_int {
    // SAFETY: by contract.
    unsafe { guard(error, || ImageObject::get(image)?.flush()) }
}

/// The virtual size in bytes.
///
/// Errors: InvalidParameter, Closed, ForkedProcess.
///
/// # Safety
/// As `vdsmstore_image_write_zeroes`; `size` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_image_size(
    image: *const ImageObject,
    size: *mut u64,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, image) = unsafe { (Out::new("size", size)?, ImageObject::get(image)?) };
        out.set(image.size()?);
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// At most `max` extents from `offset` on; adjacent runs of one kind are merged. Go on at the end of the last one.
///
/// `*extents`: JSON array of objects: `offset`, `length`, `kind` (`"data"`, `"zero"`, `"hole"`); empty at the end of
/// the image; freed with `vdsmstore_string_free`.
///
/// Errors: InvalidParameter, Closed, ForkedProcess, CorruptImage, IoError.
///
/// # Safety
/// As `vdsmstore_image_size`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_image_extents(
    image: *const ImageObject,
    offset: i64,
    max: usize,
    extents: *mut *mut c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, image) = unsafe { (Out::new("extents", extents)?, ImageObject::get(image)?) };
        if max == 0 {
            return Err(invalid("max", "is 0"));
        }
        out.set_text(json(&image.extents(offset, max)?)?);
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// Flushes and releases the image. Other calls then fail with Closed. May be called again, and while other threads are
/// in calls.
///
/// Errors: ForkedProcess, NoSpace, IoError: the image is closed nevertheless, but what was written may be lost.
///
/// # Safety
/// As `vdsmstore_image_write_zeroes`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_image_close(
    image: *const ImageObject,
    error: *mut *mut ErrorObject,
) -> c_int {
    // SAFETY: by contract.
    unsafe { guard(error, || ImageObject::get(image)?.close()) }
}

/// Frees an image, and closes it first if that has not been done. NULL: does nothing. In a forked child it leaves the
/// parent's image alone.
///
/// # Safety
/// `image` is NULL or an image that has not been freed, and no thread uses it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_image_free(image: *mut ImageObject) {
    if image.is_null() {
        return;
    }
    quietly(|| {
        // SAFETY: it comes from `Box::into_raw` in `vdsmstore_open_image` and is freed once, by contract.
        let object = unsafe { Box::from_raw(image) };
        if object.owner.is_this_process() {
            // Nobody is left to be told.
            let _ = object.image.close();
        } else {
            // The lease and what is not flushed yet are the parent's.
            std::mem::forget(object);
        }
    });
}
