//! What exceptions swallow: each condition by itself, all of them together, and against a model.

use std::net::IpAddr;

use proptest::prelude::*;

use super::{ExceptionId, Exceptions, Subject};
use crate::{
    attribution::Grade,
    rules::{RequestKind, catalogue::RuleId, rulebook::Rulebook},
    time::Micros,
};

const NOW: Micros = Micros::from_secs(1_800_000_000);

fn exceptions(entries: &[&str]) -> Exceptions {
    let entry = |entry: &&str| format!("- {{{entry}}}\n");
    let entries: String = entries.iter().map(entry).collect();
    Rulebook::parse(&format!("exceptions:\n{entries}")).unwrap().exceptions
}

fn swallows(entry: &str, subject: &Subject<'_>) -> bool {
    let entry = format!("name: it, rule: token-read, reason: tested, {entry}");
    exceptions(&[&entry]).swallowing(RuleId::TokenRead, subject, NOW).is_some()
}

fn subject() -> Subject<'static> {
    Subject {
        cluster: Some("prod"),
        namespace: Some("shop"),
        owner: Some("cart-7d9c"),
        service_account: Some("cart"),
        pod: Some("cart-7d9c-x2x"),
        container: Some("app"),
        image: Some("registry.example/cart:1"),
        executable: Some("/usr/bin/cat"),
        command: Some("cat token"),
        user: Some("system:serviceaccount:shop:cart"),
        initiator: Some("alice"),
        user_agent: Some("kubectl/v1.35 (linux/amd64)"),
        verb: Some("list"),
        resource: Some("pods/exec"),
        source: Some(IpAddr::from([10, 1, 2, 3])),
        grade: Some(Grade::Exec),
        native: Some(false),
        request: Some(RequestKind::Own),
    }
}

#[test]
fn each_condition_matches_its_fact_whole_and_an_absent_fact_never() {
    for (matching, other) in [
        ("cluster: prod", "cluster: pro"),
        ("namespace: sh*", "namespace: hop"),
        ("owner: cart-*", "owner: cart"),
        ("service_account: cart", "service_account: Cart"),
        ("pod: cart-*-x2x", "pod: cart-7d9c"),
        ("container: app", "container: app2"),
        ("image: 'registry.example/cart:*'", "image: cart:1"),
        ("user: 'system:serviceaccount:shop:*'", "user: cart"),
        ("initiator: alice", "initiator: bob"),
        ("verb: list", "verb: get"),
        ("resource: pods/*", "resource: pods"),
        ("source: 10.0.0.0/8", "source: 11.0.0.0/8"),
        ("source: 10.1.2.3", "source: 10.1.2.4"),
        ("grade: exec", "grade: outside"),
        ("request: own", "request: new"),
        ("namespace: shop, executable: '*/cat'", "namespace: shop, executable: cat"),
        ("namespace: shop, command: 'cat *'", "namespace: shop, command: cat"),
        ("namespace: shop, user_agent: 'kubectl/*'", "namespace: shop, user_agent: curl*"),
        ("namespace: shop, native: false", "namespace: shop, native: true"),
    ] {
        assert!(swallows(matching, &subject()), "{matching}");
        assert!(!swallows(other, &subject()), "{other}");
        assert!(!swallows(matching, &Subject::default()), "{matching} of nothing");
    }
    let nearly = Subject { user_agent: None, ..subject() };
    assert!(!swallows("namespace: shop, user_agent: '*'", &nearly));
}

#[test]
fn an_address_is_the_same_in_both_of_its_forms() {
    let mapped = Subject { source: "::ffff:10.1.2.3".parse().ok(), ..Subject::default() };
    assert!(swallows("source: 10.0.0.0/8", &mapped));
    assert!(!swallows("source: 2001:db8::/32", &mapped));
    let six = Subject { source: "2001:db8::1".parse().ok(), ..Subject::default() };
    assert!(swallows("source: 2001:db8::/32", &six));
    assert!(!swallows("source: 10.0.0.0/8", &six));
}

#[test]
fn what_names_only_what_an_attacker_chooses_is_refused() {
    let refused = |entry: &str| {
        let text = format!("exceptions: [{{name: it, rule: token-read, reason: x{entry}}}]");
        Rulebook::parse(&text).is_err_and(|error| error.to_string().contains("attacker"))
    };
    for entry in [
        "",
        ", user_agent: kubectl*",
        ", command: cat",
        ", executable: /bin/cat",
        ", native: true",
        ", native: false, command: a, executable: b, user_agent: c",
        ", namespace: '*', command: cat",
        ", pod: '**'",
        ", source: 0.0.0.0/0",
        ", source: '::/0', user_agent: kubectl*",
    ] {
        assert!(refused(entry), "{entry}");
    }
    for entry in [", namespace: a*, command: cat", ", grade: exec", ", source: 10.0.0.0/8"] {
        assert!(!refused(entry), "{entry}");
    }
}

#[test]
fn an_exception_is_of_one_rule_and_holds_to_the_end_of_its_last_day() {
    let exceptions = exceptions(&[
        "name: old, rule: token-read, namespace: shop, reason: x, until: 2026-12-31",
        "name: other, rule: decoy-used, namespace: shop, reason: x",
        "name: late, rule: token-read, pod: cart*, reason: x, until: 2027-12-31",
    ]);
    let at = |rule, time| {
        let found = exceptions.swallowing(rule, &subject(), Micros::parse(time).unwrap());
        found.map(|id| id.to_string())
    };
    let read = RuleId::TokenRead;
    assert_eq!(at(read, "2026-12-31T23:59:59.999999Z").as_deref(), Some("old"), "the first one");
    assert_eq!(at(read, "2027-01-01T00:00:00.000000Z").as_deref(), Some("late"));
    assert_eq!(at(read, "2028-01-01T00:00:00.000000Z"), None);
    assert_eq!(at(RuleId::DecoyUsed, "2030-01-01T00:00:00Z").as_deref(), Some("other"));
    assert_eq!(at(RuleId::TokenReadFromOutside, "2026-01-01T00:00:00Z"), None);
}

#[test]
fn there_is_room_for_so_many_and_no_more() {
    let entries = |count| {
        let entry = |at| format!("- {{name: e{at}, rule: token-read, pod: a, reason: x}}\n");
        (0..count).map(entry).collect::<String>()
    };
    let parse = |count| Rulebook::parse(&format!("exceptions:\n{}", entries(count)));
    assert_eq!(parse(500).unwrap().exceptions.iter().count(), 500);
    let error = parse(501).unwrap_err().to_string();
    assert!(
        error.contains("line 502: exception e500") && error.contains("room for 500"),
        "{error}"
    );
}

/// An exception of the model: rule, namespace, pod, grade, whether its date is over.
type Model = (RuleId, Option<&'static str>, Option<&'static str>, Option<Grade>, bool);

fn model() -> impl Strategy<Value = Model> {
    let text = || proptest::option::of(proptest::sample::select(vec!["a", "b"]));
    let rule = proptest::sample::select(RuleId::ALL.to_vec());
    let grade = proptest::option::of(proptest::sample::select(vec![Grade::Exec, Grade::Outside]));
    (rule, text(), text(), grade, any::<bool>()).prop_filter("something must narrow it", |it| {
        it.1.is_some() || it.2.is_some() || it.3.is_some()
    })
}

proptest! {
    #[test]
    fn the_first_exception_all_of_whose_conditions_hold_swallows(
        models in proptest::collection::vec(model(), 0..6), subject in model()
    ) {
        let (rule, namespace, pod, grade, _) = subject;
        let entries: Vec<String> = models.iter().enumerate().map(|(at, it)| {
            let mut entry = format!("name: e{at}, rule: {}, reason: x", it.0);
            let until = if it.4 { "2020-01-01" } else { "2100-01-01" };
            let grade = it.3.map(Grade::as_str);
            let parts =
                [("namespace", it.1), ("pod", it.2), ("grade", grade), ("until", Some(until))];
            for (key, value) in parts {
                entry.extend(value.map(|value| format!(", {key}: {value}")));
            }
            entry
        }).collect();
        let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
        let expected = models.iter().position(|it| {
            it.0 == rule && !it.4
                && (it.1.is_none() || it.1 == namespace)
                && (it.2.is_none() || it.2 == pod)
                && (it.3.is_none() || it.3 == grade)
        });
        let subject = Subject { namespace, pod, grade, ..Subject::default() };
        let found = exceptions(&entries).swallowing(rule, &subject, NOW);
        let expected = expected.map(|at| format!("e{at}"));
        prop_assert_eq!(found.as_ref().map(ExceptionId::as_str), expected.as_deref());
    }
}
