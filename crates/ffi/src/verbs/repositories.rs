//! Repositories: connect, format, list.

use std::ffi::{c_char, c_int};

use serde::Deserialize;
use vdsmstore_core::options::{ForceOptions, FormatOptions, NoOptions, parse, parse_object};

use crate::error::ErrorObject;
use crate::guard::{Out, guard, json_text, text};
use crate::store::StoreObject;
use crate::string::json;

/// Connects a repository under a name of the caller's.
///
/// `repo_id`: the name; never stored. `repo_format`: `name-major.minor`, as `"localfs-1.0"`.
/// `connection_parameters`: JSON object; NULL: `{}`. `options`: none.
///
/// Errors: RepositoryIdInUse, FormatUnsupported, VersionTooNew, WrongFormat, NotARepository, ConnectionFailed.
///
/// # Safety
/// `store` is NULL or a store that has not been freed; the texts are NULL or end with NUL; `error` is NULL or valid
/// for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_connect_storage_repository(
    store: *const StoreObject,
    repo_id: *const c_char,
    repo_format: *const c_char,
    connection_parameters: *const c_char,
    options: *const c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (store, repo_id, format, parameters, options) = unsafe {
            (
                StoreObject::get(store)?,
                text("repoId", repo_id)?,
                text("repoFormat", repo_format)?,
                json_text("connectionParameters", connection_parameters)?,
                json_text("options", options)?,
            )
        };
        parse::<NoOptions>(options)?;
        store.connect_storage_repository(repo_id, format, &parse_object("connectionParameters", parameters)?)
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// Stops what runs on the repository in a resumable state, and lets it go.
///
/// `options`: `force` (also if images are open or prepared here).
///
/// Errors: RepositoryNotFound, ImageInUse, Timeout.
///
/// # Safety
/// As `vdsmstore_connect_storage_repository`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_disconnect_storage_repository(
    store: *const StoreObject,
    repo_id: *const c_char,
    options: *const c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (store, repo_id, options) =
            unsafe { (StoreObject::get(store)?, text("repoId", repo_id)?, json_text("options", options)?) };
        store.disconnect_storage_repository(repo_id, &parse::<ForceOptions>(options)?)
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FormatDict {
    owner: Option<u32>,
    group: Option<u32>,
    mode: Option<u32>,
}

/// Makes an empty repository in an empty place. It is not connected by this.
///
/// `repo_format`, `connection_parameters`: as for connecting. `options`: `owner`, `group` (numeric ids of everything
/// in it), `mode` (permission bits of its directories, as a number).
///
/// Errors: FormatUnsupported, VersionTooNew, ConnectionFailed, RepositoryExists, NotEmpty.
///
/// # Safety
/// As `vdsmstore_connect_storage_repository`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_format_storage_repository(
    store: *const StoreObject,
    repo_format: *const c_char,
    connection_parameters: *const c_char,
    options: *const c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (store, format, parameters, options) = unsafe {
            (
                StoreObject::get(store)?,
                text("repoFormat", repo_format)?,
                json_text("connectionParameters", connection_parameters)?,
                json_text("options", options)?,
            )
        };
        let FormatDict { owner, group, mode } = parse(options)?;
        let parameters = parse_object("connectionParameters", parameters)?;
        store.format_storage_repository(format, &parameters, &FormatOptions { owner, group, mode })
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// The connected repositories in order of connection.
///
/// `options`: none. `*repo_ids`: JSON array of names; freed with `vdsmstore_string_free`.
///
/// Errors: none of its own.
///
/// # Safety
/// As `vdsmstore_connect_storage_repository`; the out-parameter is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_list_storage_repositories(
    store: *const StoreObject,
    options: *const c_char,
    repo_ids: *mut *mut c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, store, options) = unsafe {
            (Out::new("repo_ids", repo_ids)?, StoreObject::get(store)?, json_text("options", options)?)
        };
        parse::<NoOptions>(options)?;
        out.set_text(json(&store.list_storage_repositories()?)?);
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// Space, counts and capabilities of a repository.
///
/// `options`: none. `*info`: JSON object: `repoId`, `format`, `location`, `capacity`, `available`, `virtualDisks`,
/// `snapshots`, `readOnly`, `features`, `capabilities`; freed with `vdsmstore_string_free`.
///
/// Errors: RepositoryNotFound.
///
/// # Safety
/// As `vdsmstore_list_storage_repositories`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_get_storage_repository_info(
    store: *const StoreObject,
    repository_id: *const c_char,
    options: *const c_char,
    info: *mut *mut c_char,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, store, repo_id, options) = unsafe {
            (
                Out::new("info", info)?,
                StoreObject::get(store)?,
                text("repositoryId", repository_id)?,
                json_text("options", options)?,
            )
        };
        parse::<NoOptions>(options)?;
        out.set_text(json(&store.get_storage_repository_info(repo_id)?)?);
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}
