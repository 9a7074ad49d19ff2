//! The codes of the errors; a test compares them with the kinds of the engine.

/// An argument or option is unknown, malformed or out of range.
pub const VDSMSTORE_ERROR_INVALID_PARAMETER: i32 = 1000;
/// No repository is connected under that name.
pub const VDSMSTORE_ERROR_REPOSITORY_NOT_FOUND: i32 = 358;
/// The name is taken by a connected repository.
pub const VDSMSTORE_ERROR_REPOSITORY_ID_IN_USE: i32 = 478;
/// The place already holds a repository.
pub const VDSMSTORE_ERROR_REPOSITORY_EXISTS: i32 = 365;
/// The place to format is not empty.
pub const VDSMSTORE_ERROR_NOT_EMPTY: i32 = 361;
/// The place holds no repository.
pub const VDSMSTORE_ERROR_NOT_A_REPOSITORY: i32 = 364;
/// The repository has another format than the one named.
pub const VDSMSTORE_ERROR_WRONG_FORMAT: i32 = 372;
/// No driver for that format.
pub const VDSMSTORE_ERROR_FORMAT_UNSUPPORTED: i32 = 394;
/// The repository was written by a newer release, or has features that this one does not know.
pub const VDSMSTORE_ERROR_VERSION_TOO_NEW: i32 = 395;
/// The place cannot be reached.
pub const VDSMSTORE_ERROR_CONNECTION_FAILED: i32 = 451;
/// The mount failed.
pub const VDSMSTORE_ERROR_MOUNT_FAILED: i32 = 477;
/// The repository can only be read.
pub const VDSMSTORE_ERROR_READ_ONLY_REPOSITORY: i32 = 4506;
/// No such image.
pub const VDSMSTORE_ERROR_IMAGE_NOT_FOUND: i32 = 268;
/// The chosen image id is taken by another image.
pub const VDSMSTORE_ERROR_IMAGE_EXISTS: i32 = 212;
/// The image is open, prepared or being worked on; details: `host`, `taskId`.
pub const VDSMSTORE_ERROR_IMAGE_IN_USE: i32 = 203;
/// The image cannot be used now.
pub const VDSMSTORE_ERROR_IMAGE_BROKEN: i32 = 227;
/// The image is a snapshot where a virtual disk is needed.
pub const VDSMSTORE_ERROR_NOT_A_DISK: i32 = 4502;
/// The image is a virtual disk where a snapshot is needed.
pub const VDSMSTORE_ERROR_NOT_A_SNAPSHOT: i32 = 4503;
/// The image or the handle does not allow writing.
pub const VDSMSTORE_ERROR_READ_ONLY_IMAGE: i32 = 219;
/// The size is not possible.
pub const VDSMSTORE_ERROR_INVALID_SIZE: i32 = 232;
/// What was read back differs from what was written.
pub const VDSMSTORE_ERROR_VERIFICATION_FAILED: i32 = 484;
/// The image file contradicts its format. It shares the code of `VerificationFailed`.
pub const VDSMSTORE_ERROR_CORRUPT_IMAGE: i32 = 484;
/// A record cannot be understood.
pub const VDSMSTORE_ERROR_CORRUPT_RECORD: i32 = 752;
/// No space left.
pub const VDSMSTORE_ERROR_NO_SPACE: i32 = 397;
/// The storage failed; details: `path`, `offset`, `length`, `errno`.
pub const VDSMSTORE_ERROR_IO_ERROR: i32 = 4501;
/// The operating system refused access.
pub const VDSMSTORE_ERROR_PERMISSION_DENIED: i32 = 385;
/// A file handle went stale.
pub const VDSMSTORE_ERROR_STALE_HANDLE: i32 = 384;
/// The lease on the image was lost.
pub const VDSMSTORE_ERROR_LEASE_LOST: i32 = 4505;
/// A lock could not be taken.
pub const VDSMSTORE_ERROR_CANNOT_LOCK: i32 = 651;
/// Somebody else changed the record first.
pub const VDSMSTORE_ERROR_CONFLICT: i32 = 911;
/// The fix is not one that a check would list now.
pub const VDSMSTORE_ERROR_FIX_REFUSED: i32 = 4504;
/// The chain or the repository has too many volumes.
pub const VDSMSTORE_ERROR_TOO_MANY_VOLUMES: i32 = 613;
/// The work was stopped; it can be resumed.
pub const VDSMSTORE_ERROR_STOPPED: i32 = 443;
/// The time given was not enough.
pub const VDSMSTORE_ERROR_TIMEOUT: i32 = 851;
/// No such task, or its result is no longer kept.
pub const VDSMSTORE_ERROR_TASK_NOT_FOUND: i32 = 401;
/// A running task has that name.
pub const VDSMSTORE_ERROR_TASK_ID_IN_USE: i32 = 406;
/// Not built, or not possible with this format.
pub const VDSMSTORE_ERROR_UNSUPPORTED_OPERATION: i32 = 2009;
/// The store or image handle is closed.
pub const VDSMSTORE_ERROR_CLOSED: i32 = 4507;
/// The store belongs to the parent process.
pub const VDSMSTORE_ERROR_FORKED_PROCESS: i32 = 4508;
/// A bug of ours.
pub const VDSMSTORE_ERROR_INTERNAL: i32 = 100;
