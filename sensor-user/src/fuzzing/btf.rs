//! Kernel type information, corrupt or truncated as it may be. That it takes no unbounded time and
//! memory is the fuzzer's to see.

use tokentrail_ebpf::ABSENT;

use crate::kernel::btf::resolve;

/// What is resolved has at least what the filter needs; everything else is an error that names the
/// file.
pub fn btf(bytes: &[u8]) {
    match resolve(bytes, "some.btf") {
        Ok(layout) => {
            let found = layout.offsets;
            for needed in [found.task_files, found.file_dentry, found.dentry_name_len, found.sb_dev]
            {
                assert_ne!(needed, ABSENT);
            }
        }
        Err(error) => assert!(error.to_string().contains("some.btf"), "{error}"),
    }
}
