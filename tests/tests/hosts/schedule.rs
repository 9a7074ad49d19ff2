//! Two hosts, one of which is held at some step, while the other one does something else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vdsmstore_core::{Error, ErrorKind, Result, Store};
use vdsmstore_io::device::sim::hosts::{self, Act, Turn, mix};
use vdsmstore_io::mutation::{self, Switch};

use crate::deeds::{Deed, Doer, Effect, Known, Outlook, changed, images, is_polite};
use crate::displaced::{Displaced, walk};
use crate::operation::Operation;
use crate::scene::{self, Scene, Storage};
use crate::{invariants, judge, raw};

/// A host that waits longer for one that is held lets it go on.
const PATIENCE: Duration = Duration::from_mins(1);

/// Numbers by chance.
pub struct Chance(pub u64);

impl Chance {
    pub fn below(&mut self, below: u64) -> u64 {
        self.0 = mix(self.0);
        self.0 % below.max(1)
    }
}

/// What the first host does.
#[derive(Clone, Debug)]
pub enum First {
    /// The operation of the scene.
    Operation,
    /// It repairs what a host left that died in the middle of that.
    Repair,
    Deed(Deed),
}

/// What the first host does, and where it comes to the place.
#[derive(Clone)]
pub struct Context {
    pub start: Scene,
    pub storage: Storage,
    pub operation: &'static Operation,
    pub first: First,
    pub seed: u64,
    pub steps: u64,
    pub places: Places,
    /// The images that are there.
    pub images: Vec<Known>,
    /// Those of which it changes something: the ones that it can be disturbed at.
    pub touched: Vec<Known>,
}

/// The steps after which a host came to the place of a switch.
pub type Places = BTreeMap<&'static str, Vec<u64>>;

impl First {
    fn run(&self, doer: &Doer<'_>, effects: &mut Vec<Effect>) -> Result<()> {
        match self {
            First::Operation => (doer.operation.run)(doer.store, doer.scene),
            First::Repair => Deed::Fix.run(doer, effects),
            First::Deed(deed) => deed.run(doer, effects),
        }
    }
}

/// How many steps the operation takes alone; a host that dies at one of them leaves the scene as it is then.
pub fn run_alone(scene: &Scene, operation: &'static Operation, dies: Option<u64>, seed: u64) -> u64 {
    let count = Arc::new(AtomicU64::new(0));
    let (counted, worlds) = (count.clone(), scene.worlds.clone());
    let run = |store: &Store, scene: &Scene| drop((operation.run)(store, scene));
    walk(scene, seed, run, move |turn, me| {
        counted.store(turn.step(), Ordering::Relaxed);
        if dies == Some(turn.step()) {
            let mut chance = Chance(seed);
            for world in &worlds {
                world.crash(me, &mut || chance.below(2) == 0);
            }
        }
    });
    count.load(Ordering::Relaxed)
}

impl Context {
    /// Lets the first host work alone, and looks where it comes to which places.
    pub fn new(
        start: Scene,
        storage: Storage,
        operation: &'static Operation,
        first: First,
        seed: u64,
    ) -> Context {
        let places: Arc<Mutex<(u64, Places)>> = Arc::default();
        let watched = places.clone();
        let run = {
            let first = first.clone();
            move |store: &Store, scene: &Scene| {
                mutation::watch();
                let thaw = AtomicBool::new(false);
                let _ = first.run(&Doer { scene, store, operation, thaw: &thaw }, &mut Vec::new());
            }
        };
        let scene = start.copy();
        walk(&scene, seed, run, move |turn, _| {
            let (steps, places) = &mut *watched.lock().unwrap();
            for name in mutation::watched() {
                places.entry(name).or_default().push(*steps);
            }
            *steps = turn.step();
        });
        let (steps, places) = std::mem::take(&mut *places.lock().unwrap());
        let images = images(&start);
        let touched = changed(&start, &scene, &images);
        Context { start, storage, operation, first, seed, steps, places, images, touched }
    }

    /// After which steps the first host came to one of these places.
    pub fn places(&self, switches: &[Switch]) -> Vec<u64> {
        let places: BTreeSet<u64> =
            switches.iter().filter_map(|switch| self.places.get(switch.name)).flatten().copied().collect();
        places.into_iter().collect()
    }
}

/// What becomes of the first host where it is held.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    /// It only has to wait.
    Waits,
    Displaced(Displaced),
    Dies,
}

pub struct Schedule<'a> {
    pub context: &'a Context,
    /// The step before which it is held.
    pub held: u64,
    pub fate: Fate,
    pub deeds: Vec<Deed>,
    /// After so many steps the second lets the first go on.
    pub pauses: Option<u64>,
    /// After so many steps of the first the second goes on.
    pub goes_on: Option<u64>,
    pub what: String,
}

/// What a host came to.
#[derive(Default)]
struct Done {
    effects: Vec<Effect>,
    errors: Vec<Error>,
}

/// How a schedule went.
#[derive(PartialEq, Eq)]
pub struct Ran {
    /// The place where the first is held was reached.
    pub held: bool,
    /// Of both hosts.
    pub steps: u64,
    pub errors: Vec<ErrorKind>,
}

impl Schedule<'_> {
    pub fn run(&self) -> Ran {
        let Context { start, operation, first, seed, .. } = self.context;
        let (operation, what) = (*operation, &self.what);
        let scene = start.copy();
        let begun = judge::moments(&scene);
        // As when it was alone.
        let (one, me) = hosts::alone(*seed, || scene.join("first"));
        let (two, _) = hosts::alone(seed + 2, || scene.join("second"));
        let thaw = Arc::new(AtomicBool::new(false));
        let done: Arc<[Mutex<Done>; 2]> = Arc::default();
        let run_first: hosts::Work<()> = {
            let (scene, first, done) = (scene.clone(), first.clone(), done.clone());
            Box::new(move || {
                let thaw = AtomicBool::new(false);
                let mut effects = Vec::new();
                let doer = Doer { scene: &scene, store: &one, operation, thaw: &thaw };
                let outcome = first.run(&doer, &mut effects);
                let _ = one.close();
                if std::env::var_os("VDSMSTORE_SIM_TRACE").is_some() {
                    println!("{first:?}: {outcome:?}");
                }
                *done[0].lock().unwrap() = Done { effects, errors: outcome.err().into_iter().collect() };
            })
        };
        let run_second: hosts::Work<()> = {
            let (scene, done, thaw, deeds) = (scene.clone(), done.clone(), thaw.clone(), self.deeds.clone());
            Box::new(move || {
                let doer = Doer { scene: &scene, store: &two, operation, thaw: &thaw };
                for deed in deeds {
                    let mut effects = Vec::new();
                    let outcome = deed.run(&doer, &mut effects);
                    if std::env::var_os("VDSMSTORE_SIM_TRACE").is_some() {
                        println!("{deed:?}: {outcome:?}");
                    }
                    let mut done = done[1].lock().unwrap();
                    done.effects.append(&mut effects);
                    done.errors.extend(outcome.err());
                }
                two.close().unwrap();
            })
        };
        let reached = Arc::new(AtomicBool::new(false));
        let steps = Arc::new(AtomicU64::new(0));
        let decide = {
            let (scene, reached, thaw) = (scene.clone(), reached.clone(), thaw.clone());
            let (held, fate, pauses, mut goes_on) = (self.held, self.fate, self.pauses, self.goes_on);
            let (steps, seed) = (steps.clone(), *seed);
            // Whose turn it is, and since when.
            let (mut chosen, mut since) = (0, Duration::ZERO);
            let (mut holding, mut went_on) = (false, None);
            Box::new(move |turn: &Turn<'_>| {
                steps.fetch_add(1 + 1_000_000 * turn.host as u64, Ordering::Relaxed);
                if turn.host == 0 && turn.step() == held && turn.act != Act::End {
                    reached.store(true, Ordering::Relaxed);
                    (holding, chosen, since) = (true, 1, turn.now);
                    match fate {
                        Fate::Waits => {}
                        Fate::Displaced(way) => way.displace(&scene, me),
                        Fate::Dies => {
                            let mut chance = Chance(seed);
                            for world in &scene.worlds {
                                world.crash(me, &mut || chance.below(2) == 0);
                            }
                        }
                    }
                }
                let lets_go = turn.host == 1 && pauses == Some(turn.step());
                if holding && (lets_go || thaw.load(Ordering::Relaxed)) {
                    (holding, chosen, since, went_on) = (false, 0, turn.now, Some(0));
                }
                if let (0, Some(steps)) = (turn.host, &mut went_on) {
                    *steps += 1;
                    if goes_on.take_if(|goes_on| *goes_on == *steps).is_some() {
                        (chosen, since) = (1, turn.now);
                    }
                }
                // Who waits for the other, waits for it.
                if turn.host == chosen && turn.act == Act::Pause && turn.now.saturating_sub(since) > PATIENCE
                {
                    (holding, chosen, since) = (false, 1 - chosen, turn.now);
                }
                if turn.ended[chosen] { 1 - chosen } else { chosen }
            })
        };
        hosts::run(seed + 1, vec![run_first, run_second], decide);
        let [one, two] = [0, 1].map(|host| std::mem::take(&mut *done[host].lock().unwrap()));
        let waits = matches!(self.fate, Fate::Waits);
        for error in one.errors.iter().filter(|_| waits).chain(&two.errors) {
            assert!(is_polite(error.kind()), "{what}: {error:?}");
        }
        let returned = match first {
            First::Operation => Some(one.errors.is_empty()),
            First::Repair => Some(false),
            First::Deed(_) => None,
        };
        let mut effects = [one.effects, two.effects];
        if !waits {
            // Who lost its locks may read anything.
            effects[0].retain(|effect| !matches!(effect, Effect::Seen(..)));
        }
        let outlook = Outlook::new(start, operation, returned, &effects);
        hosts::alone(seed + 3, || self.judge(&scene, &begun, &outlook));
        let errors = one.errors.iter().chain(&two.errors).map(Error::kind).collect();
        Ran { held: reached.load(Ordering::Relaxed), steps: steps.load(Ordering::Relaxed), errors }
    }

    /// The invariants hold. What a host that is dead for certain still wrote counts only if the bytes are wrong for it; and
    /// whoever died holding a disk does not hold it.
    fn hold(&self, scene: &Scene, begun: &[invariants::Moment; 2]) {
        let dead = matches!(self.fate, Fate::Displaced(way) if way.is_certain());
        for (now, before) in judge::moments(scene).iter().zip(begun) {
            let mut violations = now.violations(Some(before));
            // What was broken before is judged when it was mended.
            let former = before.violations(None);
            violations.retain(|what| {
                !(what.starts_with("I11") || dead && what.starts_with("I10") || former.contains(what))
            });
            assert!(violations.is_empty(), "{}: {violations:#?}", self.what);
        }
    }

    fn judge(&self, scene: &Scene, begun: &[invariants::Moment; 2], outlook: &Outlook) {
        let (what, model) = (&self.what, &outlook.model);
        self.hold(scene, begun);
        let (store, _) = scene.join("judge");
        if std::env::var_os("VDSMSTORE_SIM_TRACE").is_some() {
            for repo in 0..2 {
                let raw::Raw { images, volumes, holders, children, .. } = scene.raw(repo);
                println!("{}: {images:#?} {volumes:#?} {holders:?} {children:?}", scene::NAMES[repo]);
            }
        }
        judge::look(scene, &store, model, false, what);
        outlook.hold(&store, what);
        judge::fix_all(&store, model, what);
        judge::look(scene, &store, model, true, what);
        outlook.hold(&store, what);
        let broken = model.iter().any(|((repo, id), allowed)| {
            let status = || store.get_image_status(scene::NAMES[*repo], id);
            allowed.lost && status().is_ok_and(|status| status.status == vdsmstore_core::Status::Broken)
        });
        store.close().unwrap();
        self.hold(scene, begun);
        // Two snapshots of one moment keep what is below them from being merged.
        let shared = |repo: usize| {
            let raw = scene.raw(repo);
            let absorbed = raw.images.values().any(|image| image["state"] == "absorbed");
            absorbed && raw.volumes.keys().any(|volume| raw.held_by(volume).len() > 1)
        };
        for repo in (0..2).filter(|repo| !broken && !shared(*repo)) {
            scene.raw(repo).nothing_left_over(&format!("{what}: after all fixes, {}", scene::NAMES[repo]));
        }
    }
}
