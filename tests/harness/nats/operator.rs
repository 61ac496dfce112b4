//! A decentralised NATS set-up, as `nsc` makes one: an operator signs for accounts, an account for users, and
//! the server knows the operator alone. What is signed is what nats-server 2.9 asks for and no more.

use std::time::Duration;

use anyhow::Result;
use data_encoding::BASE64URL_NOPAD;
use jiff::Timestamp;
use nkeys::KeyPair;
use serde_json::{Value, json};

/// An operator with one account for users, and one for the server itself.
pub struct Operator {
    operator: KeyPair,
    account: KeyPair,
    system: KeyPair,
}

impl Default for Operator {
    fn default() -> Self {
        let [account, system] = [(); 2].map(|()| KeyPair::new_account());
        Self { operator: KeyPair::new_operator(), account, system }
    }
}

impl Operator {
    /// What a server's configuration must hold for it.
    ///
    /// # Errors
    /// If a key does not sign.
    pub fn configuration(&self) -> Result<String> {
        let unlimited = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
            "conn": -1, "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1,
            "consumer": -1,
        });
        // The system account may have no streams.
        let system = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
            "wildcards": true, "conn": -1, "leaf": -1});
        let account = |key: &KeyPair, name: &str, limits: &Value| {
            let claims = json!({"type": "account", "version": 2, "limits": limits});
            let signed = Self::sign(&self.operator, &key.public_key(), name, &claims, None)?;
            anyhow::Ok(format!("{}: {signed}", key.public_key()))
        };
        let operator = json!({"type": "operator", "version": 2});
        Ok(format!(
            "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload {{\n{}\n{}\n}}\n",
            Self::sign(&self.operator, &self.operator.public_key(), "operator", &operator, None)?,
            self.system.public_key(),
            account(&self.account, "agents", &unlimited)?,
            account(&self.system, "system", &system)?,
        ))
    }

    /// A credentials file for a new user, whose permissions are subjects to publish on and to subscribe
    /// to, and whose login ends after this time, if at all.
    ///
    /// # Errors
    /// If a key does not sign.
    pub fn credentials(
        &self,
        name: &str,
        publish: &[String],
        subscribe: &[String],
        valid: Option<Duration>,
    ) -> Result<String> {
        let user = KeyPair::new_user();
        let claims = json!({
            "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1,
            "pub": {"allow": publish}, "sub": {"allow": subscribe},
        });
        let jwt = Self::sign(&self.account, &user.public_key(), name, &claims, valid)?;
        Ok(format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            user.seed()?
        ))
    }

    /// A JWT in which `signer` says something of a subject.
    fn sign(
        signer: &KeyPair,
        subject: &str,
        name: &str,
        claims: &Value,
        valid: Option<Duration>,
    ) -> Result<String> {
        let now = Timestamp::now();
        let mut body = json!({
            "jti": format!("{name}-{}", now.as_nanosecond()),
            "iat": now.as_second(),
            "iss": signer.public_key(),
            "name": name,
            "sub": subject,
            "nats": claims,
        });
        if let (Some(valid), Some(body)) = (valid, body.as_object_mut()) {
            body.insert("exp".to_owned(), json!((now + valid).as_second()));
        }
        let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
        let parts = [header, body].map(|it| BASE64URL_NOPAD.encode(it.to_string().as_bytes()));
        let signed = parts.join(".");
        let signature = BASE64URL_NOPAD.encode(&signer.sign(signed.as_bytes())?);
        Ok(format!("{signed}.{signature}"))
    }
}
