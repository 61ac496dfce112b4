//! Every rule there is: its id, its condition in one sentence, its risk. What `tokentrail rules`
//! lists and what an exception names.

use serde::{Deserialize, Serialize};

use super::{
    Band, RequestKind, Rule, Tactic, Technique, address::Address, token_access, token_request,
};
use crate::audit::AuditRecord;

/// A rule, by the name that alerts and exceptions use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleId {
    /// R1
    TokenAccessThenApiRequest,
    /// R2
    TokenRequestByUser,
    /// R3
    TokenReadFromOutside,
    /// R0
    TokenRead,
    /// R7
    DecoyUsed,
}

impl RuleId {
    /// All rules, in the order in which they are listed.
    pub const ALL: [Self; 5] = [
        Self::TokenAccessThenApiRequest,
        Self::TokenRequestByUser,
        Self::TokenReadFromOutside,
        Self::TokenRead,
        Self::DecoyUsed,
    ];

    /// What alerts say about it.
    pub const fn rule(self) -> &'static Rule {
        match self {
            Self::TokenAccessThenApiRequest => &token_access::RULE,
            Self::TokenRequestByUser => &TOKEN_REQUEST,
            Self::TokenReadFromOutside => &READ_FROM_OUTSIDE,
            Self::TokenRead => &READ,
            Self::DecoyUsed => &DECOY,
        }
    }

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        self.rule().id
    }

    /// When it alerts, one sentence.
    pub const fn condition(self) -> &'static str {
        match self {
            Self::TokenAccessThenApiRequest => {
                "A pod's token or ca.crt is opened with grade outside, interactive, terminal, exec \
                 or foreign, and at most 60 s later the API server receives a request with that \
                 pod's identity; after grade foreign, one of a kind that is new for the pod."
            }
            Self::TokenRequestByUser => {
                "A token is minted through the TokenRequest API, or that is refused, for an \
                 identity that the exclusions do not name."
            }
            Self::TokenReadFromOutside => {
                "A pod's token is opened by a process on the host or in another pod, the kubelet \
                 excepted."
            }
            Self::TokenRead => {
                "A pod's token is opened with grade outside, interactive, terminal or exec, and \
                 no request follows within 60 s."
            }
            Self::DecoyUsed => {
                "A service account listed as a decoy makes a request, has a token minted, or has \
                 its token opened."
            }
        }
    }

    /// How bad a request in one of its incidents is.
    pub fn band_of(self, record: &AuditRecord, request: RequestKind, address: Address) -> Band {
        match self {
            Self::TokenAccessThenApiRequest => token_access::band(record, request, address),
            Self::TokenRequestByUser => token_request::band(record).unwrap_or(Band::Low),
            Self::TokenReadFromOutside | Self::TokenRead | Self::DecoyUsed => self.band(),
        }
    }

    /// Risk of an incident that nothing has raised.
    pub const fn band(self) -> Band {
        match self {
            Self::TokenAccessThenApiRequest => token_access::BASE_BAND,
            Self::TokenRequestByUser => Band::Medium,
            Self::TokenReadFromOutside => Band::High,
            Self::TokenRead => Band::Low,
            Self::DecoyUsed => Band::Critical,
        }
    }
}

impl std::fmt::Display for RuleId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

const STEAL_TOKEN: Technique =
    Technique { id: "T1528", name: "Steal Application Access Token", subtechnique: None };
const IN_FILES: Technique = Technique {
    id: "T1552",
    name: "Unsecured Credentials",
    subtechnique: Some(("T1552.001", "Credentials In Files")),
};
const STOLEN: &[Tactic] =
    &[Tactic { id: "TA0006", name: "Credential Access", techniques: &[STEAL_TOKEN] }];
const READ_FROM_FILE: &[Tactic] =
    &[Tactic { id: "TA0006", name: "Credential Access", techniques: &[STEAL_TOKEN, IN_FILES] }];

const fn rule(id: &'static str, description: &'static str, threat: &'static [Tactic]) -> Rule {
    let reference = "https://attack.mitre.org/techniques/T1528/";
    Rule { id, description, reference, version: "1", threat }
}

static TOKEN_REQUEST: Rule = rule(
    "token-request-by-user",
    "A service-account token was minted through the TokenRequest API by an identity that is not \
     one of the system's.",
    STOLEN,
);
static READ_FROM_OUTSIDE: Rule = rule(
    "token-read-from-outside",
    "A pod's service-account token was opened by a process outside that pod.",
    READ_FROM_FILE,
);
static READ: Rule = rule(
    "token-read",
    "A pod's service-account token was opened in a way that a workload does not open it.",
    READ_FROM_FILE,
);
static DECOY: Rule =
    rule("decoy-used", "A service account that nothing legitimate uses was used.", READ_FROM_FILE);

#[cfg(test)]
mod tests {
    use super::RuleId;

    #[test]
    fn a_rule_has_the_same_name_in_alerts_and_in_files() {
        for id in RuleId::ALL {
            let name = serde_json::to_value(id).unwrap();
            assert_eq!(name, id.as_str());
            assert_eq!(serde_json::from_value::<RuleId>(name).unwrap(), id);
        }
    }
}
