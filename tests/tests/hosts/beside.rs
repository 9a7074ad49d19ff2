//! One host held at one of its steps, while another does something whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vdsmstore_io::device::sim::hosts::{self, Act, Turn, Work};

/// Pauses of the second host after which it is taken to wait for the first, which then goes on.
const WAITS: u32 = 100;

/// The first is held before that step, counted from 1, until the second has ended. None: it has fewer steps.
pub fn beside(step: u64, first: Work<()>, second: Work<()>) -> Option<()> {
    let was_held = Arc::new(AtomicBool::new(false));
    let told = was_held.clone();
    let (mut holding, mut pauses) = (false, 0);
    let decide = move |turn: &Turn<'_>| {
        if turn.host == 0 && turn.step() == step && turn.act != Act::End {
            holding = true;
            told.store(true, Ordering::Relaxed);
        }
        if holding && turn.host == 1 {
            pauses += u32::from(turn.act == Act::Pause);
            holding = turn.act != Act::End && pauses < WAITS;
        }
        usize::from(holding)
    };
    hosts::run(step, vec![first, second], Box::new(decide));
    was_held.load(Ordering::Relaxed).then_some(())
}
