//! One error type for the crate: a kind to act on, a context to read, and the cause.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

/// What went wrong, as far as a caller would act differently on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file or object does not exist.
    NotFound,
    /// The operating system refused access.
    PermissionDenied,
    /// No space, quota or file size limit left.
    NoSpace,
    /// The device or its file system is read-only.
    ReadOnly,
    /// The file handle is stale, or the lock under it was lost.
    Stale,
    /// Somebody else has the file open or locked.
    Busy,
    /// Any other failure of the device.
    Io,
    /// The device ended before the bytes that were asked for: a file that shrank, or a short read.
    ShortRead,
    /// The image's metadata contradicts its format.
    Corrupt,
    /// A valid image that this release cannot handle.
    Unsupported,
    /// An argument out of range.
    InvalidInput,
    /// The operation was asked to stop.
    Cancelled,
    /// An earlier flush failed on this handle; nothing it says about durability can be believed.
    Poisoned,
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// An error with its context: operation, path, offset and length where they are known.
///
/// `Display` is one line without the cause; [`std::error::Error::source`] has the cause.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    path: Option<PathBuf>,
    offset: Option<u64>,
    length: Option<u64>,
    source: Option<std::io::Error>,
}

impl Error {
    /// A new error of the given kind; `message` says what failed, in lower case and without a full stop.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            path: None,
            offset: None,
            length: None,
            source: None,
        }))
    }

    /// An error of the operating system; the kind follows from its number.
    pub fn os(message: impl Into<Cow<'static, str>>, source: std::io::Error) -> Self {
        let mut error = Self::new(kind_of(&source), message);
        error.0.source = Some(source);
        error
    }

    /// Adds the path, unless one is known already.
    #[must_use]
    pub fn with_path(mut self, path: impl AsRef<Path>) -> Self {
        self.0.path.get_or_insert_with(|| path.as_ref().to_path_buf());
        self
    }

    /// Adds the byte range, unless one is known already.
    #[must_use]
    pub fn with_range(mut self, offset: u64, length: u64) -> Self {
        self.0.offset.get_or_insert(offset);
        self.0.length.get_or_insert(length);
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The path of the file or device, if known.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// The byte offset of the request, if known.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// The length of the request in bytes, if known.
    pub fn length(&self) -> Option<u64> {
        self.0.length
    }

    /// The operating system's error number, if it gave one.
    pub fn errno(&self) -> Option<i32> {
        self.0.source.as_ref().and_then(std::io::Error::raw_os_error)
    }
}

fn kind_of(error: &std::io::Error) -> ErrorKind {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => ErrorKind::NotFound,
        Some(libc::EACCES | libc::EPERM) => ErrorKind::PermissionDenied,
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => ErrorKind::NoSpace,
        Some(libc::EROFS) => ErrorKind::ReadOnly,
        Some(libc::ESTALE) => ErrorKind::Stale,
        Some(libc::EBUSY | libc::ETXTBSY) => ErrorKind::Busy,
        Some(libc::EOPNOTSUPP) => ErrorKind::Unsupported,
        _ if error.kind() == std::io::ErrorKind::UnexpectedEof => ErrorKind::ShortRead,
        _ => ErrorKind::Io,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if let Some(path) = &self.0.path {
            write!(f, ": {}", path.display())?;
        }
        if let (Some(offset), Some(length)) = (self.0.offset, self.0.length) {
            write!(f, " (offset {offset}, length {length})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)?;
        match &self.0.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source as _)
    }
}
