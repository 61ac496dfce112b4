//! What a node wants to know: requests of one of its pods, from when until when, and its own audit canaries. And
//! the document that holds all that a node asks, as it lies in the bucket. Pure; whatever is in the bucket may
//! have been written by anybody.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::time::Micros;

/// The document of a node that asks nothing.
pub const NOTHING: &[u8] = br#"{"interests":[]}"#;
/// Pods that a node asks about at once.
pub const MOST: usize = 512;
/// Longest document, bytes.
pub const MAX_BYTES: usize = 256 << 10;
/// Longest span that is asked about: an incident lasts for hours at most.
const LONGEST: Micros = Micros::from_secs(24 * 3_600);
/// Addresses of one pod.
const ADDRESSES: usize = 8;
/// Longest text, bytes: that of a DNS name.
const TEXT: usize = 253;

/// A node's question about one pod. Times are wall clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interest {
    /// Uid of the pod.
    pub pod: String,
    /// The earliest received time of a request that is wanted.
    pub from: Micros,
    /// The latest.
    pub until: Micros,
    /// Namespace of the pod, where the node knows it; so with what follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Its addresses, or its node's if it uses that one's network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
}

impl Interest {
    /// Whether a request received then is wanted.
    pub fn covers(&self, received: Micros) -> bool {
        self.from <= received && received <= self.until
    }

    fn is_sound(&self) -> bool {
        let texts = [&self.namespace, &self.name, &self.account].into_iter().flatten();
        is_uid(&self.pod)
            && self.from <= self.until
            && self.until - self.from <= LONGEST
            && texts.chain(&self.addresses).all(|text| text.len() <= TEXT)
            && self.addresses.len() <= ADDRESSES
    }

    /// Brings addresses into the form in which they are compared.
    fn canonical(mut self) -> Self {
        self.addresses = self
            .addresses
            .iter()
            .filter_map(|it| Some(it.parse::<IpAddr>().ok()?.to_canonical().to_string()))
            .collect();
        self
    }
}

/// What a node asks by now. Rounds are numbered, so that who answers can say what the answer considers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Greater than that of each earlier round.
    pub number: u64,
    /// All of it.
    pub interests: Vec<Interest>,
}

/// All that a node asks, as the document has it. Other JSON does not pass for asking nothing: whoever may talk
/// to the broker can have its replies put under another node's key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// What it asks of pods.
    pub interests: Vec<Interest>,
    /// The run of its audit canary, whose events it wants to see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<String>,
}

impl Question {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.interests.is_empty() && self.canary.is_none()
    }
}

/// Why a document, or something in it, is not heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// Its key names no node.
    Key,
    /// It is no such document.
    Shape,
    /// An interest that cannot be, or one too many.
    Bounds,
    /// The pod is another node's.
    Node,
}

/// The document of this, and what found room in it: interests that end first give way.
pub fn encode(question: Question) -> (Vec<u8>, Question) {
    let Question { mut interests, canary } = question;
    interests.retain_mut(|interest| {
        interest.addresses.truncate(ADDRESSES);
        interest.is_sound()
    });
    interests.sort_by_key(|interest| std::cmp::Reverse(interest.until));
    interests.truncate(MOST);
    let mut document = Question { interests, canary };
    loop {
        // Texts and times: they always have a JSON form.
        let bytes = serde_json::to_vec(&document).unwrap_or_default();
        if bytes.len() <= MAX_BYTES {
            return (bytes, document);
        }
        document.interests.truncate(document.interests.len() / 2);
    }
}

/// What a document asks, and how much of it is refused.
///
/// # Errors
/// It is none.
pub fn decode(bytes: &[u8]) -> Result<(Question, usize), Refused> {
    if bytes.len() > MAX_BYTES {
        return Err(Refused::Bounds);
    }
    let Question { interests, canary } =
        serde_json::from_slice(bytes).map_err(|_| Refused::Shape)?;
    let all = interests.len() + usize::from(canary.is_some());
    let sound = interests.into_iter().take(MOST).filter(Interest::is_sound);
    let interests: Vec<_> = sound.map(Interest::canonical).collect();
    let canary = canary.filter(|run| is_uid(run));
    let refused = all - interests.len() - usize::from(canary.is_some());
    Ok((Question { interests, canary }, refused))
}

/// Whether this may be a pod's uid or a run's name.
fn is_uid(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
impl Interest {
    /// In requests of this pod between these times, and nothing more is known.
    pub(crate) fn example(pod: &str, from: i64, until: i64) -> Self {
        Self {
            pod: pod.to_owned(),
            from: Micros::from_secs(from),
            until: Micros::from_secs(until),
            namespace: None,
            name: None,
            account: None,
            addresses: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asking(interests: Vec<Interest>) -> Question {
        Question { interests, canary: None }
    }

    #[test]
    fn what_anybody_may_have_written_is_refused_and_never_believed() {
        let row = |more: &str| {
            format!(
                r#"{{"interests":[{{"pod":"0f4f-1","from":"2026-11-22T10:00:00.000000Z",
                "until":"2026-11-22T10:02:00.000000Z"{more}}}]}}"#
            )
        };
        let long = format!(r#","name":"{}""#, "n".repeat(254));
        let addresses = format!(r#","addresses":[{}]"#, [r#""10.0.0.1""#; 9].join(","));
        for (document, expected) in [
            (row(""), Ok((1, 0))),
            (row(r#","of-tomorrow":{"a":[1]}"#), Ok((1, 0))),
            (r#"{"interests":[]}"#.to_owned(), Ok((0, 0))),
            (r#"{"interests":[],"canary":null}"#.to_owned(), Ok((0, 0))),
            (r#"{"interests":[],"canary":"a_b"}"#.to_owned(), Ok((0, 1))),
            (format!(r#"{{"interests":[],"canary":"{}"}}"#, "a".repeat(65)), Ok((0, 1))),
            (r#"{"interests":[],"canary":7}"#.to_owned(), Err(Refused::Shape)),
            (r#"{"canary":"a-b"}"#.to_owned(), Err(Refused::Shape)),
            ("{}".to_owned(), Err(Refused::Shape)),
            // What the broker answers to a publish.
            (r#"{"stream":"KV_tokentrail_test","seq":7}"#.to_owned(), Err(Refused::Shape)),
            (row(&long), Ok((0, 1))),
            (row(&addresses), Ok((0, 1))),
            (row("").replace("0f4f-1", ""), Ok((0, 1))),
            (row("").replace("0f4f-1", "../../etc"), Ok((0, 1))),
            (row("").replace("0f4f-1", &"a".repeat(65)), Ok((0, 1))),
            // Backwards, and for ever.
            (row("").replace("T10:02", "T09:02"), Ok((0, 1))),
            (row("").replace("2026-11-22T10:02", "2199-11-22T10:02"), Ok((0, 1))),
            (row("").replace("2026-11-22T10:00", "yesterday"), Err(Refused::Shape)),
            (row("").replace("pod", "dop"), Err(Refused::Shape)),
            (String::new(), Err(Refused::Shape)),
            ("[]".to_owned(), Err(Refused::Shape)),
            ("\u{0}".to_owned(), Err(Refused::Shape)),
            (" ".repeat(MAX_BYTES + 1), Err(Refused::Bounds)),
        ] {
            let found = decode(document.as_bytes());
            let found = found.map(|(asked, refused)| (asked.interests.len(), refused));
            assert_eq!(found, expected, "{document}");
        }
    }

    #[test]
    fn of_too_many_those_that_last_longest_are_asked() {
        let many: Vec<_> = (0..2_000).map(|at| Interest::example("a", 0, at)).collect();
        let (bytes, put) = encode(asking(many));
        let (heard, refused) = decode(&bytes).unwrap();
        assert_eq!((heard.interests.len(), refused), (MOST, 0));
        assert_eq!(put, heard);
        assert!(heard.interests.iter().all(|it| it.until >= Micros::from_secs(2_000 - 512)));
    }

    #[test]
    fn addresses_are_compared_in_one_form() {
        let mut interest = Interest::example("a", 0, 1);
        interest.addresses = ["::ffff:10.0.0.1", "10.0.0.2", "nowhere"].map(str::to_owned).into();
        let (bytes, _) = encode(asking(vec![interest]));
        let (heard, _) = decode(&bytes).unwrap();
        assert_eq!(heard.interests[0].addresses, ["10.0.0.1", "10.0.0.2"]);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn what_is_asked_is_heard(
            pod in "[0-9a-f-]{1,64}", from in 0_i64..4_000_000_000, span in 0_i64..86_400,
            name in proptest::option::of(".{0,60}"),
            canary in proptest::option::of("[0-9a-f-]{1,64}"),
        ) {
            let mut interest = Interest::example(&pod, from, from + span);
            interest.name = name;
            let question = Question { interests: vec![interest], canary };
            let (bytes, put) = encode(question.clone());
            prop_assert_eq!((decode(&bytes), &put), (Ok((question.clone(), 0)), &question));
        }
    }
}
