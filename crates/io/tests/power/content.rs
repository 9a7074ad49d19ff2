//! What sectors hold, and what each may hold after a cut.

pub const SECTOR: u64 = 512;

/// The content that a tag stands for, different in every sector; tag 0: zeroes.
pub fn sector(tag: u64, number: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    if tag != 0 {
        for pair in bytes.chunks_exact_mut(16) {
            pair[..8].copy_from_slice(&tag.to_le_bytes());
            pair[8..].copy_from_slice(&number.to_le_bytes());
        }
    }
    bytes
}

/// Some sectors in a row.
pub fn sectors(tag: u64, first: u64, count: u64) -> Vec<u8> {
    (first..first + count).flat_map(|number| sector(tag, number)).collect()
}

/// What each sector may read as: the tag at the last flush, and every one since.
#[derive(Clone, Debug)]
pub struct Model(pub Vec<Vec<u64>>);

impl Model {
    pub fn new(tags: impl Iterator<Item = u64>) -> Model {
        Model(tags.map(|tag| vec![tag]).collect())
    }

    /// From now on they may also read as this.
    pub fn set(&mut self, first: u64, count: u64, tag: u64) {
        for tags in &mut self.0[first as usize..(first + count) as usize] {
            tags.push(tag);
        }
    }

    /// All was flushed: only the last counts.
    pub fn settle(&mut self) {
        for tags in &mut self.0 {
            tags.drain(..tags.len() - 1);
        }
    }

    /// What is wrong with these bytes of the disk's begin, if anything is.
    pub fn compare(&self, bytes: &[u8]) -> Result<(), String> {
        for (number, (found, tags)) in bytes.chunks_exact(512).zip(&self.0).enumerate() {
            if !tags.iter().any(|tag| *found == sector(*tag, number as u64)) {
                return Err(format!("sector {number}: {:x?}, may be {tags:x?}", &found[..16]));
            }
        }
        Ok(())
    }
}
