//! Verbs that make images. They return once the intent is durable, not when the data is in place.

use std::ffi::{c_char, c_int};

use vdsmstore_core::id::ImageId;
use vdsmstore_core::options::{CopyOptions, CreateOptions, parse};

use crate::error::ErrorObject;
use crate::guard::{Out, guard, json_text, optional_text, text};
use crate::store::StoreObject;
use crate::string::owned;

/// As the size of a new virtual disk: its base's.
pub const VDSMSTORE_SIZE_OF_BASE: i64 = i64::MIN;

fn set_id(out: Out<*mut c_char>, id: ImageId) {
    out.set_text(owned(&id.to_string()));
}

/// A new virtual disk, empty or with the content of a snapshot. Returns once the intent is durable; see
/// `vdsmstore_wait_image`.
///
/// `size`: bytes, a positive multiple of 512; `VDSMSTORE_SIZE_OF_BASE` with a base: the base's.
/// `base_snapshot_id`: NULL: none. `user_data`: any JSON; NULL: `{}`.
/// `options`: `AutoFix`, `strategy`, `participatingRepositories`, `imageHints`, `imageId`, `taskId`, `bandwidth`.
/// `*image_id`: the new id; freed with `vdsmstore_string_free`.
///
/// Errors: InvalidSize, RepositoryNotFound, ImageNotFound, ImageBroken, NotASnapshot, ImageExists, TaskIdInUse,
/// TooManyVolumes.
///
/// # Safety
/// `store` is NULL or a store that has not been freed; the texts are NULL or end with NUL; the out-parameters are NULL
/// or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_create_virtual_disk(
    store: *const StoreObject,
    target_repo_id: *const c_char,
    size: i64,
    base_snapshot_id: *const c_char,
    user_data: *const c_char,
    options: *const c_char,
    image_id: *mut *mut c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, store, repo_id, base, user_data, options) = unsafe {
            (
                Out::new("image_id", image_id)?,
                StoreObject::get(store)?,
                text("targetRepoId", target_repo_id)?,
                optional_text("baseSnapshotId", base_snapshot_id)?,
                json_text("userData", user_data)?,
                json_text("options", options)?,
            )
        };
        let size = (size != VDSMSTORE_SIZE_OF_BASE).then_some(size);
        let options = parse::<CreateOptions>(options)?;
        set_id(out, store.create_virtual_disk(repo_id, size, base, user_data, &options)?);
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// A snapshot of a virtual disk, which keeps its id and goes on. The snapshot's moment is fixed when this returns.
///
/// `user_data`: any JSON; NULL: `{}`. `options`: as for `vdsmstore_create_virtual_disk`.
/// `*image_id`: the snapshot's id; freed with `vdsmstore_string_free`.
///
/// Errors: RepositoryNotFound, ImageNotFound, ImageBroken, ImageInUse, NotADisk, ImageExists, TaskIdInUse,
/// TooManyVolumes.
///
/// # Safety
/// As `vdsmstore_create_virtual_disk`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_create_snapshot(
    store: *const StoreObject,
    target_repo_id: *const c_char,
    base_virtual_disk_id: *const c_char,
    user_data: *const c_char,
    options: *const c_char,
    image_id: *mut *mut c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, store, repo_id, disk, user_data, options) = unsafe {
            (
                Out::new("image_id", image_id)?,
                StoreObject::get(store)?,
                text("targetRepoId", target_repo_id)?,
                text("baseVirtualDiskId", base_virtual_disk_id)?,
                json_text("userData", user_data)?,
                json_text("options", options)?,
            )
        };
        let options = parse::<CreateOptions>(options)?;
        set_id(out, store.create_snapshot(repo_id, disk, user_data, &options)?);
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// A copy of an image in the target repository, whole or as the difference to a base that is there.
///
/// `base_image_id`: NULL: none. `user_data`: any JSON; NULL: `{}`.
/// `options`: as for `vdsmstore_create_virtual_disk`, and `mutable`, `partial`.
/// `*copy_id`: the same id for a snapshot, a new one for a disk; freed with `vdsmstore_string_free`.
///
/// Errors: RepositoryNotFound, ImageNotFound, ImageBroken, ImageInUse, NotASnapshot, ImageExists, TaskIdInUse,
/// TooManyVolumes.
///
/// # Safety
/// As `vdsmstore_create_virtual_disk`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_copy_image(
    store: *const StoreObject,
    target_repo_id: *const c_char,
    image_id: *const c_char,
    base_image_id: *const c_char,
    user_data: *const c_char,
    options: *const c_char,
    copy_id: *mut *mut c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, store, repo_id, image, base, user_data, options) = unsafe {
            (
                Out::new("copy_id", copy_id)?,
                StoreObject::get(store)?,
                text("targetRepoId", target_repo_id)?,
                text("imageId", image_id)?,
                optional_text("baseImageId", base_image_id)?,
                json_text("userData", user_data)?,
                json_text("options", options)?,
            )
        };
        let options = parse::<CopyOptions>(options)?;
        set_id(out, store.copy_image(repo_id, image, base, user_data, &options)?);
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// A new virtual disk with the content of a file, which must stay until the image is no longer broken.
///
/// `path`: absolute. `format`: `"raw"` or `"qcow2"`, never guessed. `user_data`: any JSON; NULL: `{}`.
/// `options`: as for `vdsmstore_create_virtual_disk`.
/// `*image_id`: the new id; freed with `vdsmstore_string_free`.
///
/// Errors: InvalidSize, RepositoryNotFound, CorruptImage, ImageInUse, ImageExists, TaskIdInUse, UnsupportedOperation.
///
/// # Safety
/// As `vdsmstore_create_virtual_disk`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_import_image(
    store: *const StoreObject,
    target_repo_id: *const c_char,
    path: *const c_char,
    format: *const c_char,
    user_data: *const c_char,
    options: *const c_char,
    image_id: *mut *mut c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, store, repo_id, path, format, user_data, options) = unsafe {
            (
                Out::new("image_id", image_id)?,
                StoreObject::get(store)?,
                text("targetRepoId", target_repo_id)?,
                text("path", path)?,
                text("format", format)?,
                json_text("userData", user_data)?,
                json_text("options", options)?,
            )
        };
        let options = parse::<CreateOptions>(options)?;
        set_id(out, store.import_image(repo_id, path, format, user_data, &options)?);
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}
