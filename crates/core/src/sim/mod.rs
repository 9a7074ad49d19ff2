//! The simulated repository: under construction.
