//! Switches that take out one safeguard each, so that the tests can be seen to notice: `docs/mutations.md`.
//! Several may be out at once.
//!
//! Only with the feature `sim`. Without it [`without!`](crate::without) is `false`, and no binary has the names.

/// Whether the safeguard of that name is taken out in this process.
#[cfg(feature = "sim")]
#[macro_export]
macro_rules! without {
    ($name:literal) => {
        $crate::mutation::active($name)
    };
}

/// Whether the safeguard of that name is taken out in this process: never, without the feature `sim`.
#[cfg(not(feature = "sim"))]
#[macro_export]
macro_rules! without {
    ($name:literal) => {
        false
    };
}

#[cfg(feature = "sim")]
pub use switches::{Switch, active, all, as_told, keep_all, named, reached, take_out, watch, watched};

#[cfg(feature = "sim")]
mod switches {
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::fmt::Write as _;
    use std::process::exit;
    use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
    use std::sync::{Mutex, OnceLock, PoisonError, RwLock};

    /// The name of the switch that is on, or several with `+` between them.
    const CHOICE: &str = "VDSMSTORE_MUTATION";
    /// A file that is made when the place of a switch that is on is reached for the first time. With no switch on, it gets
    /// the names of all whose places are reached.
    const WITNESS: &str = "VDSMSTORE_MUTATION_REACHED";
    /// A process that is asked for a switch that does not exist ends with this status.
    const NO_SUCH_SWITCH: i32 = 97;

    type Names = BTreeSet<&'static str>;

    /// What this process was asked for.
    enum Mode {
        Nothing,
        /// These switches are on.
        Without(Names),
        /// None is; which places are reached?
        Listing(Mutex<BTreeSet<String>>),
    }

    static MODE: OnceLock<Mode> = OnceLock::new();
    static REACHED: AtomicU64 = AtomicU64::new(0);

    thread_local! {
        /// The switches to whose places this thread came, if it watches for them.
        static WATCHED: RefCell<Option<Names>> = const { RefCell::new(None) };
    }

    /// Who says what is out: one of the three below.
    static CHOSEN_BY: AtomicU8 = AtomicU8::new(ENVIRONMENT);
    const ENVIRONMENT: u8 = 0;
    const NOBODY: u8 = 1;
    const TEST: u8 = 2;

    /// What a test takes out.
    static TAKEN_OUT: RwLock<Names> = RwLock::new(Names::new());

    /// One line of the table.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Switch {
        /// As in `without!`.
        pub name: &'static str,
        /// The file, from the root of the sources.
        pub place: &'static str,
        /// What is taken out.
        pub out: &'static str,
        /// The test that notices it soonest; empty: none.
        pub test: &'static str,
    }

    /// The table of all switches.
    pub fn all() -> impl Iterator<Item = Switch> {
        include_str!("mutations.txt").lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let mut columns = line.split('|').map(str::trim);
            Some(Switch {
                name: columns.next()?,
                place: columns.next()?,
                out: columns.next()?,
                test: columns.next()?,
            })
        })
    }

    /// The switches of these names, with `+` between them; an error: the name of one that does not exist.
    pub fn named(names: &str) -> Result<Vec<Switch>, &str> {
        names.split('+').map(|name| all().find(|switch| switch.name == name).ok_or(name)).collect()
    }

    /// Whether the switch is one of those that `VDSMSTORE_MUTATION` names, or that a test took out.
    pub fn active(name: &'static str) -> bool {
        WATCHED.with_borrow_mut(|watched| watched.as_mut().map(|names| names.insert(name)));
        match CHOSEN_BY.load(Ordering::Relaxed) {
            ENVIRONMENT => {}
            TEST => return TAKEN_OUT.read().unwrap_or_else(PoisonError::into_inner).contains(name),
            _ => return false,
        }
        match MODE.get_or_init(choose) {
            Mode::Nothing => false,
            Mode::Without(chosen) => {
                let active = chosen.contains(name);
                if active && REACHED.fetch_add(1, Ordering::Relaxed) == 0 {
                    witness("");
                }
                active
            }
            Mode::Listing(names) => {
                let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
                if names.insert(name.to_owned()) {
                    let lines = names.iter().fold(String::new(), |mut lines, name| {
                        // Writing to a String cannot fail.
                        let _ = writeln!(lines, "{name}");
                        lines
                    });
                    witness(&lines);
                }
                false
            }
        }
    }

    /// How often the places of the switches that are on were reached in this process.
    pub fn reached() -> u64 {
        REACHED.load(Ordering::Relaxed)
    }

    /// Takes these out from now on, and no others, whatever the environment says.
    pub fn take_out(switches: &[Switch]) {
        *TAKEN_OUT.write().unwrap_or_else(PoisonError::into_inner) =
            switches.iter().map(|switch| switch.name).collect();
        CHOSEN_BY.store(TEST, Ordering::Relaxed);
    }

    /// Takes none out from now on, whatever the environment says.
    pub fn keep_all() {
        CHOSEN_BY.store(NOBODY, Ordering::Relaxed);
    }

    /// Does what the environment says from now on.
    pub fn as_told() {
        CHOSEN_BY.store(ENVIRONMENT, Ordering::Relaxed);
    }

    /// From now on this thread remembers to which places it comes, be the switches on or not.
    pub fn watch() {
        WATCHED.set(Some(BTreeSet::new()));
    }

    /// To which places it came since it was asked last.
    pub fn watched() -> Names {
        WATCHED.with_borrow_mut(|watched| watched.as_mut().map(std::mem::take).unwrap_or_default())
    }

    fn choose() -> Mode {
        let Ok(wanted) = std::env::var(CHOICE) else {
            return match std::env::var_os(WITNESS) {
                Some(_) => Mode::Listing(Mutex::default()),
                None => Mode::Nothing,
            };
        };
        match named(&wanted) {
            Ok(switches) => Mode::Without(switches.iter().map(|switch| switch.name).collect()),
            Err(name) => {
                // A test that fails would seem to have noticed something.
                eprintln!("{CHOICE}: there is no switch {name:?}");
                exit(NO_SUCH_SWITCH)
            }
        }
    }

    fn witness(text: &str) {
        if let Some(path) = std::env::var_os(WITNESS)
            && let Err(error) = std::fs::write(&path, text)
        {
            eprintln!("{WITNESS}: {}: {error}", path.display());
            exit(NO_SUCH_SWITCH);
        }
    }
}
