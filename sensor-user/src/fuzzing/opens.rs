//! Documents of opens, against a full parse of each.

use serde_json::Value;

use crate::{
    attribution::{Grade, TokenFile},
    audit::BadLine,
    replay::opens::{OpenDocument, parse},
    time::Micros,
};

/// A document is an open, or none, by what a full parse finds in it, and the open says that.
pub fn opens(line: &[u8]) {
    let found = parse(line);
    if let Ok(Some(document)) = &found {
        let open = document.open();
        assert_eq!((open.time, open.wall), (document.time, document.time));
        assert!(Micros::parse_believable(&document.time.to_string()).is_some());
    }
    let text = String::from_utf8_lossy(line);
    let Ok(document) = serde_json::from_str::<Value>(&text) else { return };
    if !document.is_object() {
        return;
    }
    // A key that is there twice is refused; `Value` has the last.
    if found != Err(BadLine::WrongShape) {
        is_right(&found, &document, &text);
    }
    let plain = document.to_string();
    is_right(&parse(plain.as_bytes()), &document, &plain);
}

fn is_right(found: &Result<Option<OpenDocument>, BadLine>, document: &Value, text: &str) {
    let mut fields = Vec::new();
    gather(document, None, &mut fields);
    let values = |field: &str| {
        fields.iter().filter(|(name, _)| name == field).map(|(_, it)| *it).collect::<Vec<_>>()
    };
    let has = |field: &str, text: &str| values(field).iter().any(|value| *value == text);
    let files: Vec<_> =
        values("file.path").into_iter().filter_map(Value::as_str).filter_map(file).collect();
    let own = values("tokentrail.open").into_iter().any(Value::is_object);
    let is_open = own || (!files.is_empty() && has("event.action", "open"));
    let times: Vec<_> = values("@timestamp").into_iter().filter_map(Value::as_str).collect();
    match found {
        Ok(None) => assert!(!is_open, "missed: {text}"),
        Ok(Some(document)) => {
            assert!(is_open, "taken: {text}");
            assert!(times.iter().any(|time| Micros::parse(time) == Some(document.time)), "{text}");
            let is_elastic = has("host.os.type", "linux")
                && has("event.category", "file")
                && has("event.type", "change")
                && has("event.action", "open")
                && ["token", "ca.crt"].iter().any(|it| has("file.path", &format!("{FOLDER}{it}")))
                && values("process.interactive").contains(&&Value::Bool(true))
                && !values("container.id").is_empty();
            assert_eq!(document.is_elastic, is_elastic, "{text}");
            let mut names: Vec<_> = values("orchestrator.resource.name")
                .into_iter()
                .filter_map(|name| match name {
                    Value::Number(number) => number.as_u64().map(|number| number.to_string()),
                    name => name.as_str().map(str::to_owned),
                })
                .collect();
            let mut found = document.names.clone();
            names.sort_unstable();
            found.sort_unstable();
            assert_eq!(found, names, "{text}");
            if !own && values("tokentrail.grade").is_empty() {
                let open = document.open();
                assert!(files.contains(&open.file), "{text}");
                let interactive = values("process.interactive").contains(&&Value::Bool(true));
                assert_eq!(open.grade == Grade::Interactive, interactive, "{text}");
            }
        }
        Err(BadLine::BadTime) => {
            assert!(is_open, "{text}");
            let first = times.first().and_then(|time| Micros::parse_believable(time));
            assert!(first.is_none() || times.len() > 1, "{text}");
        }
        // Our own record, but not whole.
        Err(BadLine::WrongShape) => assert!(own, "{text}"),
        Err(reason) => panic!("{reason}: {text}"),
    }
}

const FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount/";

/// What a path names: the volume's file, by its link or by the folder that the link leads to.
fn file(path: &str) -> Option<TokenFile> {
    let folder = FOLDER.trim_start_matches("/var");
    let rest = path.strip_prefix("/var").unwrap_or(path).strip_prefix(folder)?;
    let parts: Vec<_> = rest.split('/').collect();
    match parts.as_slice() {
        ["token"] => Some(TokenFile::Token),
        ["ca.crt"] => Some(TokenFile::CaCert),
        [first, .., "token"] if first.starts_with("..") => Some(TokenFile::Token),
        [first, .., "ca.crt"] if first.starts_with("..") => Some(TokenFile::CaCert),
        _ => None,
    }
}

/// The fields of a document by their dotted names.
fn gather<'a>(value: &'a Value, name: Option<&str>, fields: &mut Vec<(String, &'a Value)>) {
    match (value, name) {
        (Value::Object(_), Some("tokentrail.open")) => {
            fields.push(("tokentrail.open".to_owned(), value));
        }
        (Value::Object(members), name) => {
            for (key, value) in members {
                let name = name.map_or_else(|| key.clone(), |name| format!("{name}.{key}"));
                gather(value, Some(&name), fields);
            }
        }
        (Value::Array(values), name) => {
            values.iter().for_each(|value| gather(value, name, fields));
        }
        (Value::Null, _) | (_, None) => {}
        (value, Some(name)) => fields.push((name.to_owned(), value)),
    }
}
