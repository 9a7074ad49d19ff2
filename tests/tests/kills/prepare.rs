//! The cases of the operations.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;
use vdsmstore_core::options::{AutoFix, CopyOptions, CreateOptions, RemoveOptions, Strategy};
use vdsmstore_core::{Fix, FixType};
use vdsmstore_tests::dying::{Dying, Moment};

use crate::Random;
use crate::operation::{Case, clones};
use crate::place::{MIB, Place};

fn new_id() -> String {
    Uuid::new_v4().to_string()
}

/// Slow: three pieces in half a second.
fn bandwidth(slow: bool, bytes: u64) -> Value {
    if slow { json!(bytes * 4 / 3) } else { Value::Null }
}

pub fn create(place: &mut Place, _: &mut Random, _: bool) -> Case {
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

pub fn snapshot(place: &mut Place, _: &mut Random, _: bool) -> Case {
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

pub fn copy(place: &mut Place, _: &mut Random, slow: bool) -> Case {
    let new = new_id();
    Case {
        job: json!({ "call": "copy", "repo": "B", "image": place.large, "new": new, "connect": ["B", "A"],
            "bandwidth": bandwidth(slow, 32 * MIB) }),
        repo: "B",
        model: Some("large".to_owned()),
        grows: place.data("large"),
        clear: vec![("B", new.clone())],
        image: new,
    }
}

pub fn copy_with_base(place: &mut Place, _: &mut Random, slow: bool) -> Case {
    let new = new_id();
    Case {
        job: json!({ "call": "copy", "repo": "B", "image": place.other, "base": place.snapshot, "new": new,
            "connect": ["B", "A"], "bandwidth": bandwidth(slow, 16 * MIB) }),
        repo: "B",
        model: Some("other".to_owned()),
        grows: place.difference("other", "snapshot"),
        clear: vec![("B", new.clone())],
        image: new,
    }
}

pub fn import(place: &mut Place, random: &mut Random, slow: bool) -> Case {
    let new = new_id();
    let format = if random.below(2) == 0 { "raw" } else { "qcow2" };
    let path = place.model(if format == "raw" { "other" } else { "other.qcow2" });
    Case {
        job: json!({ "call": "import", "repo": "A", "path": path, "format": format, "new": new, "connect": ["A"],
            "bandwidth": bandwidth(slow, 16 * MIB) }),
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

/// The upper one differs in little from the lower one: that goes down.
pub fn merge_down(place: &mut Place, _: &mut Random, slow: bool) -> Case {
    let base = Some(&*place.snapshot);
    let lower = place.store.create_virtual_disk("A", None, base, "{}", &CreateOptions::default());
    let lower = lower.unwrap().to_string();
    let case = merge(place, &lower, slow);
    place.store.remove_image("A", &lower, &RemoveOptions::default()).unwrap();
    case
}

/// The lower one is small: it goes up.
pub fn merge_up(place: &mut Place, _: &mut Random, slow: bool) -> Case {
    let lower = place.sparse.clone();
    merge(place, &lower, slow)
}

fn merge(place: &mut Place, lower: &str, slow: bool) -> Case {
    let lower = place.copied("B", lower, None, &backup());
    let upper = place.copied("B", &place.other.clone(), Some(&lower), &CopyOptions::default());
    let options = RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() };
    let sizes = [place.allocated("B", &lower), place.allocated("B", &upper)];
    let grows = place.data("other") - sizes[0] - sizes[1];
    place.store.remove_image("B", &lower, &options).unwrap();
    let fix = the_fix(place, FixType::Merge);
    // The smaller one is moved.
    let bandwidth = bandwidth(slow, sizes[0].min(sizes[1]).cast_unsigned());
    Case {
        job: json!({ "call": "fix", "repo": "B", "fix": fix, "connect": ["B"], "bandwidth": bandwidth }),
        repo: "B",
        model: Some("other".to_owned()),
        grows,
        clear: vec![("B", upper.clone())],
        image: upper,
    }
}

/// Two layers on a snapshot become one volume.
pub fn flatten(place: &mut Place, _: &mut Random, slow: bool) -> Case {
    let base = place.snapshot.clone();
    let middle = place.copied("B", &place.disk.clone(), Some(&base), &backup());
    let image = place.copied("B", &place.other.clone(), Some(&middle), &CopyOptions::default());
    assert_eq!(place.store.get_image_info("B", &image).unwrap().depth, 3);
    place.store.set_image_strategy("B", &image, Strategy::Performance).unwrap();
    let fix = the_fix(place, FixType::Optimize);
    // What it gives back is shared where storage clones.
    let goes = if clones(place.kind()) { 0 } else { place.allocated("B", &image) };
    Case {
        job: json!({ "call": "fix", "repo": "B", "fix": fix, "connect": ["B"],
            "bandwidth": bandwidth(slow, 16 * MIB) }),
        repo: "B",
        model: Some("other".to_owned()),
        grows: place.size("other") - goes,
        clear: vec![("B", image.clone()), ("B", middle)],
        image,
    }
}

/// A copy was begun by a host that died of it.
pub fn mend(place: &mut Place, random: &mut Random, slow: bool) -> Case {
    for _ in 0..10 {
        let mut case = copy(place, random, true);
        let mut first = Dying::start(place.root(), &case.job);
        first.run_until(Some(&Moment::Done(1 + random.below(300), Duration::ZERO)));
        first.kill();
        let fixes = place.fixes("B");
        let is_it = |fix: &&Fix| fix.image_id.is_some_and(|id| id.to_string() == case.image);
        if let Some(fix) = fixes.iter().find(is_it) {
            let limit = if slow { 32 * MIB * 4 / 3 } else { 1 << 40 };
            case.grows -= place.allocated("B", &case.image);
            case.job =
                json!({ "call": "fix", "repo": "B", "fix": fix, "connect": ["B", "A"], "bandwidth": limit });
            return case;
        }
        place.clear(&case);
    }
    panic!("{}: no copy is interrupted", place.kind());
}

/// A removed snapshot, on which something is built.
pub fn bring_back(place: &mut Place, random: &mut Random, _: bool) -> Case {
    let kept = place.kept.clone();
    place.copied("B", &kept, None, &CopyOptions::default());
    place.store.set_image_user_data("B", &kept, "[7]").unwrap();
    let child = place.copied("B", &place.sparse.clone(), Some(&kept), &CopyOptions::default());
    let options = RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() };
    place.store.remove_image("B", &kept, &options).unwrap();
    let text = json!({ "n": random.below(1 << 30) }).to_string();
    Case {
        job: json!({ "call": "copy", "repo": "B", "image": kept, "userData": text, "connect": ["B", "A"] }),
        repo: "B",
        model: Some("sparse".to_owned()),
        grows: 0,
        clear: vec![("B", child), ("B", kept.clone())],
        image: kept,
    }
}

pub fn export(place: &mut Place, random: &mut Random, slow: bool) -> Case {
    let format = if random.below(2) == 0 { "raw" } else { "qcow2" };
    let path = place.model(&format!("exported-{}.{format}", new_id()));
    Case {
        job: json!({ "call": "export", "repo": "A", "image": place.other, "path": path, "format": format,
            "connect": ["A"], "bandwidth": bandwidth(slow, 16 * MIB) }),
        repo: "A",
        model: Some("other".to_owned()),
        grows: 0,
        clear: Vec::new(),
        image: place.other.clone(),
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

pub fn remove(place: &mut Place, _: &mut Random, _: bool) -> Case {
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

pub fn resize(place: &mut Place, random: &mut Random, _: bool) -> Case {
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

pub fn user_data(place: &mut Place, random: &mut Random, _: bool) -> Case {
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
