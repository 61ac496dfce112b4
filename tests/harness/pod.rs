//! A pod as its node sees it: a uid, names, and a token volume written the way the kubelet writes.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use rustix::mount::MountFlags;

use crate::{machine::random_uuid, sandbox::Sandbox};

/// Where containers find their pod's token volume.
pub const SERVICE_ACCOUNT_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Where containers find their pod's token.
pub const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// A pod with a mounted token volume. Lives as long as its sandbox.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Uid as the Kubernetes API shows it.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// The token in its volume: the shape of a JWT, the key to nothing.
    pub token: String,
    volume: PathBuf,
}

impl Pod {
    /// A new pod of namespace `shop` and service account `cart`, as in the recorded audit lines.
    ///
    /// # Errors
    /// If its volume cannot be mounted (needs root) or written.
    pub fn create(sandbox: &Sandbox) -> Result<Self> {
        let uid = random_uuid()?;
        let suffix: String = uid.chars().take(5).collect();
        let volume =
            format!("kubelet/pods/{uid}/volumes/kubernetes.io~projected/kube-api-access-{suffix}");
        let volume = sandbox.tmpfs(&volume, MountFlags::empty(), c"size=64k,mode=1777")?;
        let mut pod = Self {
            name: format!("cart-{suffix}"),
            namespace: "shop".to_owned(),
            service_account: "cart".to_owned(),
            token: String::new(),
            uid,
            volume,
        };
        pod.rotate_token()?;
        Ok(pod)
    }

    /// One of another machine, of this name, which is its uid as well: nothing of it is here.
    pub fn elsewhere(name: &str) -> Self {
        Self {
            uid: name.to_owned(),
            name: name.to_owned(),
            namespace: "shop".to_owned(),
            service_account: "cart".to_owned(),
            token: String::new(),
            volume: PathBuf::new(),
        }
    }

    /// The volume on the node: `…/pods/<uid>/volumes/kubernetes.io~projected/kube-api-access-…`.
    pub fn volume(&self) -> &Path {
        &self.volume
    }

    /// The volume's name, `kube-api-access-…`.
    pub fn volume_name(&self) -> String {
        self.volume.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Writes a new token in the kubelet's way: a new folder named after the time, then one rename
    /// of the `..data` link onto it, so that readers see all old or all new files.
    ///
    /// See `pkg/volume/util/atomic_writer.go` of Kubernetes.
    ///
    /// # Errors
    /// If the volume cannot be written.
    pub fn rotate_token(&mut self) -> Result<()> {
        let old = fs::read_link(self.volume.join("..data")).ok();
        let now = Timestamp::now();
        let name = now.strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string();
        let folder = self.volume.join(&name);
        fs::create_dir(&folder).with_context(|| format!("could not create {folder:?}"))?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        self.token = fake_token()?;
        let files = [
            ("token", self.token.as_str()),
            ("ca.crt", "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"),
            ("namespace", self.namespace.as_str()),
        ];
        for (file, content) in files {
            let path = folder.join(file);
            fs::write(&path, content).with_context(|| format!("could not write {path:?}"))?;
        }
        let new_data = self.volume.join("..data_tmp");
        symlink(&name, &new_data)?;
        fs::rename(&new_data, self.volume.join("..data"))?;
        match old {
            Some(old) => fs::remove_dir_all(self.volume.join(old))?,
            None => {
                for (file, _) in files {
                    symlink(Path::new("..data").join(file), self.volume.join(file))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
impl Pod {
    /// A pod without a volume.
    pub(crate) fn for_tests() -> Self {
        Self {
            uid: "0f4f9e0a-2f6b-4d0e-9a59-0a4a3d2d1c0b".to_owned(),
            name: "till-0".to_owned(),
            namespace: "bank".to_owned(),
            service_account: "till".to_owned(),
            token: String::new(),
            volume: PathBuf::new(),
        }
    }
}

/// Three base64url words, the first two starting with `eyJ` as JSON objects do.
fn fake_token() -> Result<String> {
    let word = || Ok::<_, anyhow::Error>(random_uuid()?.replace('-', ""));
    Ok(format!("eyJhbGciOiJSUzI1NiJ9.eyJ{}.{}{}", word()?, word()?, word()?))
}
