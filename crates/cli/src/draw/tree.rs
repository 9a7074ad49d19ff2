//! The tree that all drawings share: bases, and what is built on them.

use std::cmp::Reverse;
use std::collections::HashMap;

use serde_json::Value;
use serde_json::value::RawValue;
use vdsmstore_core::{GraphNode, ImageId, Status};

use crate::size::human;

/// The kind of a base that the repository does not have.
pub const MISSING: &str = "missing";

/// An image and its place in the tree.
#[derive(Debug)]
pub struct Node {
    /// What the store says of it.
    pub image: GraphNode,
    /// `userData.name`, if there is one.
    pub name: Option<String>,
    /// What it is built on.
    pub base: Option<usize>,
    /// What is built on it, in the order of drawing.
    pub dependents: Vec<usize>,
}

impl Node {
    /// What it takes, of which virtual size.
    pub fn sizes(&self) -> String {
        format!("{} of {}", human(self.image.allocated), human(self.image.size))
    }

    /// Its status, for people.
    pub fn status(&self) -> &'static str {
        match self.image.status {
            _ if self.image.kind == MISSING => "",
            Status::Optimized => "optimized",
            Status::Degraded => "degraded",
            Status::Broken => "broken",
        }
    }
}

/// All images of a repository.
#[derive(Debug)]
pub struct Forest {
    nodes: Vec<Node>,
    roots: Vec<usize>,
}

/// Where an image stands in a drawing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// Which image.
    pub node: usize,
    /// How many bases it has below it.
    pub depth: usize,
    /// Dependents without dependents have a row each; a base stands in the middle of its dependents.
    pub row: f64,
}

impl Forest {
    /// Puts every image over its base. Images whose bases go round in a circle are drawn nonetheless.
    pub fn new(images: Vec<GraphNode>) -> Self {
        let mut nodes: Vec<Node> = Vec::with_capacity(images.len());
        let mut index: HashMap<ImageId, usize> = HashMap::new();
        for image in images {
            if index.insert(image.image_id, nodes.len()).is_none() {
                nodes.push(Node {
                    name: name_of(&image.user_data),
                    image,
                    base: None,
                    dependents: Vec::new(),
                });
            }
        }
        for position in 0..nodes.len() {
            let Some(base) = nodes[position].image.base else { continue };
            let base = *index.entry(base).or_insert_with(|| {
                nodes.push(missing(base));
                nodes.len() - 1
            });
            nodes[position].base = Some(base);
        }
        let mut forest = Self { nodes, roots: Vec::new() };
        forest.cut_circles();
        forest.link();
        forest
    }

    fn cut_circles(&mut self) {
        // 0: not seen, otherwise the walk that saw it.
        let mut seen = vec![0; self.nodes.len()];
        for start in 0..self.nodes.len() {
            let (mut here, walk) = (start, start + 1);
            while seen[here] == 0 {
                seen[here] = walk;
                match self.nodes[here].base {
                    Some(base) if seen[base] == walk => self.nodes[here].base = None,
                    Some(base) => here = base,
                    None => break,
                }
            }
        }
    }

    fn link(&mut self) {
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        // Named images first, each group in order; ids are random, so that they say nothing.
        order.sort_by(|a, b| {
            let key = |i: &usize| (self.nodes[*i].name.is_none(), self.nodes[*i].name.as_deref());
            key(a).cmp(&key(b)).then(self.nodes[*a].image.image_id.cmp(&self.nodes[*b].image.image_id))
        });
        for position in order {
            match self.nodes[position].base {
                Some(base) => self.nodes[base].dependents.push(position),
                None => self.roots.push(position),
            }
        }
    }

    /// The images, in no order that means anything.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// An image.
    pub fn node(&self, position: usize) -> &Node {
        &self.nodes[position]
    }

    /// The images that are built on none.
    pub fn roots(&self) -> &[usize] {
        &self.roots
    }

    /// Where the images stand: bases before what is built on them.
    pub fn layout(&self) -> Vec<Place> {
        let mut places = Vec::with_capacity(self.nodes.len());
        let mut stack: Vec<(usize, usize)> = self.roots.iter().rev().map(|root| (*root, 0)).collect();
        let mut next_row = 0_u32;
        while let Some((node, depth)) = stack.pop() {
            let mut row = 0.0;
            if self.nodes[node].dependents.is_empty() {
                row = f64::from(next_row);
                next_row += 1;
            }
            places.push(Place { node, depth, row });
            stack.extend(self.nodes[node].dependents.iter().rev().map(|dependent| (*dependent, depth + 1)));
        }
        let mut rows = vec![0.0; self.nodes.len()];
        let mut order: Vec<usize> = (0..places.len()).collect();
        order.sort_by_key(|place| Reverse(places[*place].depth));
        for place in order {
            let place = &mut places[place];
            let dependents = &self.nodes[place.node].dependents;
            if let (Some(first), Some(last)) = (dependents.first(), dependents.last()) {
                place.row = f64::midpoint(rows[*first], rows[*last]);
            }
            rows[place.node] = place.row;
        }
        places
    }
}

fn missing(id: ImageId) -> Node {
    let image = GraphNode {
        image_id: id,
        kind: MISSING.to_owned(),
        status: Status::Broken,
        size: 0,
        allocated: 0,
        base: None,
        user_data: RawValue::NULL.to_owned(),
    };
    Node { image, name: None, base: None, dependents: Vec::new() }
}

/// `userData.name`, on one line and not too long.
pub fn name_of(user_data: &RawValue) -> Option<String> {
    let value: Value = serde_json::from_str(user_data.get()).ok()?;
    let name = value.get("name")?.as_str()?;
    let mut name: String = name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if name.chars().count() > 40 {
        name = name.chars().take(39).chain(['…']).collect();
    }
    (!name.trim().is_empty()).then_some(name)
}
