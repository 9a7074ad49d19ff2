//! The operations that are killed, and what must come of each.

use std::fs;

use serde_json::{Value, json};
use uuid::Uuid;
use vdsmstore_core::options::{AutoFix, CopyOptions, CreateOptions, RemoveOptions, Strategy};
use vdsmstore_core::{Fix, FixType};

use crate::place::{MIB, Place};
use crate::{Random, Stage};

/// A kind of operation.
pub struct Operation {
    pub name: &'static str,
    /// It moves data, and tells how much.
    pub fills: bool,
    pub prepare: fn(&mut Place, &mut Random) -> Case,
    /// Where it was when it died; asked only if something is unfinished.
    pub stage: Judge,
}

/// How the stage is found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Judge {
    /// It makes an image.
    New,
    /// It runs a fix, which was listed before.
    Fix(FixType),
    Remove,
    Resize,
    UserData,
}

/// An operation about to be started.
pub struct Case {
    /// For the host that dies.
    pub job: Value,
    /// The image that it makes or changes.
    pub repo: &'static str,
    pub image: String,
    /// The file that says what the image must hold; None: it must be gone.
    pub model: Option<String>,
    /// Bytes that it takes when it is done.
    pub grows: i64,
    /// What is removed afterwards.
    pub clear: Vec<(&'static str, String)>,
}

pub const OPERATIONS: &[Operation] = &[
    Operation { name: "create on a snapshot", fills: false, prepare: create, stage: Judge::New },
    Operation { name: "snapshot", fills: false, prepare: snapshot, stage: Judge::New },
    Operation { name: "copy", fills: true, prepare: copy, stage: Judge::New },
    Operation { name: "copy with a base", fills: true, prepare: copy_with_base, stage: Judge::New },
    Operation { name: "import", fills: true, prepare: import, stage: Judge::New },
    Operation { name: "merge", fills: true, prepare: merge, stage: Judge::Fix(FixType::Merge) },
    Operation { name: "optimize", fills: true, prepare: optimize, stage: Judge::Fix(FixType::Optimize) },
    Operation { name: "remove", fills: false, prepare: remove, stage: Judge::Remove },
    Operation { name: "resize", fills: false, prepare: resize, stage: Judge::Resize },
    Operation { name: "user data", fills: false, prepare: user_data, stage: Judge::UserData },
];

/// By how much of the data was in place.
pub fn filling(done: u64) -> Stage {
    match done {
        0 => Stage::Intent,
        1..500 => Stage::FirstHalf,
        _ => Stage::SecondHalf,
    }
}

fn new_id() -> String {
    Uuid::new_v4().to_string()
}

/// Every other fill is slow: three pieces in half a second.
fn bandwidth(random: &mut Random, bytes: u64) -> Value {
    if random.below(2) == 0 { json!(bytes * 4 / 3) } else { Value::Null }
}

fn create(place: &mut Place, _: &mut Random) -> Case {
    let new = new_id();
    Case {
        job: json!({ "call": "create", "repo": "A", "base": place.snapshot, "new": new, "connect": ["A"],
            "userData": "{\"name\": \"new\"}" }),
        repo: "A",
        model: Some("snapshot".to_owned()),
        grows: 0,
        clear: vec![("A", new.clone())],
        image: new,
    }
}

fn snapshot(place: &mut Place, _: &mut Random) -> Case {
    let new = new_id();
    Case {
        job: json!({ "call": "snapshot", "repo": "A", "image": place.disk, "new": new, "connect": ["A"],
            "userData": "{\"name\": \"new\"}" }),
        repo: "A",
        model: Some("disk".to_owned()),
        grows: 0,
        clear: vec![("A", new.clone())],
        image: new,
    }
}

fn copy(place: &mut Place, random: &mut Random) -> Case {
    let new = new_id();
    Case {
        job: json!({ "call": "copy", "repo": "B", "image": place.large, "new": new, "connect": ["B", "A"],
            "bandwidth": bandwidth(random, 32 * MIB) }),
        repo: "B",
        model: Some("large".to_owned()),
        grows: place.data("large"),
        clear: vec![("B", new.clone())],
        image: new,
    }
}

fn copy_with_base(place: &mut Place, random: &mut Random) -> Case {
    let new = new_id();
    Case {
        job: json!({ "call": "copy", "repo": "B", "image": place.other, "base": place.snapshot, "new": new,
            "connect": ["B", "A"], "bandwidth": bandwidth(random, 16 * MIB) }),
        repo: "B",
        model: Some("other".to_owned()),
        grows: place.difference("other", "snapshot"),
        clear: vec![("B", new.clone())],
        image: new,
    }
}

fn import(place: &mut Place, random: &mut Random) -> Case {
    let new = new_id();
    let format = if random.below(2) == 0 { "raw" } else { "qcow2" };
    let path = place.model(if format == "raw" { "other" } else { "other.qcow2" });
    Case {
        job: json!({ "call": "import", "repo": "A", "path": path, "format": format, "new": new, "connect": ["A"],
            "bandwidth": bandwidth(random, 16 * MIB) }),
        repo: "A",
        model: Some("other".to_owned()),
        grows: place.data("other"),
        clear: vec![("A", new.clone())],
        image: new,
    }
}

fn backup() -> CopyOptions {
    CopyOptions { mutable: false, ..CopyOptions::default() }
}

fn merge(place: &mut Place, random: &mut Random) -> Case {
    // The lower one large: what is above goes down into it; small: it goes up.
    let lower = if random.below(2) == 0 { place.disk.clone() } else { place.sparse.clone() };
    let lower = place.copied("B", &lower, None, &backup());
    let upper = place.copied("B", &place.other.clone(), Some(&lower), &CopyOptions::default());
    let options = RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() };
    let grows = place.data("other") - place.allocated("B", &lower) - place.allocated("B", &upper);
    place.store.remove_image("B", &lower, &options).unwrap();
    let fix = the_fix(place, FixType::Merge);
    Case {
        job: json!({ "call": "fix", "repo": "B", "fix": fix, "connect": ["B"], "bandwidth": bandwidth(random, 6 * MIB) }),
        repo: "B",
        model: Some("other".to_owned()),
        grows,
        clear: vec![("B", upper.clone())],
        image: upper,
    }
}

fn optimize(place: &mut Place, random: &mut Random) -> Case {
    let base = place.snapshot.clone();
    let image = place.copied("B", &place.other.clone(), Some(&base), &CopyOptions::default());
    place.store.set_image_strategy("B", &image, Strategy::Performance).unwrap();
    let fix = the_fix(place, FixType::Optimize);
    Case {
        job: json!({ "call": "fix", "repo": "B", "fix": fix, "connect": ["B"],
            "bandwidth": bandwidth(random, 16 * MIB) }),
        repo: "B",
        model: Some("other".to_owned()),
        grows: place.size("other") - place.allocated("B", &image),
        clear: vec![("B", image.clone())],
        image,
    }
}

/// The only one of its type in B.
fn the_fix(place: &Place, fix_type: FixType) -> Fix {
    let fixes = place.fixes("B");
    let mut found = fixes.iter().filter(|fix| fix.fix_type == fix_type);
    match (found.next(), found.next()) {
        (Some(fix), None) => fix.clone(),
        _ => panic!("{}: not one fix {fix_type:?}: {fixes:#?}", place.kind()),
    }
}

fn remove(place: &mut Place, _: &mut Random) -> Case {
    let image = place.copied("B", &place.large.clone(), None, &CopyOptions::default());
    place.store.set_image_user_data("B", &image, "[1]").unwrap();
    Case {
        job: json!({ "call": "remove", "repo": "B", "image": image, "connect": ["B"] }),
        repo: "B",
        model: None,
        grows: -place.allocated("B", &image),
        clear: Vec::new(),
        image,
    }
}

fn resize(place: &mut Place, random: &mut Random) -> Case {
    const SIZE: u64 = 24 * MIB;
    let overlay = random.below(2) == 0;
    let (size, base, options) = if overlay {
        (None, Some(place.snapshot.as_str()), CreateOptions::default())
    } else {
        let options = CreateOptions { strategy: Strategy::Performance, ..CreateOptions::default() };
        (Some(4 * MIB as i64), None, options)
    };
    let image = place.store.create_virtual_disk("A", size, base, "{}", &options).unwrap().to_string();
    place.settled("A", &image);
    let model = if overlay { "snapshot" } else { "nothing" };
    // The same, longer.
    let mut data = if overlay { fs::read(place.model(model)).unwrap() } else { Vec::new() };
    data.resize(SIZE as usize, 0);
    fs::write(place.model("resized"), data).unwrap();
    Case {
        job: json!({ "call": "resize", "repo": "A", "image": image, "size": SIZE, "connect": ["A"] }),
        repo: "A",
        model: Some("resized".to_owned()),
        grows: if overlay { 0 } else { (SIZE - 4 * MIB) as i64 },
        clear: vec![("A", image.clone())],
        image,
    }
}

fn user_data(place: &mut Place, random: &mut Random) -> Case {
    let text = json!({ "n": random.below(1 << 30), "text": "x".repeat(50_000) }).to_string();
    Case {
        job: json!({ "call": "user data", "repo": "A", "image": place.disk, "userData": text, "connect": ["A"] }),
        repo: "A",
        image: place.disk.clone(),
        model: Some("disk".to_owned()),
        grows: 0,
        clear: Vec::new(),
    }
}
