//! The power supply of a simulated host, which also knows what is to fail.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::hosts::{self, Act};
use crate::{Error, ErrorKind, Result};

/// The power supply of one simulated host, shared by all its devices. Counts every step that changes something.
#[derive(Debug, Default)]
pub struct Power(Mutex<PowerState>);

#[derive(Debug, Default)]
struct PowerState {
    /// Changing steps that were let through since the beginning.
    writes: u64,
    /// The value of `writes` at which it goes off.
    cut: Option<u64>,
    /// It went off.
    off: bool,
    /// Steps by what they are.
    acts: BTreeMap<Act, u64>,
    faults: Vec<Fault>,
    fired: u64,
}

/// Steps that fail.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// What they do.
    pub act: Act,
    /// So many of them still succeed.
    pub after: u64,
    /// So many fail then; `u64::MAX`: all.
    pub times: u64,
    /// How.
    pub kind: ErrorKind,
}

impl Power {
    /// Power that is on and stays on.
    pub fn new() -> Arc<Power> {
        Arc::default()
    }

    fn state(&self) -> MutexGuard<'_, PowerState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changing steps that were let through since the beginning.
    pub fn writes(&self) -> u64 {
        self.state().writes
    }

    /// Steps of that kind that were let through since the beginning.
    pub fn count(&self, act: Act) -> u64 {
        self.state().acts.get(&act).copied().unwrap_or_default()
    }

    /// Lets that many *further* changing steps through, then goes off. `None`: goes (back) on for good.
    pub fn cut_after(&self, writes: Option<u64>) {
        let mut state = self.state();
        state.cut = writes.map(|n| state.writes.saturating_add(n));
        state.off = false;
    }

    /// Goes off now.
    pub fn cut(&self) {
        self.state().off = true;
    }

    /// Whether it went off.
    pub fn is_off(&self) -> bool {
        self.state().off
    }

    /// Lets some of the further steps fail.
    pub fn fail(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Nothing fails any more. Returns how many steps did since the beginning.
    pub fn heal(&self) -> u64 {
        let mut state = self.state();
        state.faults.clear();
        state.fired
    }

    /// To be called before each change, with nothing locked: waits for the host's turn, and counts it; or fails with `Io`
    /// from the cut on.
    pub fn step(&self, act: Act) -> Result<()> {
        hosts::at(act);
        let mut state = self.state();
        if state.cut.is_some_and(|cut| state.writes >= cut) {
            state.off = true;
        }
        if state.off {
            return Err(off());
        }
        state.let_through(act)?;
        state.writes += 1;
        Ok(())
    }

    /// To be called before each look, with nothing locked: waits for the host's turn; fails once the power is off.
    pub fn check(&self, act: Act) -> Result<()> {
        hosts::at(act);
        let mut state = self.state();
        if state.off { Err(off()) } else { state.let_through(act) }
    }
}

impl PowerState {
    fn let_through(&mut self, act: Act) -> Result<()> {
        for fault in self.faults.iter_mut().filter(|fault| fault.act == act) {
            if fault.after > 0 {
                fault.after -= 1;
            } else if fault.times > 0 {
                fault.times -= 1;
                self.fired += 1;
                return Err(Error::new(fault.kind, "simulated fault"));
            }
        }
        *self.acts.entry(act).or_default() += 1;
        Ok(())
    }
}

fn off() -> Error {
    Error::new(ErrorKind::Io, "power is off")
}
