//! Puts the BPF object where `kernel` embeds it: the file named by `TOKENTRAIL_BPF_OBJECT`, or an
//! empty stub, so that tests and lints need no BPF toolchain.
use std::{env, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let target = PathBuf::from(env::var("OUT_DIR")?).join("tokentrail-bpf");
    println!("cargo::rerun-if-env-changed=TOKENTRAIL_BPF_OBJECT");
    match env::var_os("TOKENTRAIL_BPF_OBJECT").map(PathBuf::from) {
        Some(object) => {
            println!("cargo::rerun-if-changed={}", object.display());
            fs::copy(&object, &target).map_err(|error| {
                format!("cannot copy the BPF object {}: {error}", object.display())
            })?;
        }
        None => {
            println!("cargo::rerun-if-changed=build.rs");
            fs::write(&target, [])?;
        }
    }
    Ok(())
}
