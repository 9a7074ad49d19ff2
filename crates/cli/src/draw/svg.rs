//! The tree as a picture: bases at the left, what is built on them to the right.

use super::tree::{Forest, MISSING, Node, Place};
use crate::output::put;

const BOX_WIDTH: f64 = 260.0;
const BOX_HEIGHT: f64 = 62.0;
const GAP_X: f64 = 56.0;
const GAP_Y: f64 = 16.0;
const MARGIN: f64 = 24.0;
const TITLE: f64 = 40.0;
const LEGEND: f64 = 44.0;

/// How a kind of image looks.
#[derive(Clone, Copy, Debug)]
pub struct Colours {
    /// Of the box.
    pub fill: &'static str,
    /// Around it.
    pub line: &'static str,
    /// Not an image that a caller sees.
    pub dashed: bool,
}

const KINDS: [(&str, &str, Colours); 5] = [
    ("disk", "virtual disk", Colours { fill: "#dbeafe", line: "#1d4ed8", dashed: false }),
    ("snapshot", "snapshot", Colours { fill: "#dcfce7", line: "#15803d", dashed: false }),
    ("hidden", "hidden base", Colours { fill: "#f3f4f6", line: "#6b7280", dashed: true }),
    ("removed", "removed, still needed", Colours { fill: "#fef3c7", line: "#b45309", dashed: true }),
    (MISSING, "missing base", Colours { fill: "#ffffff", line: "#b91c1c", dashed: true }),
];

/// How the kind looks.
pub fn colours(kind: &str) -> Colours {
    let unknown = Colours { fill: "#ffffff", line: "#111827", dashed: true };
    KINDS.iter().find(|(name, ..)| *name == kind).map_or(unknown, |(_, _, colours)| *colours)
}

/// A picture that needs nothing else.
pub fn draw(forest: &Forest, title: &str) -> String {
    let places = forest.layout();
    let columns = places.iter().map(|place| place.depth).max().map_or(1, |depth| depth + 1);
    let rows = places.iter().map(|place| place.row).fold(0.0, f64::max) + 1.0;
    #[allow(clippy::cast_precision_loss)]
    let width = (2.0 * MARGIN + columns as f64 * (BOX_WIDTH + GAP_X) - GAP_X).max(760.0);
    let height = TITLE + MARGIN + rows * (BOX_HEIGHT + GAP_Y) + LEGEND;

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\" fill=\"#111827\">\n\
         <defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" \
         orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" fill=\"#4b5563\"/></marker></defs>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{MARGIN}\" y=\"30\" font-size=\"16\" font-weight=\"bold\">{}</text>\n",
        escape(title)
    );
    let mut corners = vec![(0.0, 0.0); forest.nodes().len()];
    for place in &places {
        corners[place.node] = corner(place);
    }
    for place in &places {
        if let Some(base) = forest.node(place.node).base {
            svg += &edge(corners[place.node], corners[base]);
        }
    }
    for place in &places {
        svg += &image(forest.node(place.node), corners[place.node]);
    }
    svg += &legend(height - LEGEND / 2.0);
    svg + "</svg>\n"
}

fn corner(place: &Place) -> (f64, f64) {
    #[allow(clippy::cast_precision_loss)]
    let x = MARGIN + place.depth as f64 * (BOX_WIDTH + GAP_X);
    (x, TITLE + MARGIN / 2.0 + place.row * (BOX_HEIGHT + GAP_Y))
}

/// From a dependent's left side to the right side of its base.
fn edge((x, y): (f64, f64), (base_x, base_y): (f64, f64)) -> String {
    let (start_y, end_x, end_y) = (y + BOX_HEIGHT / 2.0, base_x + BOX_WIDTH, base_y + BOX_HEIGHT / 2.0);
    let bend = GAP_X / 2.0;
    format!(
        "<path d=\"M{x} {start_y}C{} {start_y} {} {end_y} {end_x} {end_y}\" fill=\"none\" stroke=\"#4b5563\" \
         stroke-width=\"1.3\" marker-end=\"url(#tip)\"/>\n",
        x - bend,
        end_x + bend,
    )
}

fn image(node: &Node, (x, y): (f64, f64)) -> String {
    let image = &node.image;
    let colours = colours(&image.kind);
    let dash = if colours.dashed { " stroke-dasharray=\"5 3\"" } else { "" };
    let status_colour = match node.status() {
        "degraded" => "#b45309",
        "broken" => "#b91c1c",
        _ => "#15803d",
    };
    let id = image.image_id.to_string();
    let heading = node.name.clone().unwrap_or_else(|| image.kind.clone());
    // A bold letter is about seven pixels wide.
    let heading: String = if heading.chars().count() > 32 {
        heading.chars().take(31).chain(['…']).collect()
    } else {
        heading
    };
    let mut svg = format!(
        "<g><title>{id}</title><rect x=\"{x}\" y=\"{y}\" width=\"{BOX_WIDTH}\" height=\"{BOX_HEIGHT}\" rx=\"6\" \
         fill=\"{}\" stroke=\"{}\" stroke-width=\"1.4\"{dash}/>\n",
        colours.fill, colours.line
    );
    let left = x + 10.0;
    put!(
        svg,
        "<text x=\"{left}\" y=\"{}\" font-size=\"12\" font-weight=\"bold\">{}</text>\n\
         <text x=\"{left}\" y=\"{}\" font-family=\"monospace\" font-size=\"10\" fill=\"#4b5563\">{id}</text>\n",
        y + 18.0,
        escape(&heading),
        y + 34.0
    );
    if image.kind != MISSING {
        put!(
            svg,
            "<text x=\"{left}\" y=\"{}\">{} <tspan fill=\"{status_colour}\">{}</tspan> · {}</text>\n",
            y + 51.0,
            escape(&image.kind),
            node.status(),
            node.sizes()
        );
    }
    svg + "</g>\n"
}

fn legend(y: f64) -> String {
    let mut svg = String::new();
    let mut x = MARGIN;
    for (_, label, colours) in KINDS {
        let dash = if colours.dashed { " stroke-dasharray=\"3 2\"" } else { "" };
        put!(
            svg,
            "<rect x=\"{x}\" y=\"{}\" width=\"14\" height=\"12\" rx=\"3\" fill=\"{}\" stroke=\"{}\"{dash}/>\
             <text x=\"{}\" y=\"{y}\">{label}</text>\n",
            y - 10.0,
            colours.fill,
            colours.line,
            x + 20.0
        );
        #[allow(clippy::cast_precision_loss)]
        let label_width = label.len() as f64 * 6.4;
        x += 20.0 + label_width + 18.0;
    }
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
