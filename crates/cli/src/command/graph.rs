//! `graph`

use std::fs;

use vdsmstore_core::Result;

use crate::args::{GraphArgs, GraphFormat};
use crate::draw::tree::Forest;
use crate::draw::{dot, svg, text};
use crate::output::{local, pretty};
use crate::session::{Outcome, Session};

/// Draws the images of a repository.
pub fn run(session: &Session, arguments: &GraphArgs) -> Result<Outcome> {
    session.connect(&arguments.repo)?;
    let nodes = session.store.graph(&arguments.repo)?;
    let drawing = if session.out.json() {
        pretty(&nodes)? + "\n"
    } else {
        let forest = Forest::new(nodes);
        match arguments.format.unwrap_or(GraphFormat::Text) {
            GraphFormat::Text => text::draw(&forest, session.out.colour && arguments.output.is_none()),
            GraphFormat::Dot => dot::draw(&forest, &arguments.repo),
            GraphFormat::Svg => svg::draw(&forest, &arguments.repo),
        }
    };
    match &arguments.output {
        Some(path) => fs::write(path, drawing).map_err(|error| local(path.display(), error))?,
        None => session.out.bytes(drawing.as_bytes())?,
    }
    Ok(Outcome::Done)
}
