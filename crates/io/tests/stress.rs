//! Many threads on one image.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::packed::{DEFLATE, mixture, qemu_compressed};
use common::*;
use vdsmstore_io::{Format, Image, ImageOptions};

/// Bytes belong to threads in an interleaved way, so that all meet in every cluster. Each checks its own after
/// every step, while others write around them, one flushes, and one makes the disk twice as large.
fn run(image: &Image, size: u64, stripe: u64, cluster_size: u64, base: &[u8]) -> Vec<u8> {
    const THREADS: u64 = 6;
    let stop = AtomicBool::new(false);
    let parts: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|me| {
                scope.spawn(move || {
                    let mut model = base[..size as usize].to_vec();
                    let mut random = Random::new(me + 1);
                    let stripes = size / stripe;
                    for _ in 0..400 {
                        let mine = random.below(stripes / THREADS) * THREADS + me;
                        let at = mine * stripe;
                        let length = 1 + random.below(stripe);
                        let range = at as usize..(at + length) as usize;
                        let choice = random.below(8);
                        if choice < 2 {
                            image.discard(at, length).unwrap();
                            model[range].fill(0);
                        } else if choice == 2 && stripe >= cluster_size {
                            // A whole cluster of ours alone.
                            let at = at + random.below(stripe / cluster_size) * cluster_size;
                            let range = at as usize..(at + cluster_size) as usize;
                            let bytes = mixture(&mut random, cluster_size);
                            image.write_compressed(at, &bytes).unwrap();
                            model[range].copy_from_slice(&bytes);
                        } else {
                            random.fill(&mut model[range.clone()]);
                            image.write(at, &model[range]).unwrap();
                        }
                        let check = (random.below(stripes / THREADS) * THREADS + me) * stripe;
                        let mut buffer = vec![0; stripe as usize];
                        image.read(check, &mut buffer).unwrap();
                        assert_same(&buffer, &model[check as usize..][..stripe as usize]);
                    }
                    model
                })
            })
            .collect();
        let flusher = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                image.flush().unwrap();
                std::thread::yield_now();
            }
        });
        let grower = scope.spawn(|| {
            for step in 1..=40 {
                image.grow(size + (size * step / 40).next_multiple_of(512)).unwrap();
                std::thread::yield_now();
            }
        });
        let parts = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        stop.store(true, Ordering::Relaxed);
        flusher.join().unwrap();
        grower.join().unwrap();
        parts
    });
    (0..size).map(|at| parts[(at / stripe % THREADS) as usize][at as usize]).collect()
}

fn stress(size: u64, stripe: u64, cluster_size: u64) {
    let (_keep, dir) = scratch();
    let (top, base) = (dir.join("top"), dir.join("base"));
    let mut bytes = vec![0; 2 * size as usize];
    Random::new(9).fill(&mut bytes);
    std::fs::write(&base, &bytes).unwrap();
    let options = format!("cluster_size={cluster_size}");
    let (name, length) = (top.to_str().unwrap(), size.to_string());
    qemu(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", &options, "-u", "-b", "base", "-F", "raw", name, &length],
    );
    let image = open(&[(&top, Format::Qcow2, size), (&base, Format::Raw, 2 * size)]);
    let mut model = run(&image, size, stripe, cluster_size, &bytes);
    model.resize(2 * size as usize, 0);
    assert_same(&read_all(&image), &model);
    image.flush().unwrap();
    drop(image);
    check_clean(&top);
    assert_same(&qemu_read(&top, "qcow2"), &model);
}

#[test]
fn all_threads_in_the_same_clusters() {
    // 6 threads to a cluster of 64 KiB.
    stress(3 * MIB, 8 * KIB, 65536);
}

#[test]
fn whole_clusters_come_and_go() {
    stress(3 * MIB, 32 * KIB, 4096);
    stress(12 * MIB, 128 * KIB, 65536);
}

/// Everything that can go on at once: compressed clusters are written over, tables and data of a snapshot are copied, and
/// so few tables fit into the cache that requests flush in their middle.
#[test]
fn compressed_and_shared_clusters_in_little_memory() {
    let (_keep, dir) = scratch();
    let path = dir.join("image");
    for (size, cluster_size, stripe) in
        [(3 * MIB, 512, 4096), (6 * MIB, 4096, 16384), (12 * MIB, 65536, 65536)]
    {
        let before = mixture(&mut Random::new(size), size);
        qemu_compressed(&path, &before, cluster_size, DEFLATE);
        qemu("qemu-img", &["snapshot", "-c", "s", path.to_str().unwrap()]);
        let options = ImageOptions { writable: true, memory: Some(0), ..ImageOptions::default() };
        let image = Image::open_with(vec![layer(&path, Format::Qcow2, size, true)], &options).unwrap();
        let mut model = run(&image, size, stripe, cluster_size, &before);
        model.resize(2 * size as usize, 0);
        assert_same(&read_all(&image), &model);
        image.flush().unwrap();
        drop(image);
        check_clean(&path);
        assert_same(&qemu_read(&path, "qcow2"), &model);
        let (raw, name) = (dir.join("snapshot"), path.to_str().unwrap());
        qemu("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", "-l", "s", name, raw.to_str().unwrap()]);
        // As long as the disk is now.
        assert_same(&std::fs::read(&raw).unwrap()[..size as usize], &before);
    }
}
