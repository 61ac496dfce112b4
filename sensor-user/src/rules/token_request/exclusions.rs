//! Who mints tokens without R2 taking note, live: the system's identities by default, which the
//! rules file extends, thins out or replaces. Called by the correlation, for each TokenRequest.

use serde::Deserialize;

use super::SYSTEM_IDENTITIES;
use crate::rules::glob::{Glob, GlobError};

/// On AKS the certificate of whoever runs `az aks get-credentials --admin`.
const MASTERCLIENT: &str = "masterclient";
/// Where whoever may create pods can become any of the cluster's controllers.
const KUBE_SYSTEM: &str = "system:serviceaccount:kube-system:*";
/// Names of kubelets. Anybody with a certificate may be called so; [`NODES`] is what makes one.
const NODE_PREFIX: &str = "system:node:";
/// The group of kubelets.
const NODES: &str = "system:nodes";

/// Patterns of users that R2 takes no note of.
#[derive(Clone, Debug, PartialEq)]
pub struct Exclusions(Vec<Glob>);

impl Default for Exclusions {
    fn default() -> Self {
        Self(SYSTEM_IDENTITIES.iter().map(|pattern| Glob::compile(pattern)).collect())
    }
}

impl Exclusions {
    /// Whether a user with this `user.username` and these `user.groups` is excluded. One who is
    /// called like a kubelet must be one, whichever pattern matches.
    pub fn excludes(&self, username: &str, groups: &[String]) -> bool {
        let pretends = username.starts_with(NODE_PREFIX) && !groups.iter().any(|it| it == NODES);
        !pretends && self.0.iter().any(|pattern| pattern.matches(username))
    }

    /// The patterns in force.
    pub fn patterns(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(ToString::to_string)
    }
}

/// The section `token-request-by-user` of a rules file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(in crate::rules) struct Section {
    extend: Option<Vec<String>>,
    replace: Option<Vec<String>>,
    masterclient: Option<Switch>,
    kube_system: Option<Switch>,
}

/// What becomes of a default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Switch {
    Exclude,
    Alert,
}

/// Why exclusions are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExclusionError {
    /// A pattern that cannot be meant.
    #[error("exclusion {pattern:?}: {source}")]
    Pattern {
        /// What was given.
        pattern: String,
        /// What is wrong with it.
        source: GlobError,
    },
    /// The rule would never alert.
    #[error("exclusion {pattern:?} excludes everybody; name whom you mean")]
    Everybody {
        /// What was given.
        pattern: String,
    },
    /// What one key takes out of the defaults, another puts back.
    #[error("extend excludes by {pattern:?} what {key}: alert asks for; remove one of them")]
    Switched {
        /// What was given.
        pattern: String,
        /// The switch.
        key: &'static str,
    },
    /// There is nothing left to extend or to switch.
    #[error("replace takes the place of all defaults; remove {key}, or use extend instead")]
    Replaced {
        /// What else was given.
        key: &'static str,
    },
}

impl TryFrom<Section> for Exclusions {
    type Error = ExclusionError;

    fn try_from(section: Section) -> Result<Self, ExclusionError> {
        let Section { extend, replace, masterclient, kube_system } = section;
        let Some(replace) = replace else {
            let alerts = |pattern: &str| {
                masterclient == Some(Switch::Alert) && pattern == MASTERCLIENT
                    || kube_system == Some(Switch::Alert) && pattern == KUBE_SYSTEM
            };
            let defaults = SYSTEM_IDENTITIES.iter().filter(|pattern| !alerts(pattern));
            let mut patterns: Vec<Glob> = defaults.map(|pattern| Glob::compile(pattern)).collect();
            let extend = compile(extend.unwrap_or_default())?;
            for (key, switched) in [("masterclient", MASTERCLIENT), ("kube-system", KUBE_SYSTEM)] {
                // A pattern is one of the names that it stands for.
                let all = extend.iter().find(|pattern| pattern.matches(switched));
                if let Some(pattern) = all.filter(|_| alerts(switched)) {
                    return Err(ExclusionError::Switched { pattern: pattern.to_string(), key });
                }
            }
            patterns.extend(extend);
            return Ok(Self(patterns));
        };
        let others = [
            ("extend", extend.is_some()),
            ("masterclient", masterclient.is_some()),
            ("kube-system", kube_system.is_some()),
        ];
        match others.into_iter().find(|(_, given)| *given) {
            Some((key, _)) => Err(ExclusionError::Replaced { key }),
            None => compile(replace).map(Self),
        }
    }
}

fn compile(patterns: Vec<String>) -> Result<Vec<Glob>, ExclusionError> {
    let compile = |pattern: String| match Glob::parse(&pattern) {
        Ok(glob) if glob.matches_all() => Err(ExclusionError::Everybody { pattern }),
        Ok(glob) => Ok(glob),
        Err(source) => Err(ExclusionError::Pattern { pattern, source }),
    };
    patterns.into_iter().map(compile).collect()
}

#[cfg(test)]
mod tests {
    use super::{ExclusionError, Exclusions, Section};
    use crate::rules::glob::GlobError;

    fn exclusions(yaml: &str) -> Result<Exclusions, ExclusionError> {
        serde_saphyr::from_str::<Section>(yaml).unwrap().try_into()
    }

    #[test]
    fn a_user_called_like_a_kubelet_must_be_one() {
        let nodes = ["system:nodes".to_owned(), "system:authenticated".to_owned()];
        let others = ["system:masters".to_owned(), "system:nodes2".to_owned()];
        let wide = exclusions("extend: ['system:*', 'system:node:a']").unwrap();
        for exclusions in [&Exclusions::default(), &wide] {
            assert!(exclusions.excludes("system:node:a", &nodes));
            assert!(!exclusions.excludes("system:node:a", &others));
            assert!(!exclusions.excludes("system:node:a", &[]));
            assert!(exclusions.excludes("system:kube-scheduler", &[]));
            assert!(!exclusions.excludes("admin", &nodes), "the group alone excludes nobody");
        }
        assert!(wide.excludes("system:anything", &[]));
    }

    #[test]
    fn the_defaults_are_extended_thinned_out_or_replaced() {
        const CERT_MANAGER: &str = "system:serviceaccount:cert-manager:cert-manager";
        const CONTROLLER: &str = "system:serviceaccount:kube-system:cronjob-controller";
        for (yaml, excluded, noted) in [
            ("{}", vec!["masterclient", CONTROLLER], vec![CERT_MANAGER]),
            ("masterclient: alert", vec![CONTROLLER], vec!["masterclient"]),
            ("kube-system: alert", vec!["masterclient"], vec![CONTROLLER]),
            (
                "{masterclient: exclude, kube-system: exclude}",
                vec!["masterclient", CONTROLLER],
                vec![],
            ),
            (
                "{extend: ['system:serviceaccount:cert-manager:*'], kube-system: alert}",
                vec![CERT_MANAGER, "aksService"],
                vec![CONTROLLER],
            ),
            (
                "{extend: ['system:serviceaccount:kube-system:cronjob-*'], kube-system: alert}",
                vec![CONTROLLER],
                vec!["system:serviceaccount:kube-system:other"],
            ),
            ("replace: [admin]", vec!["admin"], vec!["masterclient", CONTROLLER, "aksService"]),
            ("replace: []", vec![], vec!["masterclient", CONTROLLER, "aksService"]),
        ] {
            let exclusions = exclusions(yaml).unwrap();
            for name in excluded {
                assert!(exclusions.excludes(name, &[]), "{yaml}: {name}");
            }
            for name in noted {
                assert!(!exclusions.excludes(name, &[]), "{yaml}: {name}");
            }
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let empty = ExclusionError::Pattern { pattern: String::new(), source: GlobError::Empty };
        let all = ExclusionError::Everybody { pattern: "**".to_owned() };
        let switched =
            |pattern: &str, key| ExclusionError::Switched { pattern: pattern.to_owned(), key };
        for (yaml, expected) in [
            (
                "{extend: ['system:serviceaccount:*'], kube-system: alert}",
                switched("system:serviceaccount:*", "kube-system"),
            ),
            ("{extend: [eve, master*], masterclient: alert}", switched("master*", "masterclient")),
            ("extend: ['']", empty),
            ("replace: ['**']", all),
            ("{replace: [a], extend: [b]}", ExclusionError::Replaced { key: "extend" }),
            ("{replace: [a], kube-system: alert}", ExclusionError::Replaced { key: "kube-system" }),
            (
                "{replace: [], masterclient: exclude}",
                ExclusionError::Replaced { key: "masterclient" },
            ),
        ] {
            assert_eq!(exclusions(yaml).unwrap_err(), expected, "{yaml}");
        }
    }
}
