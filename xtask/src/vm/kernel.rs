//! Kernels out of Debian's packages, by name: the newest is downloaded, unpacked and cached, with those
//! of its modules that tests need.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::matrix::Machine;
use crate::{
    build::Arch,
    debian::Archive,
    shell::{announce, cache_dir, complain, program, run},
};

/// What containers' root file systems are, and a way around rules on paths.
const MODULES: [&str; 1] = ["kernel/fs/overlayfs/overlay.ko"];

/// A kernel's folder in the cache.
pub(super) struct Kernel(PathBuf);

impl Kernel {
    /// What QEMU boots.
    pub(super) fn image(&self) -> PathBuf {
        self.0.join("vmlinuz")
    }

    /// Modules to load, uncompressed.
    pub(super) fn modules(&self) -> PathBuf {
        self.0.join("modules")
    }

    /// The machine's kernel, from the cache if the newest is there.
    ///
    /// # Errors
    /// If Debian cannot be reached and the cache has none.
    pub(super) fn of(machine: &Machine) -> Result<Self> {
        let cache = cache_dir()?.join("vm/kernels");
        fs::create_dir_all(&cache).with_context(|| format!("could not create {cache:?}"))?;
        let archive = match Archive::open() {
            Ok(archive) => archive,
            Err(error) => {
                let pattern = regex_lite::Regex::new(machine.package)?;
                let cached = newest(names_in(&cache)?.filter(|name| pattern.is_match(name)))
                    .with_context(|| format!("{error:#}"))?;
                complain(format_args!("{error:#}; going on with {cached}"));
                return Ok(Self(cache.join(cached)));
            }
        };
        let (name, packages) = newest_whole(&archive, machine.package)?;
        let kernel = cache.join(&name);
        if !kernel.exists() {
            announce(format_args!("{name}: downloading it"));
            let made = tempfile::tempdir_in(&cache)?;
            fetch(&archive, &packages, machine.arch, made.path())?;
            // Renamed when whole: half of it would pass for all.
            fs::rename(made.keep(), &kernel)
                .with_context(|| format!("could not write {kernel:?}"))?;
        }
        Ok(Self(kernel))
    }
}

/// The newest kernel of which all packages are there, and which these are.
fn newest_whole(archive: &Archive, pattern: &str) -> Result<(String, Vec<String>)> {
    let mut names = archive.names(pattern)?;
    while let Some(name) = newest(names.iter().cloned()) {
        if let Some(packages) = packages(archive, &name)? {
            return Ok((name, packages));
        }
        names.retain(|other| *other != name);
    }
    bail!("Debian has no package {pattern} any more")
}

/// The packages that a kernel is in, if it is in the one of this name and none is missing: those of a
/// newer version may have replaced some.
fn packages(archive: &Archive, name: &str) -> Result<Option<Vec<String>>> {
    let of = |kind: &str, version: &str| format!("linux-{kind}-{version}");
    let has = |package: &str| {
        let found = archive.names(&format!("^{}$", regex_lite::escape(package)))?;
        Ok::<bool, anyhow::Error>(!found.is_empty())
    };
    Ok(if let Some(version) = name.strip_prefix("linux-binary-") {
        let modules = of("modules", version);
        has(&modules)?.then(|| vec![name.to_owned(), modules])
    } else if let Some(version) = name.strip_prefix("linux-image-") {
        // Where the kernel has a package of its own, this one is empty.
        (!has(&of("binary", version))?).then(|| vec![name.to_owned()])
    } else {
        None
    })
}

/// Makes a kernel's folder from its packages.
fn fetch(archive: &Archive, packages: &[String], arch: Arch, into: &Path) -> Result<()> {
    let unpacked = tempfile::tempdir_in(into)?;
    for package in packages {
        archive.unpack(&format!("{package}:{}", arch.oci_name()), unpacked.path())?;
    }
    let image = image_in(unpacked.path()).with_context(|| {
        format!("{packages:?} have no boot/vmlinuz-* and no vmlinuz beside their modules")
    })?;
    fs::rename(image, into.join("vmlinuz"))?;
    fs::create_dir(into.join("modules"))?;
    for module in MODULES {
        let found = versions_in(unpacked.path())
            .flat_map(|version| ["", ".xz"].map(|end| version.join(format!("{module}{end}"))))
            .find(|path| path.is_file())
            .with_context(|| format!("{packages:?} have no module {module}"))?;
        let to = into.join("modules").join(Path::new(module).file_name().unwrap_or_default());
        if found.extension().is_some_and(|extension| extension == "xz") {
            let file = File::create(&to).with_context(|| format!("could not write {to:?}"))?;
            run(program("busybox").arg("xzcat").arg(&found).stdout(file))?;
        } else {
            fs::rename(&found, &to).with_context(|| format!("could not write {to:?}"))?;
        }
        ensure!(fs::metadata(&to)?.len() > 0, "{found:?} is empty");
    }
    Ok(())
}

/// In `/boot`; from 7.0 on beside the modules.
fn image_in(package: &Path) -> Option<PathBuf> {
    let in_boot = fs::read_dir(package.join("boot")).into_iter().flatten();
    let mut in_boot = in_boot.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"vmlinuz-"))
    });
    let beside = versions_in(package).map(|version| version.join("vmlinuz"));
    in_boot.next().or_else(|| beside.into_iter().find(|path| path.is_file()))
}

/// Folders of modules, of which a package has one.
fn versions_in(package: &Path) -> impl Iterator<Item = PathBuf> {
    ["lib/modules", "usr/lib/modules"]
        .map(|folder| fs::read_dir(package.join(folder)))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
}

fn names_in(folder: &Path) -> Result<impl Iterator<Item = String>> {
    let entries = fs::read_dir(folder)?.filter_map(Result::ok);
    Ok(entries.map(|entry| entry.file_name().to_string_lossy().into_owned()))
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
