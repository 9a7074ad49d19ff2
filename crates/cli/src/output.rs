//! What is printed: results on standard output, errors on standard error; a closed pipe is no error.

use std::cell::Cell;
use std::env;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use serde_json::{Value, json};
use vdsmstore_core::{Error, ErrorKind, Result};

/// `write!` to a string, which cannot fail.
macro_rules! put {
    ($text:expr, $($rest:tt)*) => {{
        use std::fmt::Write as _;
        let _ = write!($text, $($rest)*);
    }};
}
pub(crate) use put;

/// Standard output in the form that was asked for.
#[derive(Debug)]
pub struct Output {
    json: bool,
    /// Whether colours help.
    pub colour: bool,
    closed: Cell<bool>,
}

impl Output {
    /// JSON, or text.
    pub fn new(json: bool) -> Self {
        let colour =
            !json && io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Self { json, colour, closed: Cell::new(false) }
    }

    /// Whether JSON was asked for.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Whether the reader of a pipe has gone.
    pub fn closed(&self) -> bool {
        self.closed.get()
    }

    /// Writes bytes as they are.
    pub fn bytes(&self, bytes: &[u8]) -> Result<()> {
        if self.closed() {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed.set(true);
                Ok(())
            }
            Err(error) => Err(local("standard output", error)),
        }
    }

    /// Prints a line.
    pub fn line(&self, text: &str) -> Result<()> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// Prints lines.
    pub fn lines(&self, lines: &[String]) -> Result<()> {
        self.bytes(lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect::<String>().as_bytes())
    }

    /// Prints a value as JSON.
    pub fn value(&self, value: &impl Serialize) -> Result<()> {
        self.line(&pretty(value)?)
    }

    /// Prints the value as JSON, or the text.
    pub fn either(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        if self.json { self.value(value) } else { self.line(&text()) }
    }
}

/// The value as indented JSON.
pub fn pretty(value: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(value)
        .map_err(|error| Error::new(ErrorKind::Internal, format!("JSON: {error}")).because(error))
}

/// A failure outside repositories.
pub fn local(what: impl std::fmt::Display, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        io::ErrorKind::StorageFull => ErrorKind::NoSpace,
        _ => ErrorKind::IoError,
    };
    let mut new = Error::new(kind, format!("{what}: {error}"));
    if let Some(errno) = error.raw_os_error() {
        new = new.with("errno", errno);
    }
    new.because(error)
}

/// Prints an error on standard error.
pub fn report(json: bool, error: &Error) {
    let text = if json {
        json!({ "error": {
            "code": error.kind().code(),
            "kind": error.kind().name(),
            "message": error.message(),
            "details": Value::Object(error.details().clone()),
        }})
        .to_string()
    } else {
        format!("vdsmstore: {}", error.message())
    };
    // Nobody is left to be told of a failure here.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Says something that is no failure on standard error.
pub fn warn(message: &str) {
    let _ = writeln!(io::stderr(), "vdsmstore: warning: {message}");
}

/// Lines of columns; the first line is the heading.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max())
        .map(|width| width.unwrap_or(0))
        .collect();
    let lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect();
    lines.join("\n")
}

/// Names and values, one pair a line.
pub fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    let lines: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{:<width$} {value}", format!("{name}:"))).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let rows = [["ID", "NAME"], ["abc", "x"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "ID   NAME\nabc  x");
        assert_eq!(pairs(&[("a", "1".to_owned()), ("long", "2".to_owned())]), "a:    1\nlong: 2");
    }
}
