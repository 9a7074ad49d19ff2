//! Bytes where records are expected: what fuzzers and their regression tests call.

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::fix::{Fix, document};
use crate::record::{ImageRecord, Progress, Record, VolumeRecord};
use crate::{ErrorKind, Result};

/// Takes the bytes for each kind of record there is, and for a fix: they are understood or refused, and what is
/// understood can be written and is the same when it is read again. Returns how many kinds understood them.
pub fn records(bytes: &[u8]) -> usize {
    // A record is refused under another name than its own: the interesting ones have their own.
    let value: Option<Value> = serde_json::from_slice(bytes).ok();
    let id = value.as_ref().and_then(|value| Uuid::try_parse(value.get("id")?.as_str()?).ok());
    let id = id.unwrap_or_default();
    let mut understood =
        usize::from(record::<ImageRecord>(id, bytes)) + usize::from(record::<VolumeRecord>(id, bytes));
    if let Some(progress) = Progress::parse(bytes) {
        let text = written(&progress);
        assert_eq!(Progress::parse(text.as_bytes()), Some(progress));
        understood += 1;
    }
    if let Ok(fix) = serde_json::from_slice::<Fix>(bytes) {
        let repository =
            value.as_ref().and_then(|value| Uuid::try_parse(value["data"]["repository"].as_str()?).ok());
        match document::parse(repository.unwrap_or_default(), &fix) {
            Ok(_) => understood += 1,
            Err(error) => assert_eq!(error.kind(), ErrorKind::FixRefused, "{error:?}"),
        }
    }
    understood
}

fn written(what: &impl Serialize) -> String {
    serde_json::to_string(what).unwrap_or_else(|error| panic!("what was read cannot be written: {error}"))
}

fn record<R: Record>(id: Uuid, bytes: &[u8]) -> bool {
    let parse = |bytes: &[u8]| -> Result<String> { R::parse(id, bytes).map(|record| written(&record)) };
    match parse(bytes) {
        Ok(text) => {
            assert_eq!(parse(text.as_bytes()).ok().as_ref(), Some(&text));
            true
        }
        Err(error) => {
            let kinds = [ErrorKind::CorruptRecord, ErrorKind::VersionTooNew];
            assert!(kinds.contains(&error.kind()), "{error:?}");
            false
        }
    }
}
