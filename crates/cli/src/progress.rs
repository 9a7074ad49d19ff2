//! The progress bar: one line on standard error, only on a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use vdsmstore_core::TaskInfo;

use crate::output::put;
use crate::size::human;

const REDRAW: Duration = Duration::from_millis(100);
const WIDTH: usize = 24;

/// Draws what the store's tasks report.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
    terminal: bool,
    drawn: Option<Instant>,
    /// When the stage that is shown began, and which it is.
    stage: Option<(String, Instant)>,
}

impl Progress {
    /// Nothing is drawn unless standard error is a terminal.
    pub fn new(quiet: bool) -> Self {
        Self { shown: false, terminal: !quiet && io::stderr().is_terminal(), drawn: None, stage: None }
    }

    /// Draws the tasks as they are now, not too often.
    pub fn show(&mut self, tasks: &[TaskInfo]) {
        if !self.terminal || self.drawn.is_some_and(|drawn| drawn.elapsed() < REDRAW) {
            return;
        }
        let Some(task) = tasks.first() else { return };
        let key = format!("{} {}", task.task_id, task.stage);
        let began = match &self.stage {
            Some((shown, began)) if *shown == key => *began,
            _ => {
                let now = Instant::now();
                self.stage = Some((key, now));
                now
            }
        };
        let line = line(task, tasks.len() - 1, began.elapsed());
        let _ = write!(io::stderr(), "\r\x1b[K{line}").and_then(|()| io::stderr().flush());
        self.shown = true;
        self.drawn = Some(Instant::now());
    }

    /// Removes the line.
    pub fn clear(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K").and_then(|()| io::stderr().flush());
            self.shown = false;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn line(task: &TaskInfo, others: usize, elapsed: Duration) -> String {
    let mut line = String::from(task.task_type);
    if !task.stage.is_empty() {
        put!(line, " {}", task.stage);
    }
    if let Ok(percent) = usize::try_from(task.percent_complete) {
        let percent = percent.min(100);
        let full = percent * WIDTH / 100;
        put!(line, " [{}{}] {percent:3}%", "#".repeat(full), "-".repeat(WIDTH - full));
    }
    if task.bytes_total > 0 {
        put!(line, "  {}/{}", human(task.bytes_done), human(task.bytes_total));
        let seconds = elapsed.as_secs_f64();
        if seconds > 0.5 && task.bytes_done > 0 {
            #[allow(clippy::cast_precision_loss, clippy::cast_sign_loss)]
            let rate = (task.bytes_done as f64 / seconds) as u64;
            put!(line, "  {}/s", human(rate));
            if let Some(left) = task.bytes_total.saturating_sub(task.bytes_done).checked_div(rate) {
                put!(line, "  {}:{:02} left", left / 60, left % 60);
            }
        }
    }
    if others > 0 {
        put!(line, "  and {others} more");
    }
    // One line of a small terminal.
    line.chars().take(79).collect()
}
