//! A second opinion on qcow2 metadata, written from the specification and sharing nothing with the library.

/// What the checker found wrong that is worse than a leak.
pub fn check(bytes: &[u8]) -> Result<Summary, String> {
    let be32 = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let be64 = |at: u64| -> Result<u64, String> {
        let at = usize::try_from(at).unwrap();
        bytes
            .get(at..at + 8)
            .map(|b| u64::from_be_bytes(b.try_into().unwrap()))
            .ok_or(format!("table entry at {at:#x} beyond the end"))
    };
    if be32(0) != 0x5146_49fb || be32(4) != 3 {
        return Err("no qcow2 version 3".into());
    }
    let cluster_size = 1u64 << be32(20);
    let (l1_entries, l1) = (u64::from(be32(36)), be64(40)?);
    let (table, table_clusters) = (be64(48)?, u64::from(be32(56)));
    let incompatible = be64(72)?;
    if incompatible & !8 != 0 {
        return Err(format!("incompatible bits {incompatible:#x}"));
    }
    let bits = be32(20);
    let width = 1u64 << be32(96);
    let per_block = cluster_size * 8 / width;
    let clusters = (bytes.len() as u64).div_ceil(cluster_size);
    let mut references = vec![0u32; clusters as usize];
    let mut refer = |offset: u64, what: &str| -> Result<(), String> {
        if !offset.is_multiple_of(cluster_size) {
            return Err(format!("{what} at {offset:#x} is not aligned"));
        }
        let slot = references.get_mut((offset / cluster_size) as usize);
        *slot.ok_or(format!("{what} at {offset:#x} lies outside the file"))? += 1;
        Ok(())
    };
    refer(0, "header")?;
    for at in 0..table_clusters {
        refer(table + at * cluster_size, "refcount table")?;
    }
    for at in 0..(l1_entries * 8).div_ceil(cluster_size) {
        refer(l1 + at * cluster_size, "L1")?;
    }
    let mut blocks = Vec::new();
    for at in 0..table_clusters * cluster_size / 8 {
        let block = be64(table + at * 8)?;
        if block != 0 {
            refer(block, "refcount block")?;
        }
        blocks.push(block);
    }
    // The active L1 first, then those of internal snapshots, whose entries are not marked.
    let mut tables = vec![(l1, l1_entries)];
    let (mut at, count) = (be64(64)?, be32(60));
    if count > 0 {
        refer(at, "snapshot table")?;
    }
    for _ in 0..count {
        let (low, name) = (be32(at as usize + 8), be32(at as usize + 12));
        tables.push((be64(at)?, u64::from(low)));
        for cluster in 0..(u64::from(low) * 8).div_ceil(cluster_size) {
            refer(be64(at)? + cluster * cluster_size, "L1 of a snapshot")?;
        }
        let names = u64::from(name >> 16) + u64::from(name & 0xffff);
        at = (at + 40 + u64::from(be32(at as usize + 36)) + names).next_multiple_of(8);
    }
    let mut copied = Vec::new();
    for (number, (l1, l1_entries)) in tables.into_iter().enumerate() {
        for index in 0..l1_entries {
            let entry = be64(l1 + index * 8)?;
            if entry == 0 {
                continue;
            }
            let l2 = entry & 0x00ff_ffff_ffff_fe00;
            refer(l2, "L2")?;
            if number == 0 {
                copied.push((l2, entry >> 63 == 1));
            }
            for at in 0..cluster_size / 8 {
                let entry = be64(l2 + at * 8)?;
                if entry >> 62 == 1 {
                    let host = entry & ((1 << (62 - (bits - 8))) - 1);
                    let sectors = (entry << 2 >> 2 >> (62 - (bits - 8))) + 1;
                    let last = host / 512 * 512 + sectors * 512 - 1;
                    for cluster in host / cluster_size..=last / cluster_size {
                        refer(cluster * cluster_size, "compressed data")?;
                    }
                    continue;
                }
                let host = entry & 0x00ff_ffff_ffff_fe00;
                if entry & !(0x80ff_ffff_ffff_fe00 | 1) != 0 {
                    return Err(format!("L2 entry {entry:#x} has bits set that it must not have"));
                }
                if host != 0 {
                    refer(host, "data cluster")?;
                    if number == 0 {
                        copied.push((host, entry >> 63 == 1));
                    }
                }
            }
        }
    }
    let refcount = |cluster: u64| -> Result<u32, String> {
        let block = blocks.get((cluster / per_block) as usize).copied().unwrap_or(0);
        if block == 0 {
            return Ok(0);
        }
        // Numbers of whole bytes are big endian, those within a byte begin at its low end.
        let bit = cluster % per_block * width;
        let at = (block + bit / 8) as usize;
        let bytes = bytes.get(at..at + (width / 8).max(1) as usize).ok_or("refcount block beyond the end")?;
        if width < 8 {
            return Ok(u32::from(bytes[0] >> (bit % 8)) & ((1 << width) - 1));
        }
        Ok(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    };
    let mut summary = Summary::default();
    for (cluster, references) in references.iter().enumerate() {
        let count = refcount(cluster as u64)?;
        if count < *references {
            return Err(format!("cluster {cluster}: refcount {count}, references {references}"));
        }
        summary.used += u64::from(*references);
        summary.leaks += u64::from(count - references);
    }
    for (host, copied) in copied {
        let count = refcount(host / cluster_size)?;
        if copied != (count == 1) {
            return Err(format!("cluster at {host:#x}: COPIED is {copied}, refcount {count}"));
        }
    }
    Ok(summary)
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub used: u64,
    pub leaks: u64,
}
