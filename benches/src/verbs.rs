//! Each verb in repositories of ten, a thousand and a hundred thousand images.

use std::collections::BTreeMap;
use std::path::Path;

use uuid::Uuid;
use vdsmstore_core::Store;
use vdsmstore_core::options::CreateOptions;

use crate::large::Large;
use crate::numbers::{Samples, seconds, timed, turns};
use crate::scene::{Result, connect, disk, fill_with_noise, format, settle, store};
use crate::verb::Verb;

/// Of so many images of each repository one is taken for a call.
const FEW: usize = 8;

/// A repository that stays connected.
struct Place<'a> {
    large: &'a Large,
    store: Store,
}

/// A repository with one small snapshot, to copy from.
struct Other {
    path: std::path::PathBuf,
    snapshot: String,
}

/// Where and how a call was made: images, verb, in a process of its own.
type Case = (usize, &'static str, bool);

/// Measures all verbs in all repositories, turn by turn.
pub fn run(directory: &Path, repositories: &[&Large]) -> Result<()> {
    let other = Other::make(&directory.join("other"))?;
    let mut places = Vec::new();
    for large in repositories {
        let store = store()?;
        connect(&store, "R", &large.path)?;
        connect(&store, "S", &other.path)?;
        places.push(Place { large, store });
    }
    // Those few are warm in each of them before anything counts: the first look at one goes to the disk, at any size.
    for place in &places {
        let plain = &place.large.plain;
        for (id, _) in &plain[plain.len().saturating_sub(FEW)..] {
            Verb::Read.call(&place.store, &id.hyphenated().to_string())?;
        }
    }
    let mut samples = BTreeMap::<Case, Samples>::new();
    let mut seed = 5;
    for turn in 0..=turns(15, 60) {
        for index in 0..places.len() {
            // Who is first changes.
            let place = &places[(index + turn) % places.len()];
            for alone in [false, true] {
                let times = place.turn(&other, alone, &mut seed)?;
                // The first one warms up.
                for (verb, time) in times.into_iter().filter(|_| turn > 0) {
                    samples.entry((place.large.images(), verb.name(), alone)).or_default().push_time(time);
                }
            }
        }
    }
    report(repositories, &samples);
    Ok(())
}

impl Other {
    fn make(path: &Path) -> Result<Other> {
        format(path)?;
        let store = store()?;
        connect(&store, "S", path)?;
        let disk = disk(&store, "S", crate::large::SIZE)?;
        let open = store.open_image("S", &disk, true)?;
        let mut data = vec![0; 64 << 10];
        fill_with_noise(&mut data, &mut 7);
        open.write(0, &data)?;
        open.close()?;
        let snapshot = store.create_snapshot("S", &disk, "{}", &CreateOptions::default())?.to_string();
        Ok(Other { path: path.to_owned(), snapshot })
    }
}

impl Place<'_> {
    /// Calls each verb once.
    fn turn(&self, other: &Other, alone: bool, seed: &mut u64) -> Result<Vec<(Verb, std::time::Duration)>> {
        let made = disk(&self.store, "R", crate::large::SIZE)?;
        let goes = disk(&self.store, "R", crate::large::SIZE)?;
        let mut left = vec![made.clone()];
        let mut times = Vec::new();
        for verb in Verb::ALL {
            let any = self.any(seed).hyphenated().to_string();
            let image = match verb {
                Verb::Snapshot => &made,
                Verb::Remove => &goes,
                Verb::Copy => &other.snapshot,
                _ => &any,
            };
            let (time, new) = timed(|| {
                if alone {
                    verb.spawn(&self.large.path, &other.path, image)
                } else {
                    verb.call(&self.store, image)
                }
            })?;
            times.push((verb, time));
            if !new.is_empty() {
                left.push(new);
            }
        }
        for image in left {
            Verb::Remove.call(&self.store, &image)?;
        }
        settle(&self.store)?;
        Ok(times)
    }

    /// A disk that was there from the beginning: the same few in each repository, for who looks at a record for the
    /// first time since it connected syncs it, in repositories of any size.
    fn any(&self, seed: &mut u64) -> Uuid {
        let plain = &self.large.plain;
        let back = crate::scene::noise(seed) as usize % plain.len().min(FEW);
        // From the end: what the check damages afterwards is at the beginning.
        plain[plain.len() - 1 - back].0
    }
}

fn report(repositories: &[&Large], samples: &BTreeMap<Case, Samples>) {
    let sizes: Vec<usize> = repositories.iter().map(|large| large.images()).collect();
    for (alone, title) in
        [(false, "in a running process"), (true, "connect + verb + disconnect in a new process")]
    {
        println!("\n{title}: median of a call, by images; ratio to {} images: median (min to max)", sizes[0]);
        for verb in Verb::ALL {
            let of = |size: usize| samples.get(&(size, verb.name(), alone)).cloned().unwrap_or_default();
            print!("{:<18}", verb.name());
            let few = of(sizes[0]);
            for &size in &sizes {
                print!(" {:>10}", seconds(of(size).median()));
            }
            for &size in &sizes[1..] {
                let many = of(size);
                let medians = many.median() / few.median();
                print!("   {size}: {medians:.2}, by turn {}", many.over(&few).ratio());
            }
            println!();
        }
    }
}
