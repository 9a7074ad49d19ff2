//! Two hosts around the place of one safeguard, on simulated storage: one is held right before or after it, another one
//! does something else, and then the first goes on; or it was displaced meanwhile, or dies there.
//!
//! `VDSMSTORE_FOCUS=name` is about the place of that switch (`docs/mutations.md`), whether it is on or not, `a+b` about the
//! places of both; without it a few are chosen by `VDSMSTORE_SEED`. `VDSMSTORE_FOCUS_SECONDS` is how long it tries; with
//! `VDSMSTORE_FOCUS_SCHEDULE=n` it is that schedule alone, and with `VDSMSTORE_FOCUS_WAITS=1` nobody is displaced or dies.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::field_reassign_with_default,
    clippy::match_same_arms,
    clippy::needless_range_loop,
    clippy::struct_excessive_bools,
    clippy::too_many_arguments,
    clippy::unwrap_used,
    missing_docs,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

#[path = "causes/changing.rs"]
mod changing;
#[path = "hosts/deeds.rs"]
mod deeds;
#[path = "hosts/displaced.rs"]
mod displaced;
#[path = "hosts/invariants.rs"]
mod invariants;
#[allow(dead_code)]
#[path = "hosts/judge.rs"]
mod judge;
#[path = "causes/making.rs"]
mod making;
#[allow(dead_code)]
#[path = "causes/operation.rs"]
mod operation;
#[allow(dead_code)]
#[path = "hosts/operations.rs"]
mod operations;
#[allow(dead_code)]
#[path = "causes/raw.rs"]
mod raw;
#[allow(dead_code)]
#[path = "causes/scene.rs"]
mod scene;
#[path = "hosts/schedule.rs"]
mod schedule;
#[path = "hosts/shrink.rs"]
mod shrink;
#[path = "hosts/writing.rs"]
mod writing;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vdsmstore_io::device::sim::hosts::mix;
use vdsmstore_io::mutation::{self, Switch};

use deeds::{Deed, images};
use displaced::WAYS;
use scene::{Storage, pattern};
use schedule::{Chance, Context, Fate, First, Schedule, run_alone};

/// So many steps before and after the place are of interest.
const AROUND: u64 = 8;
/// Places of one context that are tried: the first ones, and the last.
const PLACES: usize = 24;
/// With fewer, neighbours are looked at, so far before and after.
const FEW: usize = 4;
const NEAR: usize = 3;
/// Of which all would take too long, or which leave a disk open for ever.
const SKIPPED: &[&str] =
    &["take 65 snapshots of a disk", "hold a disk open whose chain could be merged or replaced"];

/// The file that is imported: it stays as it is for the whole run.
fn file_to_import() -> &'static str {
    concat!(env!("CARGO_TARGET_TMPDIR"), "/focused-import.raw")
}

/// All that the first host may do, or some of it: one of so many scenes.
fn contexts(seed: u64, one_of: u64) -> Vec<Context> {
    let begun = Instant::now();
    // Another process of this may be importing it, and must not see it change.
    if std::fs::read(file_to_import()).ok().as_ref() != Some(&pattern(6)) {
        std::fs::write(file_to_import(), pattern(6)).unwrap();
    }
    let mut all = Vec::new();
    let operations = operations::all().filter(|operation| !SKIPPED.contains(&operation.name));
    let kinds =
        operations.flat_map(|operation| operation.storages.iter().map(move |storage| (operation, *storage)));
    for (index, (operation, storage)) in kinds.enumerate() {
        let order = mix(seed ^ mix(index as u64));
        if !order.is_multiple_of(one_of) {
            continue;
        }
        let mut chance = Chance(order);
        let seed = order % 1_000_000;
        let start = operations::start(operation, storage, seed);
        if start.wants.values().any(|want| want.lost) {
            continue;
        }
        let new = |start, first| Context::new(start, storage, operation, first, seed + 10);
        let steps = run_alone(&start.copy(), operation, None, seed + 20);
        all.push(new(start.clone(), First::Operation));
        for _ in 0..2 {
            let dies = 1 + chance.below(steps);
            let left = start.copy();
            run_alone(&left, operation, Some(dies), seed + 20);
            all.push(new(left, First::Repair));
            let deed = Deed::choose(&images(&start), &mut |below| chance.below(below), false);
            all.push(new(start.clone(), First::Deed(deed)));
        }
    }
    println!("{} contexts, {:.1} s", all.len(), begun.elapsed().as_secs_f64());
    all
}

/// Where somebody comes to that place. What is asked only where something is wrong already, is looked for at its
/// neighbours.
fn around(contexts: &[Context], focus: Switch) -> Around<'_> {
    let those = |switches: &[Switch]| -> Vec<_> {
        let found = contexts.iter().map(|context| (context, context.places(switches)));
        found.filter(|(_, places)| !places.is_empty()).collect()
    };
    let found = those(&[focus]);
    if found.len() >= FEW {
        return found;
    }
    let all: Vec<Switch> = mutation::all().filter(|switch| switch.place == focus.place).collect();
    let index = all.iter().position(|switch| *switch == focus).unwrap();
    let near = |near: usize| those(&all[index.saturating_sub(near)..(index + near + 1).min(all.len())]);
    let found = near(NEAR);
    if found.is_empty() { near(all.len()) } else { found }
}

/// A place of one of several switches, and who comes there.
type Around<'a> = Vec<(&'a Context, Vec<u64>)>;

/// Of each switch; those that nobody comes to are left out.
fn around_each<'a>(contexts: &'a [Context], focus: &[Switch]) -> Vec<Around<'a>> {
    let around = focus.iter().map(|switch| around(contexts, *switch));
    around.filter(|contexts| !contexts.is_empty()).collect()
}

/// `focus`: what it is called.
fn choose<'a>(around: &[Around<'a>], focus: &str, seed: u64, number: u64) -> Schedule<'a> {
    let mut chance = Chance(seed ^ mix(number));
    let contexts = match around {
        [only] => only,
        several => &several[chance.below(several.len() as u64) as usize],
    };
    let (context, places) = &contexts[chance.below(contexts.len() as u64) as usize];
    let nth = chance.below(places.len().min(PLACES) as u64) as usize;
    let place = if chance.below(2) == 0 { places[nth] } else { places[places.len() - 1 - nth] };
    // Right there is where it matters most.
    let around = if chance.below(2) == 0 { 2 } else { AROUND };
    let held = (place + 1 + chance.below(2 * around + 1)).saturating_sub(around).clamp(1, context.steps);
    // What nobody can prove dead, and held a disk, holds it for ever.
    let holds = matches!(context.first, First::Deed(Deed::Prepare(_) | Deed::Write))
        || context.operation.name == operations::REWRITES;
    let fate = match chance.below(8) {
        _ if holds && context.storage == Storage::Doubts => Fate::Waits,
        _ if std::env::var_os("VDSMSTORE_FOCUS_WAITS").is_some() => Fate::Waits,
        0..2 => Fate::Waits,
        2..7 => Fate::Displaced(WAYS[chance.below(WAYS.len() as u64) as usize]),
        _ => Fate::Dies,
    };
    let any = context.touched.is_empty() || chance.below(5) == 0;
    let images = if any { &context.images } else { &context.touched };
    let deeds: Vec<_> = if images.is_empty() || chance.below(3) == 0 {
        let count = [1, 1, 1, 2, 2, 3][chance.below(6) as usize];
        (0..count).map(|_| Deed::choose(images, &mut |below| chance.below(below), true)).collect()
    } else {
        let known = &images[chance.below(images.len() as u64) as usize];
        Deed::story(known, &mut |below| chance.below(below))
    };
    let mut few = || {
        let below = 1 << (1 + chance.below(8));
        1 + chance.below(below)
    };
    let (pauses, goes_on) = (few(), few());
    let pauses = (chance.below(3) == 0).then_some(pauses);
    // Else what lets the first go on, half way through a deed, keeps the rest of that from being seen.
    let goes_on = match chance.below(4) {
        0 => None,
        1 => Some(goes_on),
        _ => Some(1),
    };
    let mut what = format!(
        "VDSMSTORE_FOCUS={focus} VDSMSTORE_SEED={seed} VDSMSTORE_FOCUS_SCHEDULE={number}: {:?} of {:?} ({:?}) at step \
         {held} of {} (the place is after {place}), {fate:?}; meanwhile {deeds:?}, pausing after {pauses:?}, going on after {goes_on:?}",
        context.first, context.operation.name, context.storage, context.steps,
    );
    for (name, id) in &context.start.ids {
        what = what.replace(id, name);
    }
    Schedule { context, held, fate, deeds, pauses, goes_on, what }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Tries schedules around the places of these switches, which have `+` between them; in how many contexts somebody comes
/// there. `last`: the schedule that is tried.
/// `out`: what is taken out.
fn focus(
    contexts: &[Context],
    names: &str,
    out: Option<&[Switch]>,
    seed: u64,
    budget: Duration,
    last: &AtomicU64,
) -> usize {
    let begun = Instant::now();
    let around = around_each(contexts, &named(names));
    let count = around.iter().map(Vec::len).sum();
    if count == 0 {
        return 0;
    }
    if let Some(only) = number("VDSMSTORE_FOCUS_SCHEDULE") {
        choose(&around, names, seed, only).run();
        return count;
    }
    let together = out.filter(|out| out.len() > 1);
    let mut held = 0;
    let mut schedules = 0;
    while begun.elapsed() < budget || schedules < 20 {
        last.store(schedules, Ordering::Relaxed);
        let schedule = || choose(&around, names, seed, schedules);
        held += if let Some(out) = &together {
            // What fewer of them are noticed by is no news.
            if shrink::needs_all(out, schedule) {
                let text = shrink::without(&schedule(), out).unwrap_or_default();
                mutation::as_told();
                schedule().run();
                panic!("{text}");
            }
            1
        } else {
            u64::from(schedule().run().held)
        };
        schedules += 1;
    }
    println!(
        "{names}: in {count} contexts {schedules} schedules, held in {held}, {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    assert!(held > schedules / 2, "{names}: hardly held");
    count
}

fn named(names: &str) -> Vec<Switch> {
    mutation::named(names).unwrap_or_else(|name| panic!("no switch {name:?}"))
}

/// Without a name, so many, in one of so many scenes.
const USUAL: usize = 4;
const SCENES: u64 = 4;

#[test]
fn around_a_place() {
    let seed = number("VDSMSTORE_SEED").unwrap_or(1);
    println!("VDSMSTORE_SEED={seed}");
    if let Ok(names) = std::env::var("VDSMSTORE_FOCUS") {
        let seconds = number("VDSMSTORE_FOCUS_SECONDS").unwrap_or(60);
        // The same contexts with the switch on as without it.
        mutation::keep_all();
        let contexts = contexts(seed, 1);
        mutation::as_told();
        let out = std::env::var("VDSMSTORE_MUTATION").ok().map(|names| named(&names));
        let budget = Duration::from_secs(seconds);
        let count = focus(&contexts, &names, out.as_deref(), seed, budget, &AtomicU64::new(0));
        println!("{names}: in {count} contexts");
        return;
    }
    let contexts = contexts(seed, SCENES);
    let places: BTreeSet<&str> = contexts.iter().flat_map(|context| context.places.keys().copied()).collect();
    assert!(contexts.len() > 40 && places.len() > 60, "{} contexts, {} places", contexts.len(), places.len());
    let mut places: Vec<_> = places.into_iter().collect();
    places.sort_by_key(|name| name.bytes().fold(seed, |sum, byte| mix(sum ^ u64::from(byte))));
    for name in &places[..USUAL] {
        let count = focus(&contexts, name, None, seed, Duration::from_secs(1), &AtomicU64::new(0));
        assert!(count > 0, "{name}: nobody comes there");
    }
}

/// So many schedules are compared with and without a switch that survived.
const COMPARED: u64 = 60;

/// In how many schedules it makes a difference that the switches are taken out, though nobody finds anything wrong.
fn differs(contexts: &[Context], names: &str, seed: u64) -> usize {
    let switches = named(names);
    let around = around_each(contexts, &switches);
    let differs = |number: &u64| {
        mutation::take_out(&switches);
        let without = choose(&around, names, seed, *number).run();
        mutation::keep_all();
        without != choose(&around, names, seed, *number).run()
    };
    (0..COMPARED).filter(differs).count()
}

/// Takes out one after the other of those that `VDSMSTORE_FOCUS` names (`a+b`: both at once), and says which are noticed:
/// quicker than a process for each. With `VDSMSTORE_FOCUS_CONTROL=1` nothing is taken out, and nothing is to be noticed.
#[test]
#[ignore = "reports, and judges nothing"]
fn one_by_one() {
    let seed = number("VDSMSTORE_SEED").unwrap_or(1);
    let seconds = number("VDSMSTORE_FOCUS_SECONDS").unwrap_or(10);
    mutation::keep_all();
    let contexts = contexts(seed, 1);
    let names = std::env::var("VDSMSTORE_FOCUS").unwrap();
    let control = std::env::var_os("VDSMSTORE_FOCUS_CONTROL").is_some();
    for names in names.split_whitespace() {
        let switches = named(names);
        let begun = Instant::now();
        let last = AtomicU64::new(0);
        let tried = |work: &dyn Fn() -> usize| {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            mutation::keep_all();
            outcome
        };
        if !control {
            mutation::take_out(&switches);
        }
        let out = (!control).then_some(&switches[..]);
        let outcome = match tried(&|| focus(&contexts, names, out, seed, Duration::from_secs(seconds), &last))
        {
            Ok(0) => "not reached".to_owned(),
            Ok(_) if control => "passed".to_owned(),
            Ok(_) => {
                let differs = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    differs(&contexts, names, seed)
                }));
                mutation::keep_all();
                match differs {
                    Ok(differs) => format!("survived, and made a difference in {differs} of {COMPARED}"),
                    Err(_) => "FAILS without it too".to_owned(),
                }
            }
            Err(_) if control => "FAILS".to_owned(),
            Err(_) => {
                print!("#{}: ", last.load(Ordering::Relaxed));
                let around = around_each(&contexts, &switches);
                let again =
                    || usize::from(choose(&around, names, seed, last.load(Ordering::Relaxed)).run().held);
                if tried(&again).is_ok() { "noticed" } else { "FAILS without it too" }.to_owned()
            }
        };
        println!("{names}: {outcome} in {:.1} s", begun.elapsed().as_secs_f64());
    }
}

/// Which of these are noticed only together: takes out all of a family at once, and shrinks what is noticed to what is
/// needed for that. `VDSMSTORE_FOCUS` has the families, each with `+` between its switches; `a.*` are all of that
/// beginning. A set is told once, if it has a switch of which no test is known.
#[test]
#[ignore = "reports, and judges nothing"]
fn together() {
    let seed = number("VDSMSTORE_SEED").unwrap_or(1);
    let seconds = number("VDSMSTORE_FOCUS_SECONDS").unwrap_or(60);
    mutation::keep_all();
    let contexts = contexts(seed, 1);
    for family in std::env::var("VDSMSTORE_FOCUS").unwrap().split_whitespace() {
        let family = shrink::family(family);
        let around = around_each(&contexts, &family);
        if around.is_empty() {
            println!("nobody comes to {family:?}");
            continue;
        }
        let names: Vec<_> = family.iter().map(|switch| switch.name).collect();
        let names = names.join("+");
        shrink::search(&family, seed, Duration::from_secs(seconds), |number| {
            choose(&around, &names, seed, number)
        });
    }
}
