//! What things are called on the broker: streams, subjects, keys, consumers. Pure; the one place that
//! knows how node and cluster are written there.
//!
//! Dots separate words of a subject and may not be in names of streams and consumers, so a dot of a name
//! becomes an underscore, which names of nodes and clusters cannot have.

/// Longest name that is taken: that of a DNS name.
const LONGEST: usize = 253;

/// Whether a node or cluster can be named on the broker: letters, digits, dashes and dots.
pub fn is_fit(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= LONGEST
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
}

/// A name as one word of a subject.
pub fn word(name: &str) -> String {
    name.replace('.', "_")
}

/// Whether this is a word that [`word`] makes.
fn is_word(word: &str) -> bool {
    !word.is_empty()
        && word.len() <= LONGEST
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// The names of one agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    cluster: String,
    node: String,
}

impl Names {
    /// Of a node of a cluster.
    pub fn new(cluster: &str, node: &str) -> Self {
        Self { cluster: word(cluster), node: word(node) }
    }

    /// The node, as a word.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The stream of answers.
    pub fn stream(&self) -> String {
        format!("tokentrail_{}", self.cluster)
    }

    /// The bucket of what is asked and of who answers.
    pub fn bucket(&self) -> String {
        self.stream()
    }

    /// The stream by which the broker keeps the bucket.
    pub fn bucket_stream(&self) -> String {
        format!("KV_{}", self.bucket())
    }

    /// All subjects of answers.
    pub fn requests(&self) -> String {
        self.requests_of("*")
    }

    /// The subject of answers for a node, given as a word.
    pub fn requests_of(&self, node: &str) -> String {
        format!("tokentrail.{}.request.{node}", self.cluster)
    }

    /// The stream of alerts. No cluster's other streams can have such a name.
    pub fn alert_stream(&self) -> String {
        format!("ALERTS_{}", self.stream())
    }

    /// The subject of a node's alerts, given as a word; `*` for all.
    pub fn alerts_of(&self, node: &str) -> String {
        format!("tokentrail.{}.alert.{node}", self.cluster)
    }

    /// The subject of a key of the bucket, or of some.
    pub fn subject_of(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.bucket())
    }

    /// The key of what this node asks.
    pub fn ask(&self) -> String {
        format!("ask.{}", self.node)
    }

    /// The key of this audit side: that it is there, for all nodes.
    pub fn side(&self) -> String {
        format!("side.{}", self.node)
    }

    /// Where an audit side, given as a word, says how far it is to nodes that ask something; `*` for all sides.
    pub fn reached_by(&self, side: &str) -> String {
        format!("tokentrail.{}.reached.{side}", self.cluster)
    }

    /// The audit side, as a word, whose subject this is, be it of its key or of what it says to nodes that ask.
    pub fn side_at<'subject>(&self, subject: &'subject str) -> Option<&'subject str> {
        let prefixes = [self.subject_of("side."), self.reached_by("")];
        named_side(prefixes.iter().find_map(|prefix| subject.strip_prefix(&**prefix))?)
    }

    /// Where replies to this agent go: a prefix that no other node may listen to, and that `_INBOX.>`, which
    /// NATS users often have, does not contain.
    pub fn inbox(&self) -> String {
        format!("_INBOX_tokentrail.{}.{}", self.cluster, self.node)
    }
}

/// All keys of what nodes ask.
pub const ASKS: &str = "ask.*";
/// All keys of audit sides.
pub const SIDES: &str = "side.*";

/// The node, as a word, whose question this key holds.
pub fn asker(key: &str) -> Option<&str> {
    key.strip_prefix("ask.").filter(|node| is_word(node))
}

/// Header of an answer that names the audit side, as a word.
pub const SIDE: &str = "Tokentrail-Side";

/// The audit side that this header's value names.
pub fn named_side(value: &str) -> Option<&str> {
    Some(value).filter(|side| is_word(side))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_nodes_are_told_apart_on_the_broker() {
        let names = Names::new("prod.eu", "ip-10-0-0-1.eu.internal");
        assert_eq!(names.stream(), "tokentrail_prod_eu");
        assert_eq!(names.ask(), "ask.ip-10-0-0-1_eu_internal");
        assert_eq!(
            names.requests_of(names.node()),
            "tokentrail.prod_eu.request.ip-10-0-0-1_eu_internal"
        );
        assert_eq!(asker(&names.ask()), Some(names.node()));
        let subjects = [names.subject_of(&names.side()), names.reached_by(names.node())];
        assert_eq!(subjects[1], "tokentrail.prod_eu.reached.ip-10-0-0-1_eu_internal");
        assert_eq!(subjects.each_ref().map(|it| names.side_at(it)), [Some(names.node()); 2]);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for (name, fit) in [
            ("node-b", true),
            ("a.b.c", true),
            ("", false),
            ("a_b", false),
            ("a b", false),
            ("a*", false),
            (">", false),
            ("ü", false),
            (&"a".repeat(254), false),
        ] {
            assert_eq!(is_fit(name), fit, "{name}");
        }
        for (key, node) in [
            ("ask.node-b", Some("node-b")),
            ("ask.", None),
            ("ask.a.b", None),
            ("ask.*", None),
            ("ask.a=b", None),
            ("side.a", None),
            ("node-b", None),
            ("", None),
        ] {
            assert_eq!(asker(key), node, "{key}");
        }
        let names = Names::new("test", "node-b");
        for (subject, side) in [
            ("$KV.tokentrail_test.side.a", Some("a")),
            ("tokentrail.test.reached.a", Some("a")),
            ("$KV.tokentrail_test.ask.a", None),
            ("$KV.tokentrail_other.side.a", None),
            ("tokentrail.other.reached.a", None),
            ("tokentrail.test.reached.a.b", None),
            ("tokentrail.test.reached.", None),
            ("tokentrail.test.request.a", None),
            ("_INBOX.a", None),
        ] {
            assert_eq!(names.side_at(subject), side, "{subject}");
        }
    }
}
