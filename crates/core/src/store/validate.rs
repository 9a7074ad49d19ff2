//! What callers give, judged before anything is done.

use serde::de::IgnoredAny;

use crate::record::{MAX_SIZE, SECTOR};
use crate::{Error, ErrorKind, Result};

/// The longest user data in bytes.
const MAX_USER_DATA: usize = 1 << 20;
/// The longest name of a repository or host in bytes.
const MAX_NAME: usize = 255;

fn invalid(parameter: &str, message: String) -> Error {
    Error::new(ErrorKind::InvalidParameter, message).with("parameter", parameter)
}

fn name(parameter: &str, what: &str, text: &str) -> Result<()> {
    if text.is_empty() || text.len() > MAX_NAME || text.chars().any(char::is_control) {
        return Err(invalid(
            parameter,
            format!("{what} {text:?} is not 1 to {MAX_NAME} bytes without control characters"),
        ));
    }
    Ok(())
}

/// A caller's name for a repository.
pub(super) fn repo_id(text: &str) -> Result<()> {
    name("repoId", "repository name", text)
}

/// A label for a host.
pub(super) fn host_id(text: String) -> Result<String> {
    name("hostId", "host id", &text).map(|()| text)
}

/// The caller's JSON.
pub(super) fn user_data(text: &str) -> Result<()> {
    if text.len() > MAX_USER_DATA {
        return Err(invalid(
            "userData",
            format!("user data of {} bytes is longer than {MAX_USER_DATA}", text.len()),
        ));
    }
    serde_json::from_str::<IgnoredAny>(text)
        .map(drop)
        .map_err(|error| invalid("userData", format!("user data is no JSON: {error}")))
}

/// The size of a new image.
pub(super) fn size(size: i64) -> Result<u64> {
    match u64::try_from(size) {
        Ok(size) if crate::record::valid_size(size) => Ok(size),
        _ => {
            let message = format!("size {size} is not a positive multiple of {SECTOR} up to {MAX_SIZE}");
            Err(Error::new(ErrorKind::InvalidSize, message).with("parameter", "size"))
        }
    }
}

/// A short text that two calls share only if they asked for the same.
pub(super) fn request(verb: &str, arguments: &[&str]) -> String {
    format!("{verb} {:016x}", crate::checksum(arguments))
}
