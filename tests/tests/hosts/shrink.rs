//! Which safeguards are noticed only together: delta debugging of what is taken out, by the same schedule again and again.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use vdsmstore_io::device::sim::hosts::mix;
use vdsmstore_io::mutation::{self, Switch};

use crate::schedule::{Chance, Schedule};

/// So many sets of one schedule are looked for.
const SETS: usize = 6;
/// So many steps earlier and later are almost the same schedule.
const SHIFT: i64 = 5;
/// One of so many schedules is compared with how it goes when nothing is out.
const COMPARED: u64 = 10;

/// The switches of these names; `a.*`: all of that beginning.
pub fn family(names: &str) -> Vec<Switch> {
    let mut family = Vec::new();
    for name in names.split('+') {
        let before = family.len();
        family.extend(mutation::all().filter(|switch| match name.strip_suffix('*') {
            Some(begin) => switch.name.starts_with(begin),
            None => switch.name == name,
        }));
        assert!(family.len() > before, "no switch {name:?}");
    }
    family
}

/// How the schedule fails without these; None: it does not.
pub fn without(schedule: &Schedule<'_>, out: &[Switch]) -> Option<String> {
    mutation::take_out(out);
    let outcome = catch_unwind(AssertUnwindSafe(|| schedule.run()));
    mutation::keep_all();
    let panic = outcome.err()?;
    let text = panic.downcast_ref::<String>().cloned();
    Some(text.unwrap_or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string).unwrap_or_default()))
}

/// Whether it goes another way without these; None: it fails.
fn differs(schedule: &Schedule<'_>, out: &[Switch]) -> Option<bool> {
    mutation::take_out(out);
    let without = catch_unwind(AssertUnwindSafe(|| schedule.run()));
    mutation::keep_all();
    let with = catch_unwind(AssertUnwindSafe(|| schedule.run()));
    Some(without.ok()? != with.ok()?)
}

/// Some of them without which it still fails, and without none of which less it would not.
pub fn shrink(mut out: Vec<Switch>, fails: impl Fn(&[Switch]) -> bool) -> Vec<Switch> {
    let mut parts = 2;
    while out.len() > 1 {
        let length = out.len().div_ceil(parts);
        let chunks: Vec<Vec<Switch>> = out.chunks(length).map(<[Switch]>::to_vec).collect();
        let but = |chunk: &Vec<Switch>| -> Vec<Switch> {
            out.iter().filter(|switch| !chunk.contains(switch)).copied().collect()
        };
        if let Some(chunk) = chunks.iter().find(|chunk| chunk.len() < out.len() && fails(chunk)) {
            (out, parts) = (chunk.clone(), 2);
        } else if let Some(rest) = chunks.iter().map(but).find(|rest| !rest.is_empty() && fails(rest)) {
            (out, parts) = (rest, (parts - 1).max(2));
        } else if parts >= out.len() {
            break;
        } else {
            parts = (parts * 2).min(out.len());
        }
    }
    out
}

/// The set without one of them, if that is noticed by almost the same schedule.
pub fn less<'a>(set: &[Switch], schedule: impl Fn() -> Schedule<'a>) -> Option<Vec<Switch>> {
    if set.len() < 2 {
        return None;
    }
    let shifts = (-SHIFT..=SHIFT).flat_map(|held| [-2, -1, 0, 1, 2].map(|pauses| (held, pauses)));
    let shifted = |(held, pauses): (i64, i64)| {
        let mut schedule = schedule();
        schedule.held = schedule.held.saturating_add_signed(held).clamp(1, schedule.context.steps);
        schedule.pauses = schedule.pauses.map(|steps| steps.saturating_add_signed(pauses).max(1));
        schedule
    };
    let pauses = schedule().pauses.is_some();
    let shifted: Vec<_> = shifts.filter(|(_, by)| pauses || *by == 0).map(shifted).collect();
    (0..set.len()).find_map(|index| {
        let mut less = set.to_vec();
        less.remove(index);
        let fails = |schedule: &&Schedule<'_>| without(schedule, &less).is_some();
        let found = shifted.iter().find(fails)?;
        without(found, &[]).is_none().then_some(less)
    })
}

/// Whether the schedule fails without all of these, and neither it nor almost the same one without fewer.
pub fn needs_all<'a>(set: &[Switch], schedule: impl Fn() -> Schedule<'a>) -> bool {
    without(&schedule(), set).is_some() && less(set, schedule).is_none()
}

pub fn told(set: &[Switch]) -> String {
    let names: Vec<_> = set.iter().map(|switch| switch.name).collect();
    names.join("+")
}

/// Tries schedules with the family taken out, or some of it; of what was found before, never all.
pub fn search<'a>(family: &[Switch], seed: u64, budget: Duration, choose: impl Fn(u64) -> Schedule<'a>) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let begun = Instant::now();
    let mut known: Vec<Vec<Switch>> = Vec::new();
    let mut already = BTreeSet::new();
    let (mut number, mut noticed, mut compared, mut differ) = (0, 0, 0, 0);
    while begun.elapsed() < budget {
        let schedule = choose(number);
        let mut chance = Chance(mix(seed ^ number));
        number += 1;
        let share = chance.below(3);
        let mut out: Vec<_> =
            family.iter().filter(|_| share == 0 || chance.below(3) < share).copied().collect();
        for set in &known {
            if set.iter().all(|switch| out.contains(switch)) {
                let kept = set[chance.below(set.len() as u64) as usize];
                out.retain(|switch| *switch != kept);
            }
        }
        if number % COMPARED == 0
            && let Some(differs) = differs(&schedule, &out)
        {
            compared += 1;
            differ += u64::from(differs);
        }
        for _ in 0..SETS {
            if out.is_empty() || without(&schedule, &out).is_none() {
                break;
            }
            if let Some(text) = without(&schedule, &[]) {
                println!("FAILS without any: {}: {text}", schedule.what);
                break;
            }
            noticed += 1;
            let mut set = shrink(out.clone(), |set| without(&schedule, set).is_some());
            // What is out makes steps fewer: with less of it the same goes wrong a few steps earlier or later.
            while let Some(less) = less(&set, || choose(number - 1)) {
                set = less;
            }
            let text = without(&schedule, &set).unwrap_or_default();
            let news = set.iter().any(|switch| switch.test.is_empty());
            if news && already.insert(told(&set)) {
                println!(
                    "TOGETHER {} | {} s | {} | {}",
                    told(&set),
                    begun.elapsed().as_secs(),
                    schedule.what,
                    text.strip_prefix(&schedule.what).unwrap_or(&text).replace('\n', " ")
                );
                known.push(set.clone());
            }
            let kept = set[chance.below(set.len() as u64) as usize];
            out.retain(|switch| *switch != kept);
        }
    }
    println!(
        "{number} schedules, noticed {noticed} times, made a difference in {differ} of {compared}, {} sets: {}",
        known.len(),
        told(family)
    );
    std::panic::set_hook(usual);
}
