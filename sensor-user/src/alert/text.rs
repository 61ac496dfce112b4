//! One alert as people read it. Works on the document's JSON, so it shows logs of other versions
//! too, and escapes control characters: an alert quotes an attacker.

use std::fmt::{self, Display, Write as _};

use serde_json::Value;

/// Lines of text for one document of the alert log.
pub fn render(document: &Value) -> String {
    let at = |path: &str| document.pointer(path);
    let text = |path: &str| Shown(at(path));
    let mut lines = String::new();
    // Writing to a `String` cannot fail.
    let _ = writeln!(
        lines,
        "{}  {} {}  {}  {}",
        text("/@timestamp"),
        severity(at("/event/severity")),
        text("/event/severity"),
        text("/rule/name"),
        text("/tokentrail/kind"),
    );
    // A read has no request, a token that is minted no open: what there is none of has no row.
    let mut row = |about: &str, name: &str, value: fmt::Arguments<'_>| {
        if at(about).is_some() {
            let _ = writeln!(lines, "  {name:<10} {value}");
        }
    };
    row("/message", "what", format_args!("{}", text("/message")));
    row(
        "/process",
        "process",
        format_args!(
            "{} (pid {}, uid {}, {}) from {}",
            text("/process/command_line"),
            text("/process/pid"),
            text("/process/user/id"),
            text("/tokentrail/grade"),
            text("/process/entry_leader/name"),
        ),
    );
    row(
        "/orchestrator/resource",
        "pod",
        format_args!(
            "{}/{} uid {}",
            text("/orchestrator/namespace"),
            text("/orchestrator/resource/name"),
            text("/orchestrator/resource/id"),
        ),
    );
    row(
        "/container",
        "container",
        format_args!(
            "{} image {} {} id {}",
            text("/container/name"),
            text("/container/image/name"),
            text("/container/image/tag/0"),
            text("/container/id"),
        ),
    );
    let initiators = at("/tokentrail/evidence/initiator").and_then(Value::as_array);
    for initiator in initiators.into_iter().flatten() {
        let text = |key: &str| Shown(initiator.get(key));
        row(
            "",
            "entered",
            format_args!("{} from {}: {}", text("user"), text("address"), text("why")),
        );
    }
    row("/file", "file", format_args!("{}", text("/tokentrail/file/raw_path")));
    let requests = at("/tokentrail/evidence/requests").and_then(Value::as_array);
    for request in requests.into_iter().flatten() {
        let text = |key: &str| Shown(request.get(key));
        row(
            "",
            "request",
            format_args!(
                "{} {} {} {} {} -> {} {}  {}",
                text("time"),
                text("verb"),
                text("resource"),
                text("namespace"),
                text("name"),
                text("code"),
                text("decision"),
                text("user_agent"),
            ),
        );
    }
    row("/source", "from", format_args!("{}", text("/source/ip")));
    row(
        "/user",
        "account",
        format_args!(
            "{}; {}",
            text("/user/name"),
            text("/tokentrail/evidence/service_account/rbac_reason")
        ),
    );
    row(
        "/tokentrail/incident",
        "incident",
        format_args!(
            "{} (opens: {}, requests: {})",
            text("/tokentrail/incident/id"),
            text("/tokentrail/incident/opens"),
            text("/tokentrail/incident/requests"),
        ),
    );
    row(
        "/host",
        "seen by",
        format_args!(
            "{} on {}, {} µs after the audit line was read",
            text("/tokentrail/sensor/route"),
            text("/host/name"),
            text("/tokentrail/latency_us"),
        ),
    );
    let steps = at("/tokentrail/response").and_then(Value::as_array);
    for step in steps.into_iter().flatten() {
        row("", "respond", format_args!("{}", Shown(step.get("command"))));
    }
    lines
}

fn severity(value: Option<&Value>) -> &'static str {
    match value.and_then(Value::as_u64).unwrap_or_default() {
        0..=21 => "LOW",
        22..=47 => "MEDIUM",
        48..=73 => "HIGH",
        74.. => "CRITICAL",
    }
}

/// A value on one line; `-` where there is none.
struct Shown<'a>(Option<&'a Value>);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None | Some(Value::Null) => f.write_char('-'),
            Some(Value::String(text)) if text.is_empty() => f.write_char('-'),
            Some(Value::String(text)) => Plain(text).fmt(f),
            Some(other) => write!(f, "{other}"),
        }
    }
}

/// Text that somebody wrote, on one line, that does nothing to a terminal.
pub struct Plain<'a>(pub &'a str);

impl Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|char| {
            // Control characters steer terminals; so do Unicode's direction marks.
            let steers = char.is_control()
                || matches!(char, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if steers { write!(f, "{}", char.escape_unicode()) } else { f.write_char(char) }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::render;

    #[test]
    fn what_an_attacker_chose_cannot_steer_the_terminal() {
        let text = render(&json!({
            "message": "\u{1b}[2Jcleared\r\n",
            "process": {"command_line": "a\u{202e}b"},
        }));
        assert!(text.contains(r"\u{1b}[2Jcleared\u{d}\u{a}") && text.contains(r"a\u{202e}b"));
    }

    #[test]
    fn a_document_with_nothing_in_it_is_shown_all_the_same() {
        assert_eq!(render(&json!({})), "-  LOW -  -  -\n");
        let read = render(&json!({"message": "read", "process": {}}));
        assert!(read.contains("what       read\n  process    -") && !read.contains("container"));
    }
}
