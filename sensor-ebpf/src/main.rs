//! The BPF object. On the host this is an empty program, so that the workspace builds without a
//! BPF toolchain.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}
