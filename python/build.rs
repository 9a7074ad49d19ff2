//! The module's calls of the C functions stay its own, also in a process that has loaded a libvdsmstore.so.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-Bsymbolic-functions");
}
