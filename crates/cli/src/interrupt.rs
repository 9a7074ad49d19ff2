//! Ctrl-C and SIGTERM: the first asks the work to stop resumably, the second ends the program.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vdsmstore_core::{Error, ErrorKind, Result};

/// The exit status of interrupted work.
pub const EXIT: u8 = 130;

/// Whether a signal has come. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
    /// The program of `--exec`, which signals are for while it runs; 0: none.
    child: Arc<AtomicI32>,
}

impl Interrupt {
    /// Starts to listen.
    pub fn install() -> Result<Self> {
        let interrupt = Self::default();
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(|error| {
            Error::new(ErrorKind::Internal, format!("cannot listen for signals: {error}")).because(error)
        })?;
        let listener = interrupt.clone();
        thread::spawn(move || {
            for signal in signals.forever() {
                listener.received(signal);
            }
        });
        Ok(interrupt)
    }

    fn received(&self, signal: i32) {
        if let Some(child) = Pid::from_raw(self.child.load(Ordering::SeqCst)) {
            // A terminal has sent its Ctrl-C to the program too.
            let forward = match signal {
                SIGTERM => Signal::TERM,
                SIGHUP => Signal::HUP,
                _ => return,
            };
            let _ = kill_process(child, forward);
        } else if self.asked.swap(true, Ordering::SeqCst) {
            process::exit(i32::from(EXIT));
        }
    }

    /// Whether to stop.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// From now on signals are for that program; None: for us again.
    pub fn for_child(&self, pid: Option<u32>) {
        self.child.store(pid.and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0), Ordering::SeqCst);
    }

    /// `Stopped` if a signal has come.
    pub fn check(&self) -> Result<()> {
        if self.asked() { Err(Error::new(ErrorKind::Stopped, "interrupted")) } else { Ok(()) }
    }
}
