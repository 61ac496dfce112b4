//! A yardstick of `cargo xtask bench replay`, which runs it: reads an audit log line by line into
//! a typed structure of all that Elastic's two rules ask for, and counts the lines of pods.

use std::{borrow::Cow, collections::HashMap, env, fs::File, io::Read as _};

use anyhow::{Context as _, Result};
use memchr::memchr;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    #[serde(borrow)]
    stage: Cow<'a, str>,
    #[serde(borrow)]
    verb: Cow<'a, str>,
    #[serde(borrow)]
    user: User<'a>,
    #[serde(borrow)]
    object_ref: Option<ObjectRef<'a>>,
    #[serde(borrow)]
    stage_timestamp: Cow<'a, str>,
}

#[derive(Deserialize)]
struct User<'a> {
    #[serde(borrow, default)]
    username: Cow<'a, str>,
    #[serde(borrow, default)]
    extra: HashMap<Cow<'a, str>, Vec<Cow<'a, str>>>,
}

#[derive(Deserialize)]
struct ObjectRef<'a> {
    #[serde(borrow)]
    resource: Option<Cow<'a, str>>,
    #[serde(borrow)]
    subresource: Option<Cow<'a, str>>,
}

fn main() -> Result<()> {
    let path = env::args().nth(1).context("names no file")?;
    let mut file = File::open(path)?;
    let (mut buffer, mut held) = (vec![0; 1 << 20], 0);
    let (mut answers, mut tokens, mut newest) = (0_u64, 0_u64, String::new());
    loop {
        let read = file.read(buffer.get_mut(held..).context("a line of a megabyte")?)?;
        if read == 0 {
            break;
        }
        let mut rest = buffer.get(..held + read).unwrap_or_default();
        while let Some(end) = memchr(b'\n', rest) {
            let (line, after) = rest.split_at(end);
            rest = after.get(1..).unwrap_or_default();
            let event: Event<'_> = serde_json::from_slice(line)?;
            let object = event.object_ref.as_ref();
            let is = |field: Option<&Cow<'_, str>>, text: &str| field.is_some_and(|it| it == text);
            let resource = object.and_then(|object| object.resource.as_ref());
            let subresource = object.and_then(|object| object.subresource.as_ref());
            tokens += u64::from(
                event.verb == "create"
                    && is(resource, "serviceaccounts")
                    && is(subresource, "token")
                    && !event.user.username.starts_with("system:"),
            );
            answers += u64::from(
                event.stage.starts_with("Response")
                    && event.user.extra.contains_key("authentication.kubernetes.io/pod-name"),
            );
            if *event.stage_timestamp > *newest {
                newest.replace_range(.., &event.stage_timestamp);
            }
        }
        let (from, length) = (held + read - rest.len(), rest.len());
        buffer.copy_within(from.., 0);
        held = length;
    }
    #[expect(clippy::print_stdout, reason = "its one line of output")]
    {
        println!("{answers} {tokens} {newest}");
    }
    Ok(())
}
