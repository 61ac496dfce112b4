//! The listing of `tokentrail rules` as people read it.

use std::fmt::{self, Write as _};

use super::{ListedException, ListedRule, Listing};
use crate::alert::text::Plain;

/// How a false positive is silenced. The example is a whole rules file.
const EXAMPLE: &str = "\
exceptions:
  - name: velero-backup                     # counted under this name
    rule: token-access-then-api-request     # the alert's rule.id
    namespace: velero                       # its orchestrator.namespace
    container: velero                       # its container.name
    initiator: 'system:serviceaccount:velero:*'   # its client.user.name
    grade: exec                             # its tokentrail.grade
    reason: the nightly backup runs kubectl in its own pod; looked at by alice, 2026-11-25
    until: 2027-05-31                       # optional: the last day on which it holds
  - name: velero-backup-read                # an exception is of one rule: without this
    rule: token-read                        # one the same sessions alert as mere reads
    namespace: velero
    container: velero
    initiator: 'system:serviceaccount:velero:*'
    grade: exec
    reason: the same
";

/// All rules, then how to silence a false positive.
pub(super) fn render(listing: &Listing) -> String {
    let mut out = String::new();
    // Writing to a `String` cannot fail.
    for rule in &listing.rules {
        let _ = write_rule(&mut out, rule);
    }
    let file = match &listing.rules_file {
        Some(path) => format!("the rules file ({})", path.display()),
        None => "a rules file (--rules-file FILE, or rules-file in the configuration; there is \
                 none yet)"
            .to_owned(),
    };
    let _ = writeln!(
        out,
        "To silence one false positive, find in its alert (tokentrail alerts) what only this case \
         has,\nand add an exception to {file}. The agent takes it\nwithin seconds; all conditions \
         must hold, and * stands for any run of characters:\n"
    );
    for line in EXAMPLE.lines() {
        let _ = writeln!(out, "  {line}");
    }
    out
}

fn write_rule(out: &mut String, rule: &ListedRule) -> fmt::Result {
    let band = format!("{:?}", rule.band).to_uppercase();
    writeln!(out, "{}  {band} {}", rule.id, rule.severity)?;
    writeln!(out, "  when       {}", rule.condition)?;
    for (row, tactic) in rule.mitre.iter().enumerate() {
        let label = if row == 0 { "mitre" } else { "" };
        let techniques: Vec<String> =
            tactic.techniques.iter().map(|it| format!("{} {}", it.id, it.name)).collect();
        let techniques = techniques.join(", ");
        writeln!(out, "  {label:<10} {} {}: {techniques}", tactic.id, tactic.name)?;
    }
    for (label, values) in [("excluded", &rule.exclusions), ("decoys", &rule.decoys)] {
        let Some(values) = values else { continue };
        let none = ["none".to_owned()];
        let values = if values.is_empty() { &none } else { values.as_slice() };
        for (row, value) in values.iter().enumerate() {
            let label = if row == 0 { label } else { "" };
            // What the agent asks of such users besides.
            let note =
                if value.starts_with("system:node:") { "  (in group system:nodes)" } else { "" };
            writeln!(out, "  {label:<10} {}{note}", Plain(value))?;
        }
    }
    for exception in &rule.exceptions {
        write_exception(out, exception)?;
    }
    writeln!(out)
}

fn write_exception(out: &mut String, exception: &ListedException) -> fmt::Result {
    let hits = match (exception.hits, exception.last_hit) {
        (None, _) => "not counted yet".to_owned(),
        (Some(hits), None) => format!("{hits} swallowed"),
        (Some(hits), Some(last)) => format!("{hits} swallowed, the last at {last}"),
    };
    writeln!(out, "  exception  {}: {hits}", exception.name)?;
    let conditions: Vec<String> =
        exception.conditions.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    writeln!(out, "             if {}", Plain(&conditions.join(", ")))?;
    writeln!(out, "             because {}", Plain(&exception.reason))?;
    if let Some(until) = &exception.until {
        writeln!(out, "             until {until}")?;
    }
    if let Some(doubt) = &exception.doubt {
        writeln!(out, "             WARNING: {doubt}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{EXAMPLE, Listing, render};
    use crate::{
        rules::{catalogue::RuleId, exceptions::hits::Hits, rulebook::Rulebook},
        time::Micros,
    };

    const NOW: Micros = Micros::from_secs(1_800_000_000);

    #[test]
    fn the_example_is_a_rules_file() {
        assert_eq!(Rulebook::parse(EXAMPLE).unwrap().exceptions.iter().count(), 2);
    }

    #[test]
    fn every_rule_is_listed_with_what_is_excluded_and_excepted() {
        let rulebook = format!("{EXAMPLE}token-request-by-user: {{kube-system: alert}}\n");
        let rulebook = Rulebook::parse(&rulebook).unwrap();
        let exception = rulebook.exceptions.iter().next().unwrap();
        let mut hits = Hits::default();
        hits.align(&rulebook.exceptions, NOW);
        hits.note(&exception.id, NOW);
        hits.note(&exception.id, NOW);
        let past = Micros::parse("2027-06-01T00:00:00Z").unwrap();
        let text = render(&Listing::new(Some("rules.yaml".into()), &rulebook, &hits, past));
        for id in RuleId::ALL {
            assert!(text.contains(&format!("{id}  ")) && text.contains(id.condition()), "{id}");
        }
        for says in [
            "MEDIUM 47",
            "CRITICAL 99",
            "TA0006 Credential Access: T1528 Steal Application Access Token, T1552.001 Credentials",
            "excluded   system:kube-controller-manager",
            "system:node:*  (in group system:nodes)",
            "decoys     none",
            "velero-backup: 2 swallowed, the last at 2027-01-15T08:00:00.000000Z",
            "because the nightly backup",
            "WARNING: its last day was 2027-05-31",
            "rules file (rules.yaml)",
        ] {
            assert!(text.contains(says), "{says:?} is not in\n{text}");
        }
        assert!(!text.contains("system:serviceaccount:kube-system:*"), "{text}");
    }

    #[test]
    fn what_a_rules_file_says_cannot_steer_the_terminal() {
        let rulebook = r#"
exceptions:
- {name: a, rule: token-read, namespace: "shop\u202e", reason: "looked\e[1A\nat\n"}
token-request-by-user: {extend: ["eve\u202e"]}
"#;
        let rulebook = Rulebook::parse(rulebook).unwrap();
        let text = render(&Listing::new(None, &rulebook, &Hits::default(), NOW));
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
        for says in [r"namespace: shop\u{202e}", r"because looked\u{1b}[1A at", r"eve\u{202e}"] {
            assert!(text.contains(says), "{says:?} is not in\n{text}");
        }
    }
}
