//! The tree as lines, a base above what is built on it.

use super::tree::{Forest, Node};
use crate::output::put;
use crate::size::human;

/// One line per image.
pub fn draw(forest: &Forest, colour: bool) -> String {
    let mut lines: Vec<(String, &Node)> = Vec::with_capacity(forest.nodes().len());
    // The node, what stands before its name, what stands before those of its dependents.
    let mut stack: Vec<(usize, String, String)> =
        forest.roots().iter().rev().map(|root| (*root, String::new(), String::new())).collect();
    while let Some((position, before, under)) = stack.pop() {
        let node = forest.node(position);
        lines.push((format!("{before}{}", node.image.image_id), node));
        for (count, dependent) in node.dependents.iter().rev().enumerate() {
            let (branch, space) = if count == 0 { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            stack.push((*dependent, format!("{under}{branch}"), format!("{under}{space}")));
        }
    }
    let width = lines.iter().map(|(tree, _)| tree.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (tree, node) in lines {
        put!(
            text,
            "{tree:<width$}  {}",
            paint(colour, kind_colour(node), &format!("{:<8}", node.image.kind))
        );
        if !node.status().is_empty() {
            put!(text, "  {}", paint(colour, status_colour(node), &format!("{:<9}", node.status())));
            put!(text, "  {:>6}  {:>6}", human(node.image.size), human(node.image.allocated));
        }
        if let Some(name) = &node.name {
            put!(text, "  {}", paint(colour, "1", name));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

fn paint(colour: bool, code: &str, text: &str) -> String {
    if colour && !code.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

fn kind_colour(node: &Node) -> &'static str {
    match node.image.kind.as_str() {
        "disk" => "36",
        "snapshot" => "32",
        _ => "2",
    }
}

fn status_colour(node: &Node) -> &'static str {
    match node.status() {
        "degraded" => "33",
        "broken" => "31",
        _ => "",
    }
}
