//! The one English sentence of an alert, for each rule.

use super::{evidence, who::Who};
use crate::{
    attribution::{Grade, TokenOpen},
    audit::AuditRecord,
    correlation::{Finding, Kind},
    rules::catalogue::RuleId,
};

/// What happened, in one sentence.
pub(super) fn of(finding: &Finding, who: &Who<'_>) -> String {
    let pod = match (who.namespace, who.pod_name) {
        (Some(namespace), Some(name)) => format!("pod {namespace}/{name}"),
        _ => format!("pod {}", who.pod_uid.unwrap_or("unknown")),
    };
    let open = finding.open.as_ref().map(|open| &open.open);
    let request = finding.request.as_ref().map(|request| &*request.record);
    if finding.kind == Kind::Incident {
        return ended(finding, &pod);
    }
    let told = match (finding.rule, open, request) {
        (RuleId::TokenRequestByUser, _, Some(request)) => minted(request),
        (RuleId::DecoyUsed, _, Some(request)) => format!(
            "the decoy {} was used: {} {} {}",
            decoy(request),
            request.user.username,
            answer(request),
            evidence::what(request)
        ),
        (RuleId::DecoyUsed, Some(open), None) => {
            format!("the token of a decoy was opened: {}", opened(open, &pod))
        }
        (_, Some(open), Some(request)) if finding.kind == Kind::Alert => {
            format!("{}, and {} {}", opened(open, &pod), later(open, request), asked(request))
        }
        (_, _, Some(request)) => format!("in the incident in {pod}, {}", asked(request)),
        (_, Some(open), None) => opened(open, &pod),
        (_, None, None) => format!("something happened in {pod}"),
    };
    match finding.kind {
        Kind::Escalation => format!("worse than told before: {told}"),
        Kind::Alert | Kind::Incident => told,
    }
}

fn ended(finding: &Finding, pod: &str) -> String {
    let (opens, requests) = (finding.open_count, finding.request_count);
    match finding.rule {
        RuleId::TokenRequestByUser => {
            format!("no more tokens were minted in this hour; {requests} request(s) in all")
        }
        RuleId::TokenReadFromOutside => format!(
            "the reading of tokens from outside has ended after {opens} open(s) in {} pod(s) and \
             {requests} request(s)",
            finding.victims.len()
        ),
        RuleId::TokenAccessThenApiRequest | RuleId::TokenRead | RuleId::DecoyUsed => format!(
            "the incident in {pod} has ended after {opens} open(s) of its token and {requests} \
             request(s)"
        ),
    }
}

fn opened(open: &TokenOpen, pod: &str) -> String {
    let file = open.path.rsplit('/').next().unwrap_or_default();
    let process = if open.comm.is_empty() { "a process" } else { &open.comm };
    let how = match open.grade {
        Grade::Outside => "from outside the pod",
        Grade::Interactive => "interactively",
        Grade::Terminal => "in a terminal session",
        Grade::Exec => "in an exec session",
        Grade::Foreign => "by a program that the workload does not read it with",
        Grade::Workload => "as the workload",
    };
    format!("{process} opened the {file} of {pod} {how}")
}

fn later(open: &TokenOpen, request: &AuditRecord) -> String {
    match (request.request_received_timestamp - open.wall).0 / 1_000 {
        before @ ..0 => format!("{} ms before that", -before),
        millis @ 0..2_000 => format!("{millis} ms later"),
        millis @ 2_000.. => format!("{} s later", millis / 1_000),
    }
}

fn asked(request: &AuditRecord) -> String {
    format!("{} {} {}", request.user.username, answer(request), evidence::what(request))
}

fn answer(request: &AuditRecord) -> &'static str {
    match request.allowed() {
        Some(true) => "was allowed to",
        Some(false) => "was refused to",
        None => "asked to",
    }
}

fn minted(request: &AuditRecord) -> String {
    let (namespace, name) = request.minted_for().unwrap_or_default();
    let user = &request.user.username;
    match request.allowed() {
        Some(true) => format!("{user} minted a token of service account {namespace}/{name}"),
        Some(false) | None => {
            format!("{user} attempted to mint a token of service account {namespace}/{name}")
        }
    }
}

fn decoy(request: &AuditRecord) -> String {
    let (namespace, name) =
        request.minted_for().or_else(|| request.service_account()).unwrap_or_default();
    format!("{namespace}/{name}")
}
