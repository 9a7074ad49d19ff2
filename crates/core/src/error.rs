//! The error of the public API: a kind with VDSM's code, a message that names the object, and details.

use std::fmt;

use serde_json::{Map, Value};

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// What kind of error it is. Each has a stable code: VDSM's where VDSM has one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorKind { $($(#[$doc])* $name,)* }

        impl ErrorKind {
            /// All kinds, in the order of the API's table.
            pub const ALL: &'static [ErrorKind] = &[$(ErrorKind::$name,)*];

            /// The numeric code.
            pub const fn code(self) -> i32 {
                match self { $(Self::$name => $code,)* }
            }

            /// The name, as the Python class is called.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
        }
    };
}

kinds! {
    /// An argument or option is unknown, malformed or out of range.
    InvalidParameter = 1000,
    /// No repository is connected under that name.
    RepositoryNotFound = 358,
    /// The name is taken by a connected repository.
    RepositoryIdInUse = 478,
    /// The place already holds a repository.
    RepositoryExists = 365,
    /// The place to format is not empty.
    NotEmpty = 361,
    /// The place holds no repository.
    NotARepository = 364,
    /// The repository has another format than the one named.
    WrongFormat = 372,
    /// No driver for that format.
    FormatUnsupported = 394,
    /// The repository was written by a newer release, or has features that this one does not know.
    VersionTooNew = 395,
    /// The place cannot be reached.
    ConnectionFailed = 451,
    /// The mount failed.
    MountFailed = 477,
    /// The repository can only be read.
    ReadOnlyRepository = 4506,
    /// No such image.
    ImageNotFound = 268,
    /// The chosen image id is taken by another image.
    ImageExists = 212,
    /// The image is open, prepared or being worked on; details: `host`, `taskId`.
    ImageInUse = 203,
    /// The image cannot be used now.
    ImageBroken = 227,
    /// The image is a snapshot where a virtual disk is needed.
    NotADisk = 4502,
    /// The image is a virtual disk where a snapshot is needed.
    NotASnapshot = 4503,
    /// The image or the handle does not allow writing.
    ReadOnlyImage = 219,
    /// The size is not possible.
    InvalidSize = 232,
    /// What was read back differs from what was written.
    VerificationFailed = 484,
    /// The image file contradicts its format. It shares the code of `VerificationFailed`.
    CorruptImage = 484,
    /// A record cannot be understood.
    CorruptRecord = 752,
    /// No space left.
    NoSpace = 397,
    /// The storage failed; details: `path`, `offset`, `length`, `errno`.
    IoError = 4501,
    /// The operating system refused access.
    PermissionDenied = 385,
    /// A file handle went stale.
    StaleHandle = 384,
    /// The lease on the image was lost.
    LeaseLost = 4505,
    /// A lock could not be taken.
    CannotLock = 651,
    /// Somebody else changed the record first.
    Conflict = 911,
    /// The fix is not one that a check would list now.
    FixRefused = 4504,
    /// The chain or the repository has too many volumes.
    TooManyVolumes = 613,
    /// The work was stopped; it can be resumed.
    Stopped = 443,
    /// The time given was not enough.
    Timeout = 851,
    /// No such task, or its result is no longer kept.
    TaskNotFound = 401,
    /// A running task has that name.
    TaskIdInUse = 406,
    /// Not built, or not possible with this format.
    UnsupportedOperation = 2009,
    /// The store or image handle is closed.
    Closed = 4507,
    /// The store belongs to the parent process.
    ForkedProcess = 4508,
    /// A bug of ours.
    Internal = 100,
}

/// The result of the public API.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the public API.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    details: Map<String, Value>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A new error; the message names the object and the reason.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), details: Map::new(), source: None }))
    }

    /// Adds a detail.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.details.insert(key.to_owned(), value.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Puts what was being done, or with which object, before the message.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.0.message = format!("{what}: {}", self.0.message);
        self
    }

    /// The same error once more, without the cause: for everybody who waits for one task.
    pub(crate) fn again(&self) -> Self {
        let mut copy = Self::new(self.0.kind, self.0.message.clone());
        copy.0.details.clone_from(&self.0.details);
        copy
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether a record cannot be understood: its image is broken, other images are not.
    pub(crate) fn is_bad_record(&self) -> bool {
        matches!(self.0.kind, ErrorKind::CorruptRecord | ErrorKind::VersionTooNew)
    }

    /// One line: the object and the reason, without the cause.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Values a program may want: `host`, `taskId`, `path`, `offset`, `length`, `errno`, ...
    pub fn details(&self) -> &Map<String, Value> {
        &self.0.details
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.0.kind.name(), self.0.kind.code(), self.0.message)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source:?}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

impl From<vdsmstore_io::Error> for Error {
    fn from(error: vdsmstore_io::Error) -> Self {
        use vdsmstore_io::ErrorKind as Io;
        let kind = match error.kind() {
            Io::PermissionDenied => ErrorKind::PermissionDenied,
            Io::NoSpace => ErrorKind::NoSpace,
            Io::ReadOnly => ErrorKind::ReadOnlyRepository,
            Io::Stale => ErrorKind::StaleHandle,
            Io::Busy => ErrorKind::ImageInUse,
            Io::Corrupt => ErrorKind::CorruptImage,
            Io::Unsupported => ErrorKind::UnsupportedOperation,
            Io::InvalidInput => ErrorKind::InvalidParameter,
            Io::Cancelled => ErrorKind::Stopped,
            _ => ErrorKind::IoError,
        };
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        let mut new = Self::new(kind, format!("{error}{cause}"));
        if let Some(path) = error.path() {
            new = new.with("path", path.to_string_lossy());
        }
        if let (Some(offset), Some(length)) = (error.offset(), error.length()) {
            new = new.with("offset", offset).with("length", length);
        }
        if let Some(errno) = error.errno() {
            new = new.with("errno", errno);
        }
        new.because(error)
    }
}
