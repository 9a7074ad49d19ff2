//! `vdsmstore_t`: a set of connections and tasks.

use std::ffi::{c_char, c_int};

use serde::Deserialize;
use vdsmstore_core::options::parse;
use vdsmstore_core::{Error, ErrorKind, Result, Store, StoreOptions};

use crate::error::ErrorObject;
use crate::guard::{Out, guard, invalid, json_text, quietly};

/// A set of connections and tasks. Usable from many threads at once.
pub struct StoreObject {
    store: Store,
    owner: Owner,
}

/// The process that made an object. Its threads and locks do not exist in a forked child.
#[derive(Clone, Copy)]
pub(crate) struct Owner(u32);

impl Owner {
    pub(crate) fn this_process() -> Self {
        Self(std::process::id())
    }

    pub(crate) fn is_this_process(self) -> bool {
        self.0 == std::process::id()
    }

    pub(crate) fn check(self) -> Result<()> {
        if self.is_this_process() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::ForkedProcess,
            "the store belongs to the parent process; open another here",
        )
        .with("pid", self.0))
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct OpenOptions {
    host_id: Option<String>,
    threads: Option<u32>,
    memory: Option<u64>,
}

impl StoreObject {
    /// The store behind a handle, if this process may use it.
    ///
    /// # Safety
    /// `store` is NULL or a store that has not been freed, and is not freed during `'a`.
    pub(crate) unsafe fn get<'a>(store: *const Self) -> Result<&'a Store> {
        // SAFETY: by contract.
        let object = unsafe { store.as_ref() }.ok_or_else(|| invalid("store", "is NULL"))?;
        object.owner.check()?;
        Ok(&object.store)
    }
}

/// Opens a store with nothing connected.
///
/// `options`: `hostId` (a label for this host; default: the machine's name), `threads` (how many jobs run at once;
/// default 2), `memory` (budget for caches in bytes).
/// `*store`: owned by the caller: `vdsmstore_close`, then `vdsmstore_free`.
///
/// Errors: InvalidParameter.
///
/// # Safety
/// The texts are NULL or end with NUL; the out-parameters are NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_open(
    options: *const c_char,
    store: *mut *mut StoreObject,
    error: *mut *mut ErrorObject,
) -> c_int {
    let body = || {
        // SAFETY: by contract.
        let (out, options) = unsafe { (Out::new("store", store)?, json_text("options", options)?) };
        let given: OpenOptions = parse(options)?;
        let mut options = StoreOptions::default();
        options.host_id = given.host_id;
        options.threads = given.threads;
        options.memory = given.memory;
        let object = StoreObject { store: Store::new(options)?, owner: Owner::this_process() };
        out.set(Box::into_raw(Box::new(object)));
        Ok(())
    };
    // SAFETY: by contract.
    unsafe { guard(error, body) }
}

/// Stops what runs here in a resumable state within two seconds, frees what is leased, disconnects. Other calls then
/// fail with Closed. May be called again, and while other threads are in calls.
///
/// Errors: ForkedProcess, IoError.
///
/// # Safety
/// `store` is NULL or a store that has not been freed; `error` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_close(store: *const StoreObject, error: *mut *mut ErrorObject) -> c_int {
    // SAFETY: by contract.
    unsafe { guard(error, || StoreObject::get(store)?.close()) }
}

/// Frees a store, and closes it first if that has not been done; images opened by it must be freed by themselves.
/// NULL: does nothing. In a forked child it leaves the parent's work alone.
///
/// # Safety
/// `store` is NULL or a store that has not been freed, and no thread uses it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdsmstore_free(store: *mut StoreObject) {
    if store.is_null() {
        return;
    }
    quietly(|| {
        // SAFETY: it comes from `Box::into_raw` in `vdsmstore_open` and is freed once, by contract.
        let object = unsafe { Box::from_raw(store) };
        if object.owner.is_this_process() {
            // Nobody is left to be told.
            let _ = object.store.close();
        } else {
            // Its threads are not here to be joined, and its locks are the parent's to release.
            std::mem::forget(object);
        }
    });
}
