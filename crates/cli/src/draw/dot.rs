//! The tree for Graphviz.

use super::tree::{Forest, MISSING};
use crate::output::put;

/// A directed graph; edges point at the base.
pub fn draw(forest: &Forest, title: &str) -> String {
    let mut text = format!("digraph {} {{\n", quote(title));
    text += "    rankdir = RL;\n";
    text += "    node [shape = box, style = \"rounded,filled\", fontname = \"sans-serif\", fontsize = 10];\n";
    for node in forest.nodes() {
        let image = &node.image;
        let mut label = node.name.iter().cloned().collect::<Vec<_>>();
        label.push(image.image_id.to_string());
        label.push(format!("{} {}", image.kind, node.status()).trim_end().to_owned());
        if image.kind != MISSING {
            label.push(node.sizes());
        }
        let colours = super::svg::colours(&image.kind);
        let style = if colours.dashed { ", style = \"rounded,filled,dashed\"" } else { "" };
        put!(
            text,
            "    {} [label = {}, fillcolor = \"{}\", color = \"{}\"{style}];\n",
            quote(&image.image_id.to_string()),
            quote(&label.join("\n")),
            colours.fill,
            colours.line,
        );
    }
    for node in forest.nodes() {
        if let Some(base) = node.base {
            let base = &forest.node(base).image.image_id;
            put!(text, "    {} -> {};\n", quote(&node.image.image_id.to_string()), quote(&base.to_string()));
        }
    }
    text + "}\n"
}

/// A quoted string: a quotation mark, a backslash and the end of a line must be written differently in it.
fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
