//! The options of the audit webhook: all that it takes to listen safely, or none of it.

use std::net::SocketAddr;

use super::{ConfigError, FileConfig};
use crate::audit::webhook::{CredentialFiles, WebhookConfig};

/// Longest body unless said otherwise, MiB: 400 events, the API server's usual batch, of 40 KiB each.
const MAX_BODY: u32 = 16;
/// Longest that can be asked for, MiB.
const MOST: u32 = 1024;

/// Takes the webhook's keys out of the file. Without a certificate, or without anything that tells API
/// servers from others, there is no webhook: whoever can post audit events can make alerts and hide
/// what is going on behind them.
pub(super) fn resolve(
    listen: Option<SocketAddr>,
    file: &mut FileConfig,
) -> Result<Option<WebhookConfig>, ConfigError> {
    let listen = listen.or(file.audit_webhook);
    let cert = file.audit_webhook_cert_file.take();
    let key = file.audit_webhook_key_file.take();
    let client_ca = file.audit_webhook_client_ca_file.take();
    let tokens = file.audit_webhook_token_file.take();
    let Some(listen) = listen else {
        let named = [
            ("audit-webhook-cert-file", cert),
            ("audit-webhook-key-file", key),
            ("audit-webhook-client-ca-file", client_ca),
            ("audit-webhook-token-file", tokens),
        ];
        let orphan = named.into_iter().find_map(|(name, path)| Some((name, path?)));
        return match orphan {
            None => Ok(None),
            Some((key, path)) => Err(ConfigError::Value {
                key,
                value: path.display().to_string(),
                must: "there is no audit-webhook, the address to listen on",
            }),
        };
    };
    let bad = |key, value: &dyn ToString, must| {
        Err(ConfigError::Value { key, value: value.to_string(), must })
    };
    let (Some(cert), Some(key)) = (cert, key) else {
        let must = "audit events are taken over TLS alone; name its certificate and key in the \
                    configuration file, audit-webhook-cert-file and audit-webhook-key-file";
        return bad("audit-webhook", &listen, must);
    };
    if client_ca.is_none() && tokens.is_none() {
        let must = "anybody could post audit events to it; name audit-webhook-client-ca-file or \
                    audit-webhook-token-file (or both) in the configuration file";
        return bad("audit-webhook", &listen, must);
    }
    let max_body = file.audit_webhook_max_body_mib.unwrap_or(MAX_BODY);
    if !(1..=MOST).contains(&max_body) {
        return bad("audit-webhook-max-body-mib", &max_body, "it must be between 1 and 1024");
    }
    Ok(Some(WebhookConfig {
        listen,
        files: CredentialFiles { cert, key, client_ca, tokens },
        max_body: u64::from(max_body) << 20,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(yaml: &str) -> Result<Option<WebhookConfig>, String> {
        let mut file: FileConfig = serde_saphyr::from_str(yaml).unwrap();
        resolve(None, &mut file).map_err(|error| error.to_string())
    }

    #[test]
    fn a_webhook_has_an_address_a_certificate_and_something_to_know_its_clients_by() {
        const ADDRESS: &str = "audit-webhook: 0.0.0.0:9443\n";
        const PAIR: &str = "audit-webhook-cert-file: /c\naudit-webhook-key-file: /k\n";
        const CA: &str = "audit-webhook-client-ca-file: /ca\n";
        const TOKEN: &str = "audit-webhook-token-file: /t\n";
        const NO_BODY: &str = "audit-webhook-max-body-mib: 0\n";
        const HUGE_BODY: &str = "audit-webhook-max-body-mib: 1025\n";
        let cases: [(&[&str], Result<bool, &str>); 12] = [
            (&["node-name: n\n"], Ok(false)),
            (&[ADDRESS, PAIR, CA], Ok(true)),
            (&[ADDRESS, PAIR, TOKEN], Ok(true)),
            (&[ADDRESS, PAIR, CA, TOKEN], Ok(true)),
            (&[ADDRESS], Err("over TLS alone")),
            (&[ADDRESS, CA, TOKEN], Err("over TLS alone")),
            (&[ADDRESS, "audit-webhook-cert-file: /c\n", CA], Err("audit-webhook-key-file")),
            (&[ADDRESS, PAIR], Err("anybody could post")),
            (&[PAIR], Err("audit-webhook-cert-file")),
            (&[TOKEN], Err("audit-webhook-token-file is \"/t\"")),
            (&[ADDRESS, PAIR, CA, NO_BODY], Err("audit-webhook-max-body-mib is \"0\"")),
            (&[ADDRESS, PAIR, CA, HUGE_BODY], Err("audit-webhook-max-body-mib is \"1025\"")),
        ];
        for (keys, expected) in cases {
            let yaml = keys.concat();
            match (resolved(&yaml), expected) {
                (Ok(found), Ok(there)) => assert_eq!(found.is_some(), there, "{yaml}"),
                (Err(error), Err(part)) => assert!(error.contains(part), "{yaml}: {error}"),
                (found, _) => panic!("{yaml}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_flag_wins_over_the_file_and_a_body_has_16_mib() {
        let yaml = "audit-webhook: 0.0.0.0:9443\naudit-webhook-cert-file: /c\n\
                    audit-webhook-key-file: /k\naudit-webhook-token-file: /t\n";
        let mut file: FileConfig = serde_saphyr::from_str(yaml).unwrap();
        let flag = SocketAddr::from(([127, 0, 0, 1], 1));
        let config = resolve(Some(flag), &mut file).unwrap().unwrap();
        assert_eq!((config.listen, config.max_body), (flag, 16 << 20));
    }
}
