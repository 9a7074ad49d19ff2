//! localfs-1.0: under construction.
