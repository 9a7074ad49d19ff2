//! Drawings of a repository's images: one tree, three forms.

pub mod dot;
pub mod svg;
pub mod text;
pub mod tree;

#[cfg(test)]
mod tests;
