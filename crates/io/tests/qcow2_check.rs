//! The check against QEMU's: the same numbers, on sound images of every kind and on damaged ones.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use common::images::{self, Made};
use common::{Random, run, scratch};
use vdsmstore_io::qcow2::{self, Report};
use vdsmstore_io::{ErrorKind, FileDevice};

/// What both say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Numbers {
    corruptions: u64,
    leaks: u64,
    check_errors: u64,
    total: u64,
    allocated: u64,
    compressed: u64,
    fragmented: u64,
    end: u64,
}

impl Numbers {
    fn ours(report: &Report) -> Numbers {
        Numbers {
            corruptions: report.corruptions,
            leaks: report.leaks,
            check_errors: report.check_errors,
            total: report.total_clusters,
            allocated: report.allocated_clusters,
            compressed: report.compressed_clusters,
            fragmented: report.fragmented_clusters,
            end: report.image_end_offset,
        }
    }

    fn qemu(json: &str) -> Numbers {
        let number = |name: &str| {
            let name = format!("\"{name}\": ");
            let rest = json.split_once(&name).map_or("0", |(_, rest)| rest);
            rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
        };
        Numbers {
            corruptions: number("corruptions"),
            leaks: number("leaks"),
            check_errors: number("check-errors"),
            total: number("total-clusters"),
            allocated: number("allocated-clusters"),
            compressed: number("compressed-clusters"),
            fragmented: number("fragmented-clusters"),
            end: number("image-end-offset"),
        }
    }
}

/// What QEMU says: its numbers, or why it has none.
fn qemu_check(path: &Path) -> Result<Numbers, String> {
    let output = run("qemu-img", &["check", "-f", "qcow2", "--output=json", path.to_str().unwrap()]);
    let (json, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let code = output.status.code();
    if json.trim_end().ends_with('}') {
        let numbers = Numbers::qemu(&json);
        let expected = match numbers {
            Numbers { check_errors: 1.., .. } => 1,
            Numbers { corruptions: 1.., .. } => 2,
            Numbers { leaks: 1.., .. } => 3,
            _ => 0,
        };
        assert_eq!(code, Some(expected), "{numbers:?} {errors}");
        Ok(numbers)
    } else if code == Some(1) {
        Err(errors.into_owned())
    } else {
        Err(format!("crashed: {} {errors}", output.status))
    }
}

fn our_check(path: &Path) -> Result<Report, vdsmstore_io::Error> {
    qcow2::check(&FileDevice::open(path, false).unwrap())
}

#[test]
fn sound_images_of_every_kind_have_the_same_numbers() {
    let (_keep, directory) = scratch();
    let made = images::make_all(&directory);
    assert!(made.len() >= 30);
    let (mut leaky, mut marked) = (0, 0);
    for Made { name, path } in &made {
        let ours = our_check(path).unwrap();
        assert_eq!(Ok(Numbers::ours(&ours)), qemu_check(path), "{name}: {:?}", ours.findings);
        assert_eq!(ours.overlaps, 0, "{name}");
        assert_eq!(ours.findings.is_empty(), ours.is_clean(), "{name}");
        leaky += u64::from(!ours.is_clean());
        marked += u64::from(ours.dirty) + ours.bitmaps_in_use;
    }
    // The two that were left open.
    assert_eq!((leaky > 0, marked), (true, 2));
}

/// The known differences, by what shows them; `docs/formats/qcow2-check.md` gives the reasons.
fn difference(
    ours: &Result<Report, vdsmstore_io::Error>,
    qemu: &Result<Numbers, String>,
) -> Option<&'static str> {
    match (ours, qemu) {
        (_, Err(message)) if message.starts_with("crashed") => Some("QEMU crashes"),
        (Ok(report), Ok(numbers)) if Numbers::ours(report) == *numbers => None,
        // Neither can say all.
        (Ok(report), Err(_)) if report.check_errors > 0 => None,
        (Err(_), Err(_)) => None,
        (Ok(_), Err(message)) if message.contains("Could not open backing file") => {
            Some("QEMU opens the backing file that the header names")
        }
        (Ok(_), Err(message))
            if message.contains("'data-file' is required")
                || message.ends_with("No such file or directory\n") =>
        {
            Some("QEMU opens the data file that the header names")
        }
        _ => Some("unknown"),
    }
}

/// One byte of an image is changed, both look at it, and it is changed back.
fn flip(
    made: &Made,
    places: &[u64],
    random: &mut Random,
) -> (String, Result<Report, vdsmstore_io::Error>, Result<Numbers, String>) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&made.path).unwrap();
    let length = file.metadata().unwrap().len();
    let at = match random.below(10) {
        // Mostly where something is, or right beside it.
        0..=6 => (places[random.below(places.len() as u64) as usize] & !7) + random.below(8),
        7 | 8 => random.below(120),
        _ => random.below(length),
    }
    .min(length - 1);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    let mask = if random.below(2) == 0 { 1 << random.below(8) } else { 1 + random.below(255) as u8 };
    file.write_all_at(&[byte[0] ^ mask], at).unwrap();
    let (ours, qemu) = (our_check(&made.path), qemu_check(&made.path));
    file.write_all_at(&byte, at).unwrap();
    (format!("{}: byte {at:#x} {:#x} ^ {mask:#x}", made.name, byte[0]), ours, qemu)
}

#[test]
fn damaged_images_have_the_same_numbers() {
    let flips = if common::effort() > 1 { 10_000 } else { 300 };
    let next = AtomicU64::new(0);
    let tally = Mutex::new(BTreeMap::new());
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let (_keep, directory) = scratch();
                let made = images::make_all(&directory);
                let places: Vec<Vec<u64>> = made
                    .iter()
                    .map(|made| {
                        let bytes = std::fs::read(&made.path).unwrap();
                        (0..).zip(&bytes).filter(|(_, byte)| **byte != 0).map(|(at, _)| at).collect()
                    })
                    .collect();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= flips {
                        break;
                    }
                    let mut random = Random::new(seed + 1);
                    let index = random.below(made.len() as u64) as usize;
                    let (what, ours, qemu) = flip(&made[index], &places[index], &mut random);
                    let class = match difference(&ours, &qemu) {
                        Some(class) => class,
                        None if qemu.is_err() => "neither can tell",
                        None if ours.as_ref().is_ok_and(Report::is_clean) => "both find nothing",
                        None => "both find the same",
                    };
                    *tally.lock().unwrap().entry(class).or_insert(0u64) += 1;
                    if class == "unknown" {
                        let findings = ours
                            .as_ref()
                            .map(|report| report.findings.iter().take(5).cloned().collect::<Vec<_>>());
                        wrong.lock().unwrap().push(format!(
                            "seed {seed}, {what}\n  ours {:?}\n  qemu {qemu:?}\n  {findings:?}",
                            ours.as_ref().map(Numbers::ours)
                        ));
                    }
                }
            });
        }
    });
    let (tally, wrong) = (tally.into_inner().unwrap(), wrong.into_inner().unwrap());
    println!("{tally:#?}");
    assert!(wrong.is_empty(), "{} of {flips}:\n{}", wrong.len(), wrong[..wrong.len().min(30)].join("\n"));
    assert_eq!(tally.values().sum::<u64>(), flips);
    // Damage was done, and seen.
    assert!(tally["both find the same"] > flips / 10, "{tally:?}");
}

#[test]
fn what_is_no_image_is_refused() {
    let (_keep, directory) = scratch();
    let path = directory.join("image");
    for bytes in [vec![], vec![0; 100], vec![1; 70_000], b"QFI\xfb".to_vec()] {
        std::fs::write(&path, bytes).unwrap();
        let error = our_check(&path).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{error:?}");
    }
}
