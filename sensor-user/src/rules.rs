//! What counts as an open, a request, an incident worth telling: the rules, as pure functions and
//! constants. No state, no clock, no I/O; `correlation` asks, `alert` shows.
//!
//! One file a rule. A rule's id is its name, as users write it in queries and exceptions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub mod address;
pub mod catalogue;
pub mod decoys;
pub mod exceptions;
pub mod glob;
pub mod rulebook;
pub mod token_access;
pub mod token_request;

/// What an alert says about the rule that made it.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The rule's name; `rule.id`, `rule.name` and `event.action` in alerts.
    pub id: &'static str,
    /// One English sentence.
    pub description: &'static str,
    /// Where to read more.
    pub reference: &'static str,
    /// Version of the rule's conditions.
    pub version: &'static str,
    /// MITRE ATT&CK.
    pub threat: &'static [Tactic],
}

/// A MITRE ATT&CK tactic with the techniques that apply.
#[derive(Clone, Copy, Debug)]
pub struct Tactic {
    /// Such as `TA0006`.
    pub id: &'static str,
    /// Such as `Credential Access`.
    pub name: &'static str,
    /// Techniques within it.
    pub techniques: &'static [Technique],
}

/// A MITRE ATT&CK technique or sub-technique.
#[derive(Clone, Copy, Debug)]
pub struct Technique {
    /// Such as `T1552`.
    pub id: &'static str,
    /// Such as `Unsecured Credentials`.
    pub name: &'static str,
    /// The sub-technique that applies, if one does.
    pub subtechnique: Option<(&'static str, &'static str)>,
}

/// How bad. The number is both `event.severity` and `event.risk_score`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Band {
    /// 21
    Low,
    /// 47
    Medium,
    /// 73
    High,
    /// 99
    Critical,
}

impl Band {
    /// 21, 47, 73 or 99.
    pub const fn score(self) -> u8 {
        match self {
            Self::Low => 21,
            Self::Medium => 47,
            Self::High => 73,
            Self::Critical => 99,
        }
    }
}

/// Whether a request is one that this workload makes anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RequestKind {
    /// The workload made its like before the exposure.
    Own,
    /// It did not.
    New,
    /// It was not watched for long enough to tell.
    Unknown,
}

impl RequestKind {
    /// As it is written in alerts and exceptions.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::New => "new",
            Self::Unknown => "unknown",
        }
    }
}
