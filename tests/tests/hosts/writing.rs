//! Disks that a host writes, and what their images may hold then.

use std::sync::atomic::{AtomicBool, Ordering};

use vdsmstore_core::Store;

use crate::judge::{self, Allowed, Model};
use crate::scene::{CLUSTER, NAMES, Scene, read};

/// What the second host wrote: the disk and its new contents, one after the other.
pub type Written = Vec<(usize, String, Vec<Vec<u8>>)>;

/// Opens all disks for writing, writes half of what it wants to, lets the first host go on, and writes the rest.
pub fn work(scene: &Scene, store: &Store, thaw: &AtomicBool) -> Written {
    let mut written = Written::new();
    let mut open = Vec::new();
    for repo in 0..2 {
        for id in judge::disks(scene, repo) {
            // In use, or broken: others judge that.
            let Ok(mut data) = read(store, NAMES[repo], &id) else { continue };
            let Ok(image) = store.open_image(NAMES[repo], &id, true) else { continue };
            let mut states = Vec::new();
            for cluster in [0, 3] {
                data[cluster * CLUSTER + 7..][..CLUSTER].fill(0xb0 + cluster as u8);
                states.push(data.clone());
            }
            image.write(7, &data[7..][..CLUSTER]).unwrap();
            image.flush().unwrap();
            open.push(image);
            written.push((repo, id, states));
        }
    }
    thaw.store(true, Ordering::Relaxed);
    for (image, (_, _, states)) in open.iter().zip(&written) {
        image.write(3 * CLUSTER as i64 + 7, &states[1][3 * CLUSTER + 7..][..CLUSTER]).unwrap();
    }
    for image in open {
        image.close().unwrap();
    }
    written
}

/// A disk went through these states; and what is made of it may hold any of them.
pub fn rewritten(model: &mut Model, repo: usize, id: &str, states: &[Vec<u8>]) {
    let last = states.last().cloned().into_iter().collect::<Vec<_>>();
    for (key, allowed) in model.iter_mut() {
        if *key == (repo, id.to_owned()) {
            allowed.data.clone_from(&last);
        } else if allowed.unfinished {
            allowed.data.extend_from_slice(states);
        }
    }
    model.entry((repo, id.to_owned())).or_insert(Allowed {
        data: last,
        absent: false,
        gone: false,
        unfinished: false,
        lost: false,
    });
}
