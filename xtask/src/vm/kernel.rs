//! Kernels out of Debian's packages, by name: the newest is downloaded, unpacked and cached.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::matrix::Machine;
use crate::{
    debian::Archive,
    shell::{announce, cache_dir, complain},
};

/// The machine's kernel, from the cache if the newest is there.
///
/// # Errors
/// If Debian cannot be reached and the cache has none.
pub(super) fn of(machine: &Machine) -> Result<PathBuf> {
    let cache = cache_dir()?.join("kernels");
    fs::create_dir_all(&cache).with_context(|| format!("could not create {cache:?}"))?;
    let newest_cached = || {
        let pattern = regex_lite::Regex::new(machine.package)?;
        Ok::<_, anyhow::Error>(newest(names_in(&cache)?.filter(|name| pattern.is_match(name))))
    };
    let archive = match Archive::open() {
        Ok(archive) => archive,
        Err(error) => {
            let cached = newest_cached()?.with_context(|| format!("{error:#}"))?;
            complain(format_args!("{error:#}; going on with {cached}"));
            return Ok(cache.join(cached));
        }
    };
    let name = newest(archive.names(machine.package)?.into_iter())
        .with_context(|| format!("Debian has no package {} any more", machine.package))?;
    let kernel = cache.join(&name);
    if !kernel.exists() {
        announce(format_args!("{name}: downloading it"));
        let unpacked = tempfile::tempdir_in(&cache)?;
        archive.unpack(&format!("{name}:{}", machine.arch.oci_name()), unpacked.path())?;
        let image = image_in(unpacked.path()).with_context(|| {
            format!("{name} has no boot/vmlinuz-* and no vmlinuz beside its modules")
        })?;
        fs::rename(&image, &kernel).with_context(|| format!("could not write {kernel:?}"))?;
    }
    Ok(kernel)
}

/// In `/boot`; from 7.0 on beside the modules.
fn image_in(package: &Path) -> Option<PathBuf> {
    let in_folder = |folder: &str| fs::read_dir(package.join(folder)).into_iter().flatten();
    let in_boot = in_folder("boot").filter_map(Result::ok).map(|entry| entry.path()).find(|path| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"vmlinuz-"))
    });
    in_boot.or_else(|| {
        let modules = in_folder("usr/lib/modules").filter_map(Result::ok);
        modules.map(|entry| entry.path().join("vmlinuz")).find(|path| path.is_file())
    })
}

fn names_in(folder: &Path) -> Result<impl Iterator<Item = String>> {
    let entries = fs::read_dir(folder)?.filter_map(Result::ok);
    Ok(entries
        .filter(|entry| entry.path().is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned()))
}

/// The greatest of several versions: number by number, 6.12.107 after 6.12.94.
fn newest(names: impl Iterator<Item = String>) -> Option<String> {
    names.max_by_key(|name| {
        name.split(|it: char| !it.is_ascii_digit())
            .filter_map(|number| number.parse::<u32>().ok())
            .collect::<Vec<_>>()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_found_by_number() {
        let names = [
            "linux-image-6.12.94+deb13-cloud-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64",
            "linux-image-6.12.9+deb13-cloud-amd64",
        ];
        assert_eq!(newest(names.map(str::to_owned).into_iter()).as_deref(), Some(names[1]));
    }

    #[test]
    fn a_kernel_is_found_where_old_and_new_packages_have_it() {
        let package = tempfile::tempdir().unwrap();
        assert_eq!(image_in(package.path()), None);
        for image in ["usr/lib/modules/7.3.4/vmlinuz", "boot/vmlinuz-6.1.0"] {
            let image = package.path().join(image);
            fs::create_dir_all(image.parent().unwrap()).unwrap();
            fs::write(&image, "").unwrap();
            assert_eq!(image_in(package.path()), Some(image));
        }
    }
}
