//! `vdsmstore_difference_t`: what differs between two images, piece by piece.

use std::ffi::{c_char, c_int};
use std::sync::{Mutex, PoisonError};

use vdsmstore_core::options::{NoOptions, parse};
use vdsmstore_core::{Difference, Image};

use crate::error::ErrorObject;
use crate::guard::{Out, guard, invalid, json_text, optional_text, quietly, text};
use crate::store::{Owner, StoreObject};
use crate::string::json;

/// A comparison of two images, which are open for reading meanwhile. Usable from many threads at once: each piece goes
/// to one of them.
pub struct DifferenceObject {
    difference: Mutex<Difference>,
    /// The images: the store counts them as open, and closes them when it is closed.
    open: Vec<Image>,
    owner: Owner,
}

/// Compares an image with another one of its repository, or tells what an image without one has.
///
/// Both are open for reading until the difference is freed.
///
/// `base_image_id`: NULL: none. `options`: none.
/// `*difference`: owned by the caller: `vdsmstore_difference_next`, then `vdsmstore_difference_free`.
///
/// Errors: RepositoryNotFound, ImageNotFound, ImageBroken, ImageInUse, CorruptImage.
///
/// # Safety
/// `store` is NULL or a store that has not been freed; the texts are NULL or end with NUL; the out-parameters are NULL
/// or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_diff_images(
    store: *const StoreObject,
    repository_id: *const c_char,
    image_id: *const c_char,
    base_image_id: *const c_char,
    options: *const c_char,
    difference: *mut *mut DifferenceObject,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, store, repo_id, image, base, options) = unsafe {
            (
                Out::new("difference", difference)?,
                StoreObject::get(store)?,
                text("repositoryId", repository_id)?,
                text("imageId", image_id)?,
                optional_text("baseImageId", base_image_id)?,
                json_text("options", options)?,
            )
        };
        parse::<NoOptions>(options)?;
        let open = [Some(image), base].into_iter().flatten();
        let open = open.map(|id| store.open_image(repo_id, id, false)).collect::<Result<_, _>>()?;
        let difference = Mutex::new(store.diff_images(repo_id, image, base)?);
        out.set(Box::into_raw(Box::new(DifferenceObject { difference, open, owner: Owner::this_process() })));
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// The next pieces, at most `max`, in order; adjacent pieces of one kind are merged.
///
/// `*extents`: JSON array of objects: `offset`, `length`, `kind` (`"data"`, `"zero"`: how the image reads there); empty
/// at the end; freed with `vdsmstore_string_free`.
///
/// Errors: InvalidParameter, Closed (the store was closed), ForkedProcess, CorruptImage, IoError.
///
/// # Safety
/// `difference` is NULL or a difference that has not been freed; the out-parameters are NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_difference_next(
    difference: *const DifferenceObject,
    max: usize,
    extents: *mut *mut c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, object) = unsafe { (Out::new("extents", extents)?, difference.as_ref()) };
        let object = object.ok_or_else(|| invalid("difference", "is NULL"))?;
        object.owner.check()?;
        if max == 0 {
            return Err(invalid("max", "is 0"));
        }
        for image in &object.open {
            image.size()?;
        }
        let mut difference = object.difference.lock().unwrap_or_else(PoisonError::into_inner);
        out.set_text(json(&difference.next_batch(max)?)?);
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// Frees a difference, and closes its images. NULL: does nothing. In a forked child it leaves the parent's alone.
///
/// # Safety
/// `difference` is NULL or a difference that has not been freed, and no thread uses it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_difference_free(difference: *mut DifferenceObject) {
    if difference.is_null() {
        return;
    }
    quietly(|| {
        // SAFETY: it comes from `Box::into_raw` in `vdsmstore_diff_images` and is freed once, by contract.
        let object = unsafe { Box::from_raw(difference) };
        if object.owner.is_this_process() {
            for image in &object.open {
                // Nothing was written.
                let _ = image.close();
            }
        } else {
            // The locks are the parent's.
            std::mem::forget(object);
        }
    });
}
