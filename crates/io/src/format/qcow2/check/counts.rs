//! What is counted per cluster of the file, in chunks that exist only where something was counted.

use std::collections::HashMap;

/// Clusters in a chunk of counts.
const CHUNK: u64 = 4096;
/// Clusters in a chunk of bits.
const BITS: u64 = 32768;
/// In a chunk: the count is in the map.
const LARGE: u8 = u8::MAX;

/// How often each cluster is referred to: a byte each, larger numbers apart.
#[derive(Debug, Default)]
pub(super) struct Counts {
    chunks: Vec<Option<Box<[u8; CHUNK as usize]>>>,
    large: HashMap<u64, u64>,
}

impl Counts {
    pub fn get(&self, cluster: u64) -> u64 {
        let chunk = self.chunks.get((cluster / CHUNK) as usize).and_then(Option::as_ref);
        match chunk.map_or(0, |chunk| chunk[(cluster % CHUNK) as usize]) {
            LARGE => self.large.get(&cluster).copied().unwrap_or(0),
            count => u64::from(count),
        }
    }

    /// Adds to the count of a cluster, up to `limit`; returns by how much it would have gone beyond.
    pub fn add(&mut self, cluster: u64, number: u64, limit: u64) -> u64 {
        let index = (cluster / CHUNK) as usize;
        if index >= self.chunks.len() {
            self.chunks.resize_with(index + 1, || None);
        }
        let chunk = self.chunks[index].get_or_insert_with(|| Box::new([0; CHUNK as usize]));
        let count = &mut chunk[(cluster % CHUNK) as usize];
        let now = match *count {
            LARGE => self.large.get(&cluster).copied().unwrap_or(0),
            count => u64::from(count),
        };
        let sum = now.saturating_add(number);
        let kept = sum.min(limit);
        if kept < u64::from(LARGE) {
            *count = kept as u8;
        } else {
            *count = LARGE;
            self.large.insert(cluster, kept);
        }
        sum - kept
    }

    /// The first cluster at or after this one that lies in a chunk with counts; `None`: there are no more.
    pub fn next_counted(&self, cluster: u64) -> Option<u64> {
        let first = (cluster / CHUNK) as usize;
        let found = self.chunks.iter().skip(first).position(Option::is_some)?;
        Some(cluster.max((first + found) as u64 * CHUNK))
    }

    /// The counts from `cluster` to the end of its chunk, at most `length`; `None`: all are 0.
    pub fn chunk(&self, cluster: u64, length: u64) -> (Option<&[u8]>, u64) {
        let start = cluster % CHUNK;
        let length = length.min(CHUNK - start);
        let chunk = self.chunks.get((cluster / CHUNK) as usize).and_then(Option::as_ref);
        (chunk.map(|chunk| &chunk[start as usize..(start + length) as usize]), length)
    }
}

/// A bit per cluster.
#[derive(Debug, Default)]
pub(super) struct Bits {
    chunks: Vec<Option<Box<[u64; (BITS / 64) as usize]>>>,
}

impl Bits {
    pub fn get(&self, cluster: u64) -> bool {
        let chunk = self.chunks.get((cluster / BITS) as usize).and_then(Option::as_ref);
        chunk.is_some_and(|chunk| chunk[(cluster % BITS / 64) as usize] >> (cluster % 64) & 1 == 1)
    }

    /// Sets it; returns whether it was set before.
    pub fn set(&mut self, cluster: u64) -> bool {
        let index = (cluster / BITS) as usize;
        if index >= self.chunks.len() {
            self.chunks.resize_with(index + 1, || None);
        }
        let chunk = self.chunks[index].get_or_insert_with(|| Box::new([0; (BITS / 64) as usize]));
        let word = &mut chunk[(cluster % BITS / 64) as usize];
        let bit = 1 << (cluster % 64);
        let before = *word & bit != 0;
        *word |= bit;
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_keep_large_numbers_and_stop_at_the_limit() {
        let mut counts = Counts::default();
        assert_eq!(counts.next_counted(0), None);
        assert_eq!(counts.add(5000, 254, u64::MAX), 0);
        assert_eq!(counts.add(5000, 1, u64::MAX), 0);
        assert_eq!(counts.add(5000, 1000, u64::MAX), 0);
        assert_eq!(counts.get(5000), 1255);
        assert_eq!(counts.add(5000, 10, 1260), 5);
        assert_eq!(counts.get(5000), 1260);
        assert_eq!((counts.get(4999), counts.get(1 << 40)), (0, 0));
        assert_eq!(counts.add(1, 2, 1), 1);
        assert_eq!(counts.get(1), 1);
        assert_eq!(counts.next_counted(2), Some(2));
        assert_eq!(counts.next_counted(4096), Some(4096));
        assert_eq!(counts.next_counted(8192), None);
        assert_eq!(counts.chunk(4996, 5).0.map(<[u8]>::to_vec), Some(vec![0, 0, 0, 0, u8::MAX]));
        assert_eq!(counts.chunk(8190, 100), (Some(&[0, 0][..]), 2));
        assert_eq!(counts.chunk(8192, 5000), (None, 4096));
    }

    #[test]
    fn bits_are_apart() {
        let mut bits = Bits::default();
        assert!(!bits.set(70_000) && bits.set(70_000));
        assert!(bits.get(70_000) && !bits.get(69_999) && !bits.get(70_001) && !bits.get(1 << 50));
    }
}
