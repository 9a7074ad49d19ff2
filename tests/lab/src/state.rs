//! What must be in the repositories at a moment.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Content is told in these units.
pub const BLOCK: usize = 4096;
const SECTOR: usize = 512;

/// What an image must be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Expected {
    pub mutable: bool,
    pub user_data: String,
    /// Its making is known to have ended.
    pub whole: bool,
    /// Of each block what was written to it last; 0: zeroes. Their number is the image's size.
    pub blocks: Vec<u32>,
}

/// By repository and id.
pub type State = BTreeMap<String, BTreeMap<String, Expected>>;

/// Something was acknowledged: the call that made it so, and what must be there from then on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mark {
    pub number: u64,
    pub done: String,
    pub state: State,
}

impl Expected {
    pub fn size(&self) -> u64 {
        (self.blocks.len() * BLOCK) as u64
    }
}

/// The bytes of a block.
pub fn content(block: usize, tag: u32) -> Vec<u8> {
    if tag == 0 {
        return vec![0; BLOCK];
    }
    let words = (0..BLOCK as u64 / 8).map(|word| u64::from(tag) << 32 | (block as u64) << 12 | word << 3);
    words.flat_map(u64::to_le_bytes).collect()
}

/// The first sector that has none of the contents that it may have.
pub fn differs(bytes: &[u8], allowed: &[&Expected]) -> Option<String> {
    for (block, found) in bytes.chunks(BLOCK).enumerate() {
        let mut tags: Vec<u32> =
            allowed.iter().map(|image| image.blocks.get(block).copied().unwrap_or(0)).collect();
        tags.dedup();
        let contents: Vec<Vec<u8>> = tags.iter().map(|tag| content(block, *tag)).collect();
        for (sector, found) in found.chunks(SECTOR).enumerate() {
            let here = sector * SECTOR..sector * SECTOR + found.len();
            if !contents.iter().any(|content| content[here.clone()] == *found) {
                let word = u64::from_le_bytes(found[..8].try_into().unwrap());
                return Some(format!(
                    "block {block} sector {sector}: {word:#018x}, may be written by {tags:?}"
                ));
            }
        }
    }
    None
}
