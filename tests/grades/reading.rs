//! A node on which tokens are read: one reading, and what the agent recorded of it.

use std::{fmt::Debug, fs};

use serde_json::Value;
use tokentrail_tests::{Agent, Container, Node, PATIENCE, Pod, TOKEN_PATH, wait_until};

/// Grade and whether the opener's session is the workload's own.
pub(crate) type Expected = (&'static str, Option<bool>);

/// The workload's own tree.
pub(crate) const WORKLOAD: Expected = ("workload", Some(true));
/// The same, with a program that it was not seen to read with.
pub(crate) const FOREIGN: Expected = ("foreign", Some(true));
/// Entered, without a terminal.
pub(crate) const EXEC: Expected = ("exec", Some(false));
/// Entered, at a terminal.
pub(crate) const INTERACTIVE: Expected = ("interactive", Some(false));
/// Entered with a terminal, descriptor 0 or 2 elsewhere.
pub(crate) const TERMINAL: Expected = ("terminal", Some(false));
/// From the host.
pub(crate) const OUTSIDE: Expected = ("outside", None);

/// A running agent that records what is opened.
pub(crate) struct Scene<'sandbox> {
    pub(crate) node: Node<'sandbox>,
    _agent: Agent,
}

impl<'sandbox> Scene<'sandbox> {
    /// Starts the agent.
    pub(crate) fn of(node: Node<'sandbox>) -> Self {
        let agent = node.agent.start().unwrap();
        Self { node, _agent: agent }
    }

    /// The one open of this pod's token that `read` leads to, now or a little later.
    #[track_caller]
    pub(crate) fn open_by<R: Debug>(&self, pod: &Pod, read: impl FnOnce() -> R) -> Value {
        let before = self.node.opens_of(pod).unwrap().len();
        let told = read();
        let what = format!("an open is recorded of what told {told:?}");
        let opens = wait_until(PATIENCE, &what, || {
            Ok(Some(self.node.opens_of(pod)?).filter(|opens| opens.len() > before))
        });
        let mut opens = opens.unwrap();
        assert_eq!(opens.len(), before + 1, "{opens:#?}");
        opens.pop().unwrap()
    }
}

/// How an open was graded.
pub(crate) fn grade(open: &Value) -> (&str, Option<bool>) {
    let text = |pointer: &str| open.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let native = open.pointer("/tokentrail/open/native").and_then(Value::as_bool);
    (text("/tokentrail/grade"), native)
}

/// A command of a shell that reads the token.
pub(crate) fn cat() -> String {
    format!("cat {TOKEN_PATH}")
}

/// A script whose shell leaves a child behind that reads the token when the shell has ended.
pub(crate) fn orphan() -> String {
    let late = format!("while kill -0 $parent 2>/dev/null; do :; done; {} > /dev/null", cat());
    format!("parent=$$; ( ({late}) & )")
}

/// The same with a child that is the first process of a pid namespace, as a container's own is.
pub(crate) fn orphan_in_a_pid_namespace() -> String {
    let late = format!("while [ -e /proc/$parent ]; do :; done; {} > /dev/null", cat());
    format!("parent=$$; (unshare -U -p -f sh -c \"{late}\" &)")
}

/// A script whose shell is so many generations above the reader that no walk through parents finds it.
pub(crate) fn deep() -> String {
    let script =
        format!(r#"n=$((n-1)); if [ $n -gt 0 ]; then sh -c "$script"; true; else {}; fi"#, cat());
    format!("export n=40 script='{script}'; sh -c \"$script\"")
}

/// Lets a user `app` be, beside root.
pub(crate) fn add_user(container: &Container) {
    let passwd = container.root().join("etc/passwd");
    let users = fs::read_to_string(&passwd).unwrap();
    fs::write(passwd, format!("{users}app:x:1000:1000:app:/:/bin/sh\n")).unwrap();
}
