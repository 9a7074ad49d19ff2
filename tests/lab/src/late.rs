//! What a host did after it had been thought dead, from the log of strace.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A call that has returned.
#[derive(Debug)]
struct Call {
    name: String,
    path: String,
    /// What it returned, with its error.
    result: String,
    /// Seconds since the epoch.
    returned: f64,
}

/// `PID TIME NAME(ARGUMENTS) = RESULT <SECONDS>`, or the same in two lines with something between.
fn calls(text: &str) -> Vec<Call> {
    let mut unfinished = BTreeMap::<&str, (f64, &str)>::new();
    let mut calls = Vec::new();
    for line in text.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let Some((time, rest)) = rest.trim_start().split_once(' ') else { continue };
        let time: f64 = time.parse().unwrap();
        if let Some(begun) = rest.strip_suffix("<unfinished ...>") {
            unfinished.insert(pid, (time, begun));
            continue;
        }
        let resumed = rest.strip_prefix("<... ").and_then(|rest| rest.split_once("resumed>"));
        let (time, begun, rest) = match resumed {
            Some((_, rest)) => match unfinished.remove(pid) {
                Some((time, begun)) => (time, begun, rest),
                None => continue,
            },
            None => (time, rest, rest),
        };
        let Some((name, arguments)) = begun.split_once('(') else { continue };
        let path = arguments.split_once('<').and_then(|(_, path)| path.split_once('>'));
        let (Some((path, _)), Some((_, result))) = (path, rest.rsplit_once(" = ")) else { continue };
        let (result, lasted) = result.rsplit_once('<').unwrap_or((result, "0>"));
        let lasted: f64 = lasted.trim_end_matches('>').parse().unwrap();
        calls.push(Call {
            name: name.to_owned(),
            path: path.to_owned(),
            result: result.replace("(DELAYED)", "").trim().to_owned(),
            returned: time + lasted,
        });
    }
    calls
}

/// Whether the case did what it was frozen for after it had come back, and what became of it. `since`: when it was
/// about to be frozen, by its own clock.
pub fn judge(name: &str, log: &Path, said: &Path, since: f64) {
    let said = fs::read_to_string(said).unwrap();
    let calls = calls(&fs::read_to_string(log).unwrap());
    let late: Vec<&Call> = calls.iter().filter(|call| call.returned >= since).collect();
    let mut results = BTreeMap::<String, usize>::new();
    for call in &late {
        let what = if call.path.contains("/data/") { "data" } else { "records" };
        *results.entry(format!("{} of {what} = {}", call.name, call.result)).or_default() += 1;
    }
    println!("{name}: late: {results:?}");
    let in_room = |call: &&&Call| call.path.contains("/data/") == name.ends_with("-data");
    let writes =
        late.iter().filter(in_room).filter(|call| ["pwrite64", "ioctl", "linkat"].contains(&&*call.name));
    let writes: Vec<_> = writes.collect();
    assert!(!writes.is_empty(), "{name}: nothing of it was late: {calls:?}");
    if name.ends_with("-data") {
        // A write may go to the cache of the host; then it must not leave it.
        let failed = late.iter().any(|call| call.path.contains("/data/") && call.result.starts_with("-1"));
        assert!(failed, "{name}: a late write was not refused: {late:?}");
        assert!(said.contains("ended: ") && !said.contains("ended: done"), "{name}: {said}");
    }
    let links = late.iter().filter(|call| call.name == "linkat");
    for link in links {
        assert!(link.result.starts_with("-1"), "{name}: a late record was not refused: {link:?}");
    }
    let ended = said.lines().find(|line| line.starts_with("ended: ")).unwrap_or("it did not end");
    println!("{name}: {} late writes, each refused or lost; {ended}", writes.len());
}
