//! Passes the host's triple on, which cargo tells only build scripts.

fn main() {
    let target = std::env::var("TARGET").expect("cargo sets it");
    println!("cargo::rustc-env=XTASK_HOST={target}");
    println!("cargo::rerun-if-changed=build.rs");
}
