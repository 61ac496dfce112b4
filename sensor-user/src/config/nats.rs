//! The options of the exchange between nodes: where the broker is, and who this agent is to it. Secrets are
//! named by file alone.

use std::time::Duration;

use async_nats::ServerAddr;

use super::{ConfigError, FileConfig};
use crate::nats::{
    Login, NatsConfig,
    names::{self, Names},
};

/// How long an exposure waits for an audit side, unless said otherwise, seconds.
const PATIENCE: u32 = 3_600;
/// Lines kept for those who ask later, unless said otherwise, MiB.
const LOOK_BACK: u32 = 8;
/// The most that can be asked for, MiB.
const MOST_LOOK_BACK: u32 = 4_096;

/// Takes the broker's keys out of the file.
pub(super) fn resolve(
    servers: Option<String>,
    node: &str,
    cluster: Option<&str>,
    file: &mut FileConfig,
) -> Result<Option<NatsConfig>, ConfigError> {
    let servers = servers.or(file.nats.take());
    let bad =
        |key, value: &str, must| Err(ConfigError::Value { key, value: value.to_owned(), must });
    let credentials = file.nats_credentials_file.take();
    let nkey = file.nats_nkey_file.take();
    let user = file.nats_user.take();
    let password = file.nats_password_file.take();
    let ca = file.nats_ca_file.take();
    let (cert, key) = (file.nats_cert_file.take(), file.nats_key_file.take());
    let Some(servers) = servers else {
        let files = [
            ("nats-credentials-file", &credentials),
            ("nats-nkey-file", &nkey),
            ("nats-password-file", &password),
            ("nats-ca-file", &ca),
            ("nats-cert-file", &cert),
            ("nats-key-file", &key),
        ];
        let orphan = files.into_iter().find_map(|(name, path)| Some((name, path.as_ref()?)));
        return match orphan {
            None => Ok(None),
            Some((key, path)) => {
                bad(key, &path.display().to_string(), "there is no nats, the server to log in to")
            }
        };
    };
    let servers: Vec<String> = servers.split(',').map(|it| it.trim().to_owned()).collect();
    for server in &servers {
        match server.parse::<ServerAddr>() {
            Ok(address) if address.has_user_pass() || address.password().is_some() => {
                let shown = format!("{}://…@{}", address.scheme(), address.host());
                let must = "secrets are named by file alone: use nats-user and nats-password-file";
                return bad("nats", &shown, must);
            }
            Ok(address)
                if ["nats", "tls"].contains(&address.scheme()) && !address.host().is_empty() => {}
            Ok(_) | Err(_) => {
                return bad("nats", server, "it must be as nats://host:4222 or tls://host:4222");
            }
        }
    }
    let shown = servers.join(",");
    let login = match (credentials, nkey, user, password) {
        (None, None, None, None) => Login::None,
        (Some(path), None, None, None) => Login::Credentials(path),
        (None, Some(path), None, None) => Login::Nkey(path),
        (None, None, Some(user), Some(path)) => Login::Password(user, path),
        (None, None, Some(user), None) => {
            return bad("nats-user", &user, "there is no nats-password-file beside it");
        }
        (None, None, None, Some(path)) => {
            let path = path.display().to_string();
            return bad("nats-password-file", &path, "there is no nats-user beside it");
        }
        _ => {
            let must = "there is more than one login; keep one of nats-credentials-file, \
                        nats-nkey-file, or nats-user with nats-password-file";
            return bad("nats", &shown, must);
        }
    };
    let certificate = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(path), None) | (None, Some(path)) => {
            let must = "a certificate needs its key: name nats-cert-file and nats-key-file";
            return bad("nats-cert-file", &path.display().to_string(), must);
        }
    };
    let Some(cluster) = cluster else {
        return bad("nats", &shown, "clusters may share a server: name this one, cluster-name");
    };
    for (key, name) in [("cluster-name", cluster), ("node-name", node)] {
        if !names::is_fit(name) {
            let must = "with nats it must be of letters, digits, dashes and dots";
            return bad(key, name, must);
        }
    }
    let look_back = file.nats_look_back_mib.unwrap_or(LOOK_BACK);
    if !(1..=MOST_LOOK_BACK).contains(&look_back) {
        return bad("nats-look-back-mib", &look_back.to_string(), "it must be 1 to 4096");
    }
    Ok(Some(NatsConfig {
        servers,
        names: Names::new(cluster, node),
        login,
        ca,
        certificate,
        patience: Duration::from_secs(file.nats_patience_seconds.unwrap_or(PATIENCE).into()),
        look_back: usize::try_from(look_back).unwrap_or(usize::MAX) << 20,
        publish_alerts: file.nats_publish_alerts.unwrap_or(true),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(yaml: &str) -> Result<Option<NatsConfig>, String> {
        let mut file: FileConfig = serde_saphyr::from_str(yaml).unwrap();
        resolve(None, "node-b", Some("prod"), &mut file).map_err(|error| error.to_string())
    }

    #[test]
    fn a_broker_has_an_address_and_at_most_one_login() {
        const AT: &str = "nats: nats://a:4222\n";
        const CREDENTIALS: &str = "nats-credentials-file: /c\n";
        const NKEY: &str = "nats-nkey-file: /n\n";
        const USER: &str = "nats-user: u\n";
        const PASSWORD: &str = "nats-password-file: /p\n";
        type Expected = Result<Option<Login>, &'static str>;
        let cases: [(&[&str], Expected); 15] = [
            (&["node-name: n\n"], Ok(None)),
            (&[AT], Ok(Some(Login::None))),
            (&["nats: 'tls://a, nats://b:1'\n"], Ok(Some(Login::None))),
            (&[AT, CREDENTIALS], Ok(Some(Login::Credentials("/c".into())))),
            (&[AT, NKEY], Ok(Some(Login::Nkey("/n".into())))),
            (&[AT, USER, PASSWORD], Ok(Some(Login::Password("u".to_owned(), "/p".into())))),
            (&[AT, USER], Err("nats-user is \"u\"")),
            (&[AT, PASSWORD], Err("nats-password-file is \"/p\"")),
            (&[AT, NKEY, CREDENTIALS], Err("more than one login")),
            (&[CREDENTIALS], Err("nats-credentials-file is \"/c\"")),
            (&[AT, "nats-cert-file: /x\n"], Err("nats-key-file")),
            (&["nats: nats://u:secret@a\n"], Err("secrets are named by file alone")),
            (&["nats: http://a\n"], Err("it must be as nats://")),
            (&["nats: ''\n"], Err("it must be as nats://")),
            (&[AT, "nats-look-back-mib: 0\n"], Err("nats-look-back-mib")),
        ];
        for (keys, expected) in cases {
            let yaml = keys.concat();
            match (resolved(&yaml), expected) {
                (Ok(found), Ok(login)) => {
                    assert_eq!(found.map(|it| it.login), login, "{yaml}");
                }
                (Err(error), Err(part)) => {
                    assert!(error.contains(part), "{yaml}: {error}");
                    assert!(!error.contains("secret@"), "{yaml}: {error}");
                }
                (found, _) => panic!("{yaml}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_cluster_without_a_name_or_a_node_with_an_odd_one_cannot_be_on_a_broker() {
        let file = || serde_saphyr::from_str::<FileConfig>("nats: nats://a").unwrap();
        let error = resolve(None, "node-b", None, &mut file()).unwrap_err().to_string();
        assert!(error.contains("cluster-name"), "{error}");
        let error = resolve(None, "node_b", Some("c"), &mut file()).unwrap_err().to_string();
        assert!(error.contains("node-name"), "{error}");
        let config = resolve(Some("tls://b".to_owned()), "n", Some("c"), &mut file()).unwrap();
        assert_eq!(config.unwrap().servers, ["tls://b"], "a flag wins over the file");
    }
}
