//! The one English sentence of an alert, for each rule.

use super::{evidence, who::Who};
use crate::{
    attribution::{Grade, TokenFile, TokenOpen},
    audit::AuditRecord,
    correlation::{Finding, Kind, Listed},
    rules::catalogue::RuleId,
};

/// Accounts that a sentence names.
const NAMED_ACCOUNTS: usize = 20;

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
            format!(
                "no more tokens were minted in this hour; {requests} request(s) in all, for {}",
                accounts(&finding.requests)
            )
        }
        RuleId::TokenReadFromOutside => format!(
            "the reading of tokens from outside has ended after {opens} open(s) in {} pod(s) and \
             {requests} request(s)",
            finding.victims.len()
        ),
        RuleId::TokenAccessThenApiRequest | RuleId::TokenRead | RuleId::DecoyUsed => {
            // What came after the first one may have been either.
            let public = finding.open.as_ref().is_some_and(|it| it.open.file == TokenFile::CaCert);
            let file = if public { "ca.crt or token" } else { "token" };
            format!(
                "the incident in {pod} has ended after {opens} open(s) of its {file} and \
                 {requests} request(s)"
            )
        }
    }
}

/// The service accounts that tokens were asked for: where one incident is for many, nothing else names
/// them. As many as a sentence bears.
fn accounts(requests: &[Listed]) -> String {
    let mut accounts: Vec<String> = Vec::new();
    for request in requests {
        let part = |part: &Option<Box<str>>| part.as_deref().unwrap_or("?").to_owned();
        let account = format!("{}/{}", part(&request.asked.namespace), part(&request.asked.name));
        if !accounts.contains(&account) {
            accounts.push(account);
        }
    }
    let more = accounts.len().saturating_sub(NAMED_ACCOUNTS);
    accounts.truncate(NAMED_ACCOUNTS);
    let named = accounts.join(", ");
    if more == 0 { named } else { format!("{named} and {more} more") }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Who, accounts, of};
    use crate::{
        attribution::{TokenFile, TokenOpen, pods::PodIndex},
        audit::Stage,
        correlation::{Asked, Listed, Open, ids::RequestId, story::Story},
        rules::{Band, RequestKind, catalogue::RuleId},
        time::Micros,
    };

    #[test]
    fn where_the_certificate_was_opened_nobody_is_told_of_the_token() {
        for (file, says) in
            [(TokenFile::Token, "its token "), (TokenFile::CaCert, "its ca.crt or token ")]
        {
            let open = TokenOpen { file, ..TokenOpen::example(Micros(0)) };
            let open = Some(Arc::new(Open::new("boot", open)));
            let rule = RuleId::TokenAccessThenApiRequest;
            let summary = Story::begin(rule, "i".into(), open, None).summary();
            let said = of(&summary, &Who::of(&summary, &PodIndex::default()));
            assert!(said.contains(says), "{said}");
        }
    }

    #[test]
    fn each_account_is_named_once_and_the_rest_is_counted() {
        let record = |name: usize| {
            let event = serde_json::json!({
                "auditID": name.to_string(), "stage": Stage::ResponseComplete, "verb": "create",
                "requestURI": "/", "objectRef": {"namespace": "shop", "name": format!("a{name}")},
                "requestReceivedTimestamp": Micros(0), "stageTimestamp": Micros(0),
            });
            serde_json::from_value(event).unwrap()
        };
        let listed = |name: usize| Listed {
            id: RequestId::of(&record(name)),
            received: Micros(0),
            stage: (Micros(0), Stage::ResponseComplete),
            request: RequestKind::Unknown,
            band: Band::Medium,
            code: Some(201),
            asked: Arc::new(Asked::of(&record(name))),
        };
        let requests = |names: &[usize]| names.iter().copied().map(listed).collect::<Vec<_>>();
        assert_eq!(accounts(&requests(&[1, 2, 1])), "shop/a1, shop/a2");
        let many: Vec<usize> = (0..25).collect();
        assert!(accounts(&requests(&many)).ends_with("shop/a19 and 5 more"));
    }
}
