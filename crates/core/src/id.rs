//! Identifiers: one type each, so that they cannot be mixed up.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Error, ErrorKind, Result, machine};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new random identifier.
            pub fn random() -> Self {
                Self(machine::random_uuid())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }
    };
}

id! {
    /// An image: the data that a caller sees. Displayed in lower case with hyphens.
    ImageId
}
id! {
    /// A volume: where bytes lie. Never shown to callers.
    VolumeId
}
id! {
    /// One opened store: 128 random bits.
    Incarnation
}
id! {
    /// A blob: text too large for a record.
    BlobId
}
id! {
    /// The state of an image's data; a new one before each session that may write.
    Token
}

/// `text` as a UUID in its canonical form (8-4-4-4-12 hexadecimal digits, either case).
pub(crate) fn parse_uuid(text: &str) -> Option<Uuid> {
    (text.len() == 36).then(|| Uuid::try_parse(text).ok()).flatten()
}

impl ImageId {
    /// Parses what a caller gave; anything but a hyphenated UUID is `InvalidParameter`.
    pub fn parse(text: &str) -> Result<Self> {
        parse_uuid(text).map(Self).ok_or_else(|| {
            Error::new(ErrorKind::InvalidParameter, format!("image id {text:?} is not a UUID"))
                .with("parameter", "imageId")
        })
    }
}
