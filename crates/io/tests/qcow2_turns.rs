//! We and QEMU write to the same image in turns: compressed clusters, internal snapshots and refcounts of every
//! width, against a byte model; `qemu-img check` finds nothing after any turn, and snapshots keep their content.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};

use common::packed::*;
use common::*;
use vdsmstore_io::{FileDevice, Format, Image, qcow2};

/// What was done, to see that it was.
#[derive(Debug, Default)]
struct Counts {
    our_turns: u64,
    qemu_turns: u64,
    compressed: u64,
    snapshots: u64,
    deleted: u64,
    applied: u64,
}

struct Game {
    path: PathBuf,
    base: Option<(PathBuf, u64)>,
    cluster_size: u64,
    may_snapshot: bool,
    model: Vec<u8>,
    /// By name.
    snapshots: Vec<(String, Vec<u8>)>,
    random: Random,
    counts: Counts,
    turn: u64,
}

impl Game {
    fn new(dir: &Path, seed: u64) -> Game {
        let mut random = Random::new(seed);
        let (path, source) = (dir.join("image"), dir.join("source"));
        let cluster_size = 1u64 << [9, 12, 16, 16, 21][random.below(5) as usize];
        let size = match cluster_size {
            512 => 200 * KIB,
            4096 => MIB,
            65536 => 2 * MIB,
            _ => 6 * MIB,
        } + 512 * random.below(5);
        let model = mixture(&mut random, size);
        std::fs::write(&source, &model).unwrap();
        let compression = [DEFLATE, ZSTD][random.below(2) as usize];
        let refcount_bits = [16, 16, 16, 64, 32, 8, 2, 1][random.below(8) as usize];
        let options = format!(
            "cluster_size={cluster_size},compression_type={compression},refcount_bits={refcount_bits}"
        );
        let (name, from) = (path.to_str().unwrap(), source.to_str().unwrap());
        let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", &options];
        if random.below(4) > 0 {
            arguments.push("-c");
        }
        arguments.extend([from, name]);
        qemu("qemu-img", &arguments);
        let mut base = None;
        if random.below(3) == 0 {
            // Under it, not seen, since everything is allocated; but zeroes must be explicit from now on.
            let path = dir.join("base");
            let shown = size / 2 / 512 * 512;
            std::fs::write(&path, mixture(&mut random, shown)).unwrap();
            let below = path.to_str().unwrap().to_owned();
            qemu("qemu-img", &["rebase", "-u", "-f", "qcow2", "-b", &below, "-F", "raw", name]);
            base = Some((path, shown));
        }
        println!("seed {seed}: {options}, {size} bytes, base {}", base.is_some());
        let counts = Counts::default();
        let mut game = Game {
            path,
            base,
            cluster_size,
            // Taking one adds to each count, and in clusters with compressed data these are high.
            may_snapshot: refcount_bits >= 16,
            model,
            snapshots: Vec::new(),
            random,
            counts,
            turn: 0,
        };
        // Holes of the source are unallocated: with a base it shows there.
        game.model = qemu_read(&game.path, "qcow2");
        game
    }

    fn open(&self) -> Image {
        let mut layers = vec![(self.path.as_path(), Format::Qcow2, self.model.len() as u64)];
        if let Some((base, size)) = &self.base {
            layers.push((base, Format::Raw, *size));
        }
        common::open(&layers)
    }

    fn range(&mut self) -> (u64, u64) {
        let size = self.model.len() as u64;
        let longest = [self.cluster_size / 2, self.cluster_size * 3, size / 4][self.random.below(3) as usize];
        let at = self.random.below(size);
        (at, (1 + self.random.below(longest.max(1))).min(size - at))
    }

    fn our_turn(&mut self) {
        self.counts.our_turns += 1;
        let image = self.open();
        assert_same(&read_all(&image), &self.model);
        for _ in 0..=self.random.below(8) {
            let (at, length) = self.range();
            let place = at as usize..(at + length) as usize;
            match self.random.below(10) {
                8 | 9 => {
                    let at = at / self.cluster_size * self.cluster_size;
                    let length = length.next_multiple_of(self.cluster_size).min(self.model.len() as u64 - at);
                    let data = mixture(&mut self.random, length);
                    image.write_compressed(at, &data).unwrap();
                    self.model[at as usize..][..length as usize].copy_from_slice(&data);
                }
                0..=3 => {
                    let data = mixture(&mut self.random, length);
                    image.write(at, &data).unwrap();
                    self.model[place].copy_from_slice(&data);
                }
                4 => {
                    image.write_zeroes(at, length).unwrap();
                    self.model[place].fill(0);
                }
                5 | 6 => {
                    image.discard(at, length).unwrap();
                    self.model[place].fill(0);
                }
                _ => image.flush().unwrap(),
            }
        }
        assert_same(&read_all(&image), &self.model);
        image.flush().unwrap();
    }

    fn qemu_turn(&mut self) {
        self.counts.qemu_turns += 1;
        let name = self.path.to_str().unwrap().to_owned();
        for _ in 0..=self.random.below(3) {
            let (at, length) = self.range();
            let source = self.path.with_extension("data");
            match self.random.below(12) {
                0..=2 => {
                    let (at, length) = (at / 512 * 512, length.next_multiple_of(512));
                    let length = length.min(self.model.len() as u64 - at);
                    let data = mixture(&mut self.random, length);
                    std::fs::write(&source, &data).unwrap();
                    qemu_io(&self.path, &[&format!("write -s {} {at} {length}", source.display())]);
                    self.model[at as usize..][..length as usize].copy_from_slice(&data);
                }
                3 | 4 => {
                    // Refused over clusters that are not compressed.
                    let at = at / self.cluster_size * self.cluster_size;
                    let length = self.cluster_size.min(self.model.len() as u64 - at);
                    let data = mixture(&mut self.random, length);
                    std::fs::write(&source, &data).unwrap();
                    let command = format!("write -c -s {} {at} {length}", source.display());
                    let output = run("qemu-io", &["-f", "qcow2", "-c", &command, &name]);
                    if !String::from_utf8_lossy(&output.stdout).contains("failed") && output.status.success()
                    {
                        self.model[at as usize..][..length as usize].copy_from_slice(&data);
                        self.counts.compressed += 1;
                    }
                }
                5 => {
                    qemu_io(&self.path, &[&format!("write -z {} {}", at / 512 * 512, 512)]);
                    self.model[(at / 512 * 512) as usize..][..512].fill(0);
                }
                6 => {
                    let at = at / self.cluster_size * self.cluster_size;
                    let length = self.cluster_size.min(self.model.len() as u64 - at);
                    qemu_io(&self.path, &[&format!("discard {at} {length}")]);
                    self.model[at as usize..][..length as usize].fill(0);
                }
                7..=9 if self.may_snapshot && self.snapshots.len() < 4 => {
                    self.counts.snapshots += 1;
                    let snapshot = format!("s{}", self.counts.snapshots);
                    qemu("qemu-img", &["snapshot", "-c", &snapshot, &name]);
                    self.snapshots.push((snapshot, self.model.clone()));
                }
                10 if !self.snapshots.is_empty() => {
                    let at = self.random.below(self.snapshots.len() as u64) as usize;
                    let (snapshot, _) = self.snapshots.remove(at);
                    qemu("qemu-img", &["snapshot", "-d", &snapshot, &name]);
                    self.counts.deleted += 1;
                }
                11 if !self.snapshots.is_empty() => {
                    let at = self.random.below(self.snapshots.len() as u64) as usize;
                    let (snapshot, content) = self.snapshots[at].clone();
                    qemu("qemu-img", &["snapshot", "-a", &snapshot, &name]);
                    self.model = content;
                    self.counts.applied += 1;
                }
                _ => {}
            }
        }
    }

    fn judge(&self) {
        check_clean(&self.path);
        assert_same(&qemu_read(&self.path, "qcow2"), &self.model);
        let listed = qcow2::snapshots(&FileDevice::open(&self.path, false).unwrap()).unwrap();
        let names: Vec<&str> = listed.iter().map(|snapshot| snapshot.name.as_str()).collect();
        assert_eq!(names, self.snapshots.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());
        for (snapshot, content) in &self.snapshots {
            let raw = self.path.with_extension("snapshot");
            let (from, to) = (self.path.to_str().unwrap(), raw.to_str().unwrap());
            qemu("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", "-l", snapshot, from, to]);
            assert_same(&std::fs::read(&raw).unwrap(), content);
        }
    }

    fn play(&mut self, turns: u64) {
        for turn in 0..turns {
            self.turn = turn;
            if self.random.below(2) == 0 {
                self.our_turn();
            } else {
                self.qemu_turn();
            }
            self.judge();
        }
    }
}

#[test]
fn in_turns() {
    let seeds = match std::env::var("VDSMSTORE_SEED") {
        Ok(seed) => seed.parse().unwrap()..seed.parse::<u64>().unwrap() + 1,
        Err(_) => 1..1 + 10 * effort(),
    };
    let mut total = Counts::default();
    for seed in seeds.clone() {
        let (_keep, dir) = scratch();
        let mut game = Game::new(&dir, seed);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| game.play(8)));
        if let Err(panic) = result {
            println!("seed {seed}, turn {}: VDSMSTORE_SEED={seed} plays it again", game.turn);
            std::panic::resume_unwind(panic);
        }
        let counts = &game.counts;
        total.our_turns += counts.our_turns;
        total.qemu_turns += counts.qemu_turns;
        total.compressed += counts.compressed;
        total.snapshots += counts.snapshots;
        total.deleted += counts.deleted;
        total.applied += counts.applied;
    }
    println!("{total:?}");
    if seeds.end - seeds.start > 1 {
        assert!(total.our_turns > 0 && total.compressed > 0 && total.snapshots > 0);
        assert!(total.deleted > 0 && total.applied > 0);
    }
}
