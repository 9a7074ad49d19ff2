//! Images that QEMU made, of every kind that there is.

use std::path::{Path, PathBuf};

use super::{qemu, qemu_io};

/// An image in a directory of the caller's.
pub struct Made {
    pub name: &'static str,
    pub path: PathBuf,
}

/// What is done to an image after it was created.
enum Step {
    /// Commands of `qemu-io`.
    Io(&'static [&'static str]),
    /// Arguments of `qemu-img`, `IMAGE` for its name.
    Img(&'static [&'static str]),
    /// A command of `qemu-io` after which it does not close the image.
    Abort(&'static str),
}

use Step::{Abort, Img, Io};

struct Kind {
    name: &'static str,
    options: &'static str,
    size: &'static str,
    steps: &'static [Step],
}

/// Data of zeroes, so that most bytes of the file that are none are tables. Parts of clusters, zeroes, discards.
const SMALL: Step = Io(&[
    "write -q -P 0 0 40k",
    "write -q -P 0 100k 3k",
    "write -q -z 16k 8k",
    "write -q -z 48k 8k",
    "discard -q 4k 8k",
]);
const MEDIUM: Step = Io(&[
    "write -q -P 0 0 400k",
    "write -q -P 0 3M 100k",
    "write -q -z 1M 256k",
    "write -q -z -u 64k 64k",
    "write -q -z 256k 64k",
    "discard -q 128k 64k",
]);
const LARGE: Step =
    Io(&["write -q -P 0 0 5M", "write -q -P 0 17M 100k", "write -q -z 8M 4M", "discard -q 2M 2M"]);
const PACKED: Step =
    Io(&["write -q -c -P 7 512k 64k", "write -q -c -P 8 576k 64k", "write -q -c -P 9 2M 64k"]);
const SNAPSHOTS: &[Step] = &[
    MEDIUM,
    Img(&["snapshot", "-c", "one", "IMAGE"]),
    Io(&["write -q -P 0 64k 200k", "write -q -P 0 2500k 100k"]),
    Img(&["snapshot", "-c", "two", "IMAGE"]),
    Io(&["write -q -P 0 3M 64k"]),
];

macro_rules! kind {
    ($name:literal, $options:literal, $size:literal, $steps:expr) => {
        Kind { name: $name, options: $options, size: $size, steps: $steps }
    };
}

const KINDS: &[Kind] = &[
    kind!("v2-512", "compat=0.10,cluster_size=512", "200k", &[SMALL]),
    kind!("v2-4k", "compat=0.10,cluster_size=4k", "4M", &[MEDIUM]),
    kind!("v2-64k", "compat=0.10", "4M", &[MEDIUM, PACKED]),
    kind!("v2-2m", "compat=0.10,cluster_size=2M", "20M", &[LARGE]),
    kind!("v2-snapshots", "compat=0.10,cluster_size=4k", "4M", SNAPSHOTS),
    kind!("v3-512", "cluster_size=512", "200k", &[SMALL]),
    kind!("v3-1k", "cluster_size=1k", "200k", &[SMALL]),
    kind!("v3-4k", "cluster_size=4k", "4M", &[MEDIUM]),
    kind!("v3-64k", "cluster_size=64k", "4M", &[MEDIUM]),
    kind!("v3-2m", "cluster_size=2M", "20M", &[LARGE]),
    kind!("refcount-1", "cluster_size=4k,refcount_bits=1", "4M", &[MEDIUM]),
    kind!("refcount-2", "cluster_size=4k,refcount_bits=2", "4M", SNAPSHOTS),
    kind!("refcount-4", "cluster_size=4k,refcount_bits=4", "4M", SNAPSHOTS),
    kind!("refcount-8", "cluster_size=4k,refcount_bits=8", "4M", SNAPSHOTS),
    kind!("refcount-32", "cluster_size=4k,refcount_bits=32", "4M", SNAPSHOTS),
    kind!("refcount-64", "cluster_size=4k,refcount_bits=64", "4M", SNAPSHOTS),
    kind!("refcount-1-512", "cluster_size=512,refcount_bits=1", "200k", &[SMALL]),
    kind!("refcount-64-512", "cluster_size=512,refcount_bits=64", "200k", &[SMALL]),
    kind!("deflate", "cluster_size=64k", "4M", &[MEDIUM, PACKED]),
    kind!("deflate-4k", "cluster_size=4k", "4M", &[MEDIUM, PACKED, Img(&["snapshot", "-c", "s", "IMAGE"])]),
    kind!("zstd", "cluster_size=64k,compression_type=zstd", "4M", &[MEDIUM, PACKED]),
    kind!(
        "subclusters",
        "extended_l2=on,cluster_size=64k",
        "4M",
        &[MEDIUM, PACKED, Io(&["write -q -P 0 1500k 3k", "write -q -z 3M 2k", "write -q -P 0 3500k 40k"]),]
    ),
    kind!("subclusters-16k", "extended_l2=on,cluster_size=16k", "4M", SNAPSHOTS),
    kind!("snapshots", "cluster_size=64k", "4M", SNAPSHOTS),
    kind!(
        "bitmaps",
        "cluster_size=64k",
        "4M",
        &[
            Img(&["bitmap", "--add", "-g", "64k", "IMAGE", "one"]),
            MEDIUM,
            Img(&["bitmap", "--add", "--disable", "IMAGE", "two"]),
            Img(&["bitmap", "--add", "-g", "512", "IMAGE", "a longer name"]),
            Io(&["write -q -P 0 2M 300k"]),
        ]
    ),
    kind!(
        "bitmaps-in-use",
        "cluster_size=4k",
        "4M",
        &[Img(&["bitmap", "--add", "-g", "512", "IMAGE", "one"]), MEDIUM, Abort("write -q -P 0 2M 300k"),]
    ),
    kind!("lazy", "lazy_refcounts=on,cluster_size=4k", "4M", &[MEDIUM]),
    kind!("dirty", "lazy_refcounts=on,cluster_size=4k", "4M", &[MEDIUM, Abort("write -q -P 0 2M 300k")]),
    kind!("data-file", "data_file=DATA", "4M", &[MEDIUM]),
    kind!("raw-data-file", "data_file=DATA,data_file_raw=on", "4M", &[MEDIUM]),
    kind!("backing", "cluster_size=4k,backing_file=BACKING,backing_fmt=raw", "4M", &[MEDIUM]),
    kind!("metadata", "cluster_size=4k,preallocation=metadata", "4M", &[MEDIUM]),
    kind!("falloc", "cluster_size=64k,preallocation=falloc", "4M", &[]),
    kind!("empty", "cluster_size=64k", "4M", &[]),
    kind!(
        "everything",
        "cluster_size=4k,compression_type=zstd",
        "4M",
        &[
            Img(&["bitmap", "--add", "IMAGE", "b"]),
            MEDIUM,
            PACKED,
            Img(&["snapshot", "-c", "one", "IMAGE"]),
            Io(&["write -q -P 0 512k 80k", "write -q -P 0 64k 200k"]),
            Img(&["snapshot", "-c", "two", "IMAGE"]),
        ]
    ),
];

/// Makes one image of every kind.
pub fn make_all(directory: &Path) -> Vec<Made> {
    KINDS.iter().map(|kind| make(directory, kind)).collect()
}

/// The image of that name.
pub fn make_one(directory: &Path, name: &str) -> Made {
    make(directory, KINDS.iter().find(|kind| kind.name == name).unwrap())
}

fn make(directory: &Path, kind: &Kind) -> Made {
    let path = directory.join(kind.name);
    let image = path.to_str().unwrap();
    let name = |what: &str| format!("{image}.{what}");
    let options = kind.options.replace("DATA", &name("data")).replace("BACKING", &name("backing"));
    if kind.options.contains("BACKING") {
        std::fs::write(name("backing"), vec![0; 1 << 20]).unwrap();
    }
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, image, kind.size]);
    for step in kind.steps {
        match step {
            Io(commands) => qemu_io(&path, commands),
            Img(arguments) => {
                let arguments: Vec<_> = arguments
                    .iter()
                    .map(|argument| if *argument == "IMAGE" { image } else { argument })
                    .collect();
                qemu("qemu-img", &arguments);
            }
            Abort(command) => {
                let output = super::run("qemu-io", &["-f", "qcow2", "-c", command, "-c", "abort", image]);
                assert!(!output.status.success(), "it was to be killed");
            }
        }
    }
    Made { name: kind.name, path }
}
