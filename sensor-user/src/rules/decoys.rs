//! Service accounts that nothing legitimate uses, as the rules file lists them. Called by R7.

use std::collections::BTreeSet;

/// Namespaces and names of decoys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoys(BTreeSet<(String, String)>);

/// Not a service account.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("decoy {text:?} is no service account; write it as namespace/name")]
pub struct DecoyError {
    /// What was given.
    pub text: String,
}

impl Decoys {
    /// Adds `namespace/name`.
    ///
    /// # Errors
    /// It is not two names that Kubernetes would take.
    pub(super) fn add(&mut self, text: &str) -> Result<(), DecoyError> {
        let is_name = |name: &str| {
            let allowed =
                |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || "-.".contains(it);
            !name.is_empty() && name.len() <= 253 && name.chars().all(allowed)
        };
        match text.split_once('/') {
            Some((namespace, name)) if is_name(namespace) && is_name(name) => {
                self.0.insert((namespace.to_owned(), name.to_owned()));
                Ok(())
            }
            Some(_) | None => Err(DecoyError { text: text.to_owned() }),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this service account is one.
    pub fn contains(&self, namespace: &str, name: &str) -> bool {
        self.iter().any(|decoy| decoy == (namespace, name))
    }

    /// Whether this user, as `system:serviceaccount:<namespace>:<name>`, is one.
    pub fn contains_user(&self, username: &str) -> bool {
        let account = username.strip_prefix("system:serviceaccount:");
        let account = account.and_then(|account| account.split_once(':'));
        account.is_some_and(|(namespace, name)| self.contains(namespace, name))
    }

    /// Namespace and name of each, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(namespace, name)| (namespace.as_str(), name.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::Decoys;

    #[test]
    fn a_decoy_is_known_by_both_names() {
        let mut decoys = Decoys::default();
        assert!(decoys.is_empty());
        decoys.add("shop/backup-admin").unwrap();
        for (user, expected) in [
            ("system:serviceaccount:shop:backup-admin", true),
            ("system:serviceaccount:shop:backup-admin2", false),
            ("system:serviceaccount:shop2:backup-admin", false),
            ("system:serviceaccount:shop", false),
            ("shop:backup-admin", false),
            ("", false),
        ] {
            assert_eq!(decoys.contains_user(user), expected, "{user}");
        }
        assert!(
            decoys.contains("shop", "backup-admin") && !decoys.contains("backup-admin", "shop")
        );
    }

    #[test]
    fn what_is_no_service_account_is_refused() {
        for text in ["", "shop", "shop/", "/admin", "shop/a/b", "Shop/a", "shop/*", "shop:a"] {
            let error = Decoys::default().add(text).unwrap_err();
            assert!(error.to_string().contains("namespace/name"), "{error}");
        }
    }
}
