//! R1: a token or CA certificate is opened in a way that a workload does not open it, and within
//! the window the API server answers a request made with that pod's identity.

use super::{Band, Rule, Tactic, Technique};
use crate::{
    attribution::{Grade, TokenOpen},
    audit::{AuditRecord, Stage},
};

/// The rule as alerts name it.
pub static RULE: Rule = Rule {
    id: "token-access-then-api-request",
    description: "A service-account token or CA certificate was opened in a container, and the \
                  API server then answered a request made with that pod's identity.",
    reference: "https://attack.mitre.org/techniques/T1528/",
    version: "1",
    threat: &[
        Tactic {
            id: "TA0002",
            name: "Execution",
            techniques: &[Technique {
                id: "T1059",
                name: "Command and Scripting Interpreter",
                subtechnique: Some(("T1059.004", "Unix Shell")),
            }],
        },
        Tactic {
            id: "TA0006",
            name: "Credential Access",
            techniques: &[
                Technique {
                    id: "T1528",
                    name: "Steal Application Access Token",
                    subtechnique: None,
                },
                Technique {
                    id: "T1552",
                    name: "Unsecured Credentials",
                    subtechnique: Some(("T1552.001", "Credentials In Files")),
                },
            ],
        },
        Tactic {
            id: "TA0007",
            name: "Discovery",
            techniques: &[Technique {
                id: "T1613",
                name: "Container and Resource Discovery",
                subtechnique: None,
            }],
        },
        Tactic {
            id: "TA0008",
            name: "Lateral Movement",
            techniques: &[Technique {
                id: "T1550",
                name: "Use Alternate Authentication Material",
                subtechnique: Some(("T1550.001", "Application Access Token")),
            }],
        },
    ],
};

/// Risk of an incident that nothing has raised.
pub const BASE_BAND: Band = Band::Medium;

/// Whether an open starts or extends an exposure.
pub fn qualifies(open: &TokenOpen) -> bool {
    match open.grade {
        Grade::Outside | Grade::Interactive | Grade::Terminal | Grade::Exec => true,
        Grade::Workload => false,
    }
}

/// Whether a stage shows that the API server answered. `RequestReceived` alone counts only when
/// nothing else came within the lateness bound.
pub fn answered(record: &AuditRecord) -> bool {
    match record.stage {
        Stage::ResponseStarted | Stage::ResponseComplete | Stage::Panic => true,
        Stage::RequestReceived => false,
    }
}
