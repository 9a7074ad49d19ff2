//! Merging layers, up and down.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::*;
use vdsmstore_io::plan::{self, Action, Move, Plan};
use vdsmstore_io::{Control, ErrorKind, Format, Image, Outcome, execute};

const SIZE: u64 = 6 * MIB + 512 * 3;

fn go(plan: &Plan, source: &Image, target: &Image) -> Outcome {
    let control = Control { cancel: &|| false, progress: &|_| {}, threads: 3 };
    let outcome = execute(plan, source, None, target, &control).unwrap();
    target.flush().unwrap();
    outcome
}

/// One volume of a test chain.
#[derive(Clone)]
struct Volume {
    path: PathBuf,
    format: Format,
    size: u64,
}

fn chain(volumes: &[&Volume]) -> Image {
    let layers: Vec<_> = volumes.iter().map(|v| (v.path.as_path(), v.format, v.size)).collect();
    open(&layers)
}

/// A raw file with pieces of data of 4 KiB and more, and holes between.
fn sparse_raw(dir: &Path, name: &str, size: u64, random: &mut Random) -> Volume {
    let path = dir.join(name);
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(size).unwrap();
    for _ in 0..60 {
        let at = random.below(size / 4096) * 4096;
        let mut data = vec![0; ((1 + random.below(9)) * 4096).min(size - at) as usize];
        if random.below(4) > 0 {
            random.fill(&mut data);
        }
        file.write_all_at(&data, at).unwrap();
    }
    Volume { path, format: Format::Raw, size }
}

/// An overlay with random data and zeroes, made by QEMU for any cluster size.
fn overlay(
    dir: &Path,
    name: &str,
    cluster: u64,
    size: u64,
    below: &[&Volume],
    random: &mut Random,
) -> Volume {
    let volume = Volume { path: dir.join(name), format: Format::Qcow2, size };
    let options = format!("cluster_size={cluster}");
    let (text, bytes) = (volume.path.to_str().unwrap(), size.next_multiple_of(512).to_string());
    let mut arguments = vec!["create", "-q", "-f", "qcow2", "-o", &options];
    let format = below.first().map(|base| base.format.to_string());
    if let (Some(base), Some(format)) = (below.first(), &format) {
        arguments.extend(["-u", "-b", base.path.to_str().unwrap(), "-F", format]);
    }
    arguments.extend([text, &bytes]);
    qemu("qemu-img", &arguments);
    let image = chain(&[&[&volume], below].concat());
    for _ in 0..25 {
        let at = random.below(size);
        let length = (1 + random.below(150_000)).min(size - at);
        if random.below(3) == 0 {
            image.write_zeroes(at, length).unwrap();
        } else {
            let mut data = vec![0; length as usize];
            random.fill(&mut data);
            image.write(at, &data).unwrap();
        }
    }
    image.flush().unwrap();
    volume
}

/// g <- v <- c, where v may be raw; what c shows.
struct Chain {
    g: Option<Volume>,
    v: Volume,
    c: Volume,
    model: Vec<u8>,
}

impl Chain {
    fn below_v(&self) -> Vec<&Volume> {
        self.g.iter().collect()
    }

    fn make(dir: &Path, seed: u64, (v_cluster, c_cluster): (Option<u64>, u64)) -> Chain {
        let mut random = Random::new(seed);
        let random = &mut random;
        let g = v_cluster.map(|_| sparse_raw(dir, "g", SIZE, random));
        let below: Vec<&Volume> = g.iter().collect();
        let v = match v_cluster {
            Some(cluster) => overlay(dir, "v", cluster, SIZE, &below, random),
            None => sparse_raw(dir, "v", SIZE, random),
        };
        let c = overlay(dir, "c", c_cluster, SIZE, &[&[&v], &below[..]].concat(), random);
        let model = read_all(&chain(&[&[&c, &v], &below[..]].concat()));
        Chain { g, v, c, model }
    }
}

/// Volume v is raw, or has clusters of that size; then the clusters of c.
const SHAPES: [(Option<u64>, u64); 6] = [
    (None, 65536),
    (None, 4096),
    (None, 2 << 20),
    (Some(65536), 65536),
    (Some(4096), 65536),
    (Some(65536), 4096),
];

#[test]
fn up() {
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        for same in [true, false] {
            let (_keep, dir) = scratch();
            let Chain { g, v, c, model } = &Chain::make(&dir, seed as u64 + 1, shape);
            let target = chain(&[&[c, v], &g.iter().collect::<Vec<_>>()[..]].concat());
            let other = (!same).then(|| chain(&[c, v]));
            let source = other.as_ref().unwrap_or(&target);
            let plan = plan::layer(source, 1, 0, SIZE).unwrap();
            assert!(plan.moves().iter().all(|step| matches!(step.action, Action::Copy | Action::Zero)));
            go(&plan, source, &target);
            assert_same(&read_all(&target), model);
            drop((target, other));
            check_clean(&c.path);
            // Without v the same shows.
            let without = chain(&[&[c], &g.iter().collect::<Vec<_>>()[..]].concat());
            assert_same(&read_all(&without), model);
            let (path, name) =
                (c.path.to_str().unwrap(), g.as_ref().map_or("", |g| g.path.to_str().unwrap()));
            let mut arguments = vec!["rebase", "-u", "-f", "qcow2", "-b", name];
            if g.is_some() {
                arguments.extend(["-F", "raw"]);
            }
            arguments.push(path);
            qemu("qemu-img", &arguments);
            assert_same(&qemu_read(&c.path, "qcow2"), model);
        }
    }
}

#[test]
fn down() {
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        let (_keep, dir) = scratch();
        let made = Chain::make(&dir, seed as u64 + 11, shape);
        let source = chain(&[&made.c, &made.v]);
        let target = chain(&[&[&made.v], &made.below_v()[..]].concat());
        let plan = plan::layer(&source, 0, 0, SIZE).unwrap();
        go(&plan, &source, &target);
        assert_same(&read_all(&target), &made.model);
        // While it lasts, and after it, c over v is the same.
        assert_same(&read_all(&chain(&[&[&made.c, &made.v], &made.below_v()[..]].concat())), &made.model);
        if made.v.format == Format::Qcow2 {
            check_clean(&made.v.path);
        }
        assert_same(&qemu_read(&made.v.path, &made.v.format.to_string()), &made.model);
    }
}

/// The middle and the bottom of a longer chain, in ranges.
#[test]
fn layers_of_a_long_chain_in_ranges() {
    let (_keep, dir) = scratch();
    let made = Chain::make(&dir, 40, (Some(4096), 65536));
    let image = chain(&[&[&made.c, &made.v], &made.below_v()[..]].concat());
    let mut moved = vec![false; SIZE as usize];
    for layer in 0..3 {
        let mut at = 0;
        while at < SIZE {
            let length = (MIB + 777).min(SIZE - at);
            let plan = plan::layer(&image, layer, at, length).unwrap();
            assert_eq!((plan.offset(), plan.length()), (at, length));
            for step in plan.moves() {
                assert!(step.offset >= at && step.offset + step.length <= at + length);
                for byte in &mut moved[step.offset as usize..(step.offset + step.length) as usize] {
                    assert!(!*byte, "two layers claim a byte");
                    *byte = true;
                }
            }
            at += length;
        }
    }
    for (byte, moved) in made.model.iter().zip(moved) {
        assert!(moved || *byte == 0);
    }
    assert_eq!(plan::layer(&image, 3, 0, SIZE).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(plan::layer(&image, 1, 1, SIZE).unwrap_err().kind(), ErrorKind::InvalidInput);
}

/// The map of what lies below costs a call of the file system for each hole of the layers: nobody asks for it. Here it would be
/// an error, for the file became shorter.
#[test]
fn nothing_below_the_layers_is_looked_at() {
    let (_keep, dir) = scratch();
    let made = Chain::make(&dir, 50, (Some(65536), 65536));
    let image = chain(&[&[&made.c, &made.v], &made.below_v()[..]].concat());
    let whole = plan::layers(&image, 0..2, 0, SIZE).unwrap();
    let below = std::fs::File::options().write(true).open(&made.below_v()[0].path).unwrap();
    below.set_len(0).unwrap();
    assert_eq!(plan::layers(&image, 0..2, 0, SIZE).unwrap().moves(), whole.moves());
    assert!(!plan::layer(&image, 0, 0, SIZE).unwrap().moves().is_empty());
    assert_eq!(plan::layers(&image, 0..3, 0, SIZE).unwrap_err().kind(), ErrorKind::ShortRead);
}

/// Pieces and holes of a raw layer within a cluster make one move; a cluster with nothing in it makes none; one
/// of which the top has a part is not copied beyond the layer's own bytes.
#[test]
fn raw_pieces_are_joined_where_nothing_else_is() {
    let (_keep, dir) = scratch();
    let v = Volume { path: dir.join("v"), format: Format::Raw, size: MIB };
    let file = std::fs::File::create(&v.path).unwrap();
    file.set_len(MIB).unwrap();
    for at in [1, 3, 9, 33, 40] {
        file.write_all_at(&[7; 4096], at * 4096).unwrap();
    }
    let c = Volume { path: dir.join("c"), format: Format::Qcow2, size: MIB };
    let name = c.path.to_str().unwrap();
    qemu(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-u", "-b", "v", "-F", "raw", name, "1M"],
    );
    let image = chain(&[&c, &v]);
    image.write(34 * 4096, &[8; 4096]).unwrap();
    let plan = plan::layer(&image, 1, 0, MIB).unwrap();
    let moves: Vec<_> = plan.moves().iter().map(|step| (step.offset / 4096, step.length / 4096)).collect();
    assert_eq!(moves, [(0, 16), (33, 1), (40, 1)]);
    let outcome = go(&plan, &image, &image);
    assert_eq!((outcome.written, outcome.zeroed), (18 * 4096, 0));
}

/// The parts of a long merge move what the whole does, each of them no more than it may.
#[test]
fn parts_of_a_merge_are_all_of_it() {
    let (_keep, dir) = scratch();
    let mut random = Random::new(17);
    let size = 6 * MIB;
    let bottom = sparse_raw(&dir, "bottom", size, &mut random);
    let middle = overlay(&dir, "middle", 4096, size, &[&bottom], &mut random);
    let top = overlay(&dir, "top", 65536, size, &[&middle, &bottom], &mut random);
    let image = chain(&[&top, &middle, &bottom]);
    let joined = |moves: Vec<Move>| {
        let mut all: Vec<Move> = Vec::new();
        for step in moves {
            match all.last_mut() {
                Some(last) if last.action == step.action && last.offset + last.length == step.offset => {
                    last.length += step.length;
                }
                _ => all.push(step),
            }
        }
        all
    };
    for layers in [0..2, 1..3, 0..1, 1..2] {
        let whole = plan::layers(&image, layers.clone(), 0, size).unwrap();
        for moved in [64 * KIB, 256 * KIB, 4 * MIB] {
            let (mut moves, mut position, mut parts) = (Vec::new(), 0, 0);
            while position < size {
                let length = (2 * MIB).min(size - position);
                let part = plan::layers_part(&image, layers.clone(), position, length, moved).unwrap();
                assert!(part.length() > 0 && part.length() <= length);
                assert!(part.moved_bytes() < moved + 64 * KIB, "{} of {moved}", part.moved_bytes());
                moves.extend_from_slice(part.moves());
                position += part.length();
                parts += 1;
            }
            assert_eq!(position, size);
            assert_eq!(joined(moves), joined(whole.moves().to_vec()), "{layers:?} by {moved}");
            assert!(parts <= 3 + 2 * whole.moved_bytes() / moved, "{parts} parts of {moved}");
        }
    }
}
