//! Names the shared library of a plain build as the installed one is named.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libvdsmstore.so.0");
}
