//! What nodes ask, on the audit side: the one place that decides who wants a request. A table; no I/O and no
//! clock. Called by the engine.
//!
//! Bounded: a node may ask about [`interest::MOST`](super::interest::MOST) pods, so many nodes may ask, and
//! what a node does not say again is forgotten. When a question is over, the node leaves it out.

use std::collections::{HashMap, HashSet};

use super::{
    interest::{Interest, Question},
    names,
};
use crate::{
    audit::{AuditRecord, NODE_NAME, POD_NAME, SERVICE_ACCOUNT, canary::run},
    time::Micros,
};

/// Nodes that may ask: all that have an audit canary do.
const NODES: usize = 65_536;
/// How long what a node asks counts after it last said so: three times as long as it takes to say so again.
const FORGOTTEN: Micros = Micros::from_secs(15 * 60);
/// A node is sent no more of its canaries than one in so long: whoever knows what they bear must not fill its
/// share of the stream.
const CANARY_US: u64 = 500_000;

/// The table.
#[derive(Debug, Default)]
pub struct Asked {
    /// By node, as a word.
    nodes: HashMap<String, Asker>,
    /// Who asks, by pod.
    by_pod: HashMap<String, HashSet<String>>,
    /// The same, by user name of the pod's service account.
    by_account: HashMap<String, HashSet<(String, String)>>,
    /// The same, by name of the pod, as far as nodes name it.
    by_name: HashMap<PodName, HashSet<(String, String)>>,
    /// Who asks, by run of the audit canary.
    by_canary: HashMap<String, HashSet<String>>,
}

#[derive(Debug, Default)]
struct Asker {
    interests: HashMap<String, Interest>,
    canary: Option<String>,
    /// Received time of the canary that it was sent last.
    sent: Option<Micros>,
    said: Micros,
}

/// Namespace and name of a pod.
pub type PodName = (String, String);

/// Who wants a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Nodes, as words.
    pub nodes: Vec<String>,
    /// Nodes that asked for it although its token names another one.
    pub foreign: u64,
}

impl Asked {
    /// Whether this node may ask something, beside all that do.
    pub fn has_room(&self, node: &str) -> bool {
        self.nodes.len() < NODES || self.nodes.contains_key(node)
    }

    /// Takes all that a node asks by now, and that has room. Returns what it had not asked before.
    pub fn take(&mut self, node: &str, question: Question, now: Micros) -> Question {
        let before = self.remove(node);
        if question.is_empty() {
            return question;
        }
        let Question { interests, canary } = question;
        // Of several about one pod, one counts.
        let interests: HashMap<_, _> =
            interests.into_iter().map(|it| (it.pod.clone(), it)).collect();
        let reaches = |interest: &Interest| {
            let before = before.interests.get(&interest.pod);
            // Later ends are of requests that are yet to come, or are among those that are answered.
            before.is_some_and(|it| it.from <= interest.from && it.until >= interest.from)
        };
        let new = interests.values().filter(|interest| !reaches(interest)).cloned().collect();
        for interest in interests.values() {
            self.index(node, interest);
        }
        let (goes_on, sent) = (canary == before.canary, before.sent);
        let new = Question { interests: new, canary: canary.clone().filter(|_| !goes_on) };
        self.nodes.insert(node.to_owned(), Asker { interests, canary: None, sent, said: now });
        if let Some(run) = canary {
            self.add_canary(node, run);
        }
        new
    }

    /// Adds that a node wants to see its canaries of this run.
    pub fn add_canary(&mut self, node: &str, run: String) {
        self.by_canary.entry(run.clone()).or_default().insert(node.to_owned());
        self.nodes.entry(node.to_owned()).or_default().canary = Some(run);
    }

    /// Adds a question of a node, to be answered together with those that are there.
    pub fn add(&mut self, node: &str, interest: &Interest) {
        let mut both = interest.clone();
        let asker = self.nodes.entry(node.to_owned()).or_default();
        if let Some(held) = asker.interests.remove(&interest.pod) {
            both.from = both.from.min(held.from);
            both.until = both.until.max(held.until);
            self.drop_index(node, &held);
        }
        self.index(node, &both);
        let asker = self.nodes.entry(node.to_owned()).or_default();
        asker.interests.insert(both.pod.clone(), both);
    }

    /// Drops what a node does not ask any more, as `all` knows that.
    pub fn drop_unasked(&mut self, node: &str, all: &Self) {
        let before = self.remove(node);
        let asked = all.nodes.get(node);
        let is_asked = |pod: &String| asked.is_some_and(|it| it.interests.contains_key(pod));
        for interest in before.interests.into_values().filter(|it| is_asked(&it.pod)) {
            self.add(node, &interest);
        }
    }

    /// What is asked about `since` and later.
    pub fn since(&self, since: Micros) -> Self {
        let mut asked = Self::default();
        for (node, asker) in &self.nodes {
            for interest in asker.interests.values().filter(|it| it.until >= since) {
                let from = interest.from.max(since);
                asked.add(node, &Interest { from, ..interest.clone() });
            }
        }
        asked
    }

    /// Forgets what was not said for too long.
    pub fn forget(&mut self, now: Micros) {
        let over = |asker: &Asker| now - asker.said > FORGOTTEN;
        let over: Vec<String> =
            self.nodes.iter().filter(|(_, it)| over(it)).map(|(node, _)| node.clone()).collect();
        for node in over {
            self.remove(&node);
        }
    }

    /// Whether anybody asks for requests of this pod.
    pub fn has_pod(&self, uid: &str) -> bool {
        self.by_pod.contains_key(uid)
    }

    /// Whether anybody asks for requests of a pod of this service account, by user name.
    pub fn has_account(&self, user: &str) -> bool {
        self.by_account.contains_key(user)
    }

    /// Whether anybody wants to see its audit canaries.
    pub fn has_canary(&self) -> bool {
        !self.by_canary.is_empty()
    }

    /// All that is asked about pods, and by which nodes, as words.
    pub fn interests(&self) -> impl Iterator<Item = (&str, &Interest)> {
        self.nodes.iter().flat_map(|(node, asker)| {
            asker.interests.values().map(move |interest| (node.as_str(), interest))
        })
    }

    /// How much is asked about pods.
    pub fn pods(&self) -> usize {
        self.nodes.values().map(|asker| asker.interests.len()).sum()
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Who wants a request: the node of the pod that made it.
    pub fn wanted(&self, record: &AuditRecord) -> Wanted {
        let mut wanted = Wanted::default();
        let received = record.request_received_timestamp;
        let covers = |interest: &Interest| interest.covers(received);
        if let Some(uid) = record.pod_uid() {
            for (node, _) in self.of_pod(uid).filter(|(_, it)| covers(it)) {
                // Who may write the keys of other nodes could ask about pods of theirs.
                let claim = record.extra(NODE_NAME);
                if claim.is_none_or(|name| names::word(name) == node) {
                    wanted.add(node);
                } else {
                    wanted.foreign += 1;
                }
            }
        } else if let Some(address) = record.source_ip() {
            let asked = self.by_account.get(&record.user.username).into_iter().flatten();
            for (node, pod) in asked {
                let interest = self.nodes.get(node).and_then(|it| it.interests.get(pod));
                let has = |it: &&Interest| it.addresses.iter().any(|one| one == address);
                if interest.filter(has).is_some_and(covers) {
                    wanted.add(node);
                }
            }
        }
        wanted
    }

    /// The pod that a request is a way into, if any node asks about one of that name.
    pub fn way_into(&self, record: &AuditRecord) -> Option<PodName> {
        let object = record.object_ref.as_ref().filter(|object| object.is_way_into_pod())?;
        let name = (object.namespace.clone()?, object.name.clone()?);
        self.by_name.contains_key(&name).then_some(name)
    }

    /// Who asks about a pod of that name, as node and uid, and until when: who got in did so before.
    pub fn of_name(&self, name: &PodName) -> impl Iterator<Item = (&str, &Interest)> {
        self.by_name.get(name).into_iter().flatten().filter_map(|(node, pod)| {
            let interest = self.nodes.get(node)?.interests.get(pod)?;
            Some((node.as_str(), interest))
        })
    }

    /// Nodes that a record is to be sent to as their audit canary. It takes place of those that follow at once.
    pub fn canary_of(&mut self, record: &AuditRecord) -> Vec<String> {
        let run = record.user_agent.as_deref().and_then(run::of_user_agent);
        let Some(asking) = run.and_then(|run| self.by_canary.get(run)) else { return Vec::new() };
        let received = record.request_received_timestamp;
        let mut nodes = Vec::new();
        for node in asking {
            let Some(asker) = self.nodes.get_mut(node) else { continue };
            if asker.sent.is_none_or(|sent| received.0.abs_diff(sent.0) >= CANARY_US) {
                asker.sent = Some(received);
                nodes.push(node.clone());
            }
        }
        nodes
    }

    fn of_pod(&self, uid: &str) -> impl Iterator<Item = (&str, &Interest)> {
        self.by_pod.get(uid).into_iter().flatten().filter_map(move |node| {
            let interest = self.nodes.get(node)?.interests.get(uid)?;
            Some((node.as_str(), interest))
        })
    }

    fn index(&mut self, node: &str, interest: &Interest) {
        let key = || (node.to_owned(), interest.pod.clone());
        if let Some(user) = user_of(interest) {
            self.by_account.entry(user).or_default().insert(key());
        }
        if let Some(name) = name_of(interest) {
            self.by_name.entry(name).or_default().insert(key());
        }
        self.by_pod.entry(interest.pod.clone()).or_default().insert(node.to_owned());
    }

    fn drop_index(&mut self, node: &str, interest: &Interest) {
        let key = (node.to_owned(), interest.pod.clone());
        if let Some(user) = user_of(interest) {
            drop_from(&mut self.by_account, &user, &key);
        }
        if let Some(name) = name_of(interest) {
            drop_from(&mut self.by_name, &name, &key);
        }
        drop_from(&mut self.by_pod, &interest.pod, node);
    }

    fn remove(&mut self, node: &str) -> Asker {
        let Some(asker) = self.nodes.remove(node) else { return Asker::default() };
        if let Some(run) = &asker.canary {
            drop_from(&mut self.by_canary, run, node);
        }
        for interest in asker.interests.values() {
            self.drop_index(node, interest);
        }
        asker
    }
}

impl Wanted {
    fn add(&mut self, node: &str) {
        if !self.nodes.iter().any(|it| it == node) {
            self.nodes.push(node.to_owned());
        }
    }
}

fn drop_from<K, V, Q, W>(map: &mut HashMap<K, HashSet<V>>, key: &Q, value: &W)
where
    K: std::hash::Hash + Eq + std::borrow::Borrow<Q>,
    V: std::hash::Hash + Eq + std::borrow::Borrow<W>,
    Q: std::hash::Hash + Eq + ?Sized,
    W: std::hash::Hash + Eq + ?Sized,
{
    if let Some(values) = map.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            map.remove(key);
        }
    }
}

fn user_of(interest: &Interest) -> Option<String> {
    let (namespace, account) = interest.namespace.as_ref().zip(interest.account.as_ref())?;
    Some(format!("{SERVICE_ACCOUNT}{namespace}:{account}"))
}

/// The name of the pod that is asked about, where whoever asks gave it.
pub fn name_of(interest: &Interest) -> Option<PodName> {
    interest.namespace.clone().zip(interest.name.clone())
}

/// The name of the pod that made a request, as its token tells it.
pub fn pod_name(record: &AuditRecord) -> Option<PodName> {
    let (namespace, _) = record.service_account()?;
    Some((namespace.to_owned(), record.extra(POD_NAME)?.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(more: &serde_json::Value) -> AuditRecord {
        let mut event = json!({
            "auditID": "a", "stage": "ResponseComplete", "verb": "list", "requestURI": "/",
            "user": {"username": "system:serviceaccount:shop:cart"},
            "requestReceivedTimestamp": "1970-01-01T00:01:40.000000Z",
            "stageTimestamp": "1970-01-01T00:01:40.000000Z",
        });
        event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(event).unwrap()
    }

    fn by_pod(uid: &str, node: Option<&str>) -> AuditRecord {
        let mut extra = json!({"authentication.kubernetes.io/pod-uid": [uid]});
        if let Some(node) = node {
            extra["authentication.kubernetes.io/node-name"] = json!([node]);
        }
        record(&json!({"user": {"username": "system:serviceaccount:shop:cart", "extra": extra}}))
    }

    fn take(asked: &mut Asked, node: &str, interests: Vec<Interest>, now: Micros) -> Question {
        asked.take(node, Question { interests, canary: None }, now)
    }

    fn nodes(asked: &Asked, record: &AuditRecord) -> Vec<String> {
        asked.wanted(record).nodes
    }

    #[test]
    fn a_request_goes_to_the_node_that_asked_for_its_pod_and_time() {
        let mut asked = Asked::default();
        take(&mut asked, "node-b", vec![Interest::example("p", 90, 110)], Micros(0));
        take(&mut asked, "node-c", vec![Interest::example("q", 90, 110)], Micros(0));
        assert_eq!(nodes(&asked, &by_pod("p", None)), ["node-b"]);
        assert_eq!(nodes(&asked, &by_pod("p", Some("node-b"))), ["node-b"]);
        assert_eq!(nodes(&asked, &by_pod("r", None)), [""; 0]);
        take(&mut asked, "node-b", vec![Interest::example("p", 101, 110)], Micros(0));
        assert_eq!(nodes(&asked, &by_pod("p", None)), [""; 0], "too early");
        take(&mut asked, "node-b", vec![Interest::example("p", 90, 99)], Micros(0));
        assert_eq!(nodes(&asked, &by_pod("p", None)), [""; 0], "too late");
        take(&mut asked, "node-b", Vec::new(), Micros(0));
        assert!(!asked.has_pod("p"));
    }

    #[test]
    fn who_asks_about_pods_of_another_node_gets_nothing_and_is_counted() {
        let mut asked = Asked::default();
        take(&mut asked, "node-b", vec![Interest::example("p", 90, 110)], Micros(0));
        let wanted = asked.wanted(&by_pod("p", Some("node-a")));
        assert_eq!(wanted, Wanted { nodes: Vec::new(), foreign: 1 });
        take(&mut asked, "node-a_example", vec![Interest::example("p", 90, 110)], Micros(0));
        let wanted = asked.wanted(&by_pod("p", Some("node-a.example")));
        assert_eq!(wanted, Wanted { nodes: vec!["node-a_example".to_owned()], foreign: 1 });
    }

    #[test]
    fn whom_somebody_acts_as_is_nobody_that_is_asked_for() {
        let mut asked = Asked::default();
        take(&mut asked, "node-b", vec![Interest::example("p", 90, 110)], Micros(0));
        let extra = json!({"authentication.kubernetes.io/pod-uid": ["p"]});
        let user = "system:serviceaccount:shop:cart";
        for forged in [
            json!({"user": {"username": "mallory"},
                "impersonatedUser": {"username": user, "extra": extra}}),
            json!({"user": {"username": "mallory", "extra": extra}}),
        ] {
            assert_eq!(nodes(&asked, &record(&forged)), [""; 0]);
        }
    }

    #[test]
    fn a_token_without_a_pod_is_known_by_account_and_address() {
        let mut asked = Asked::default();
        let mut interest = Interest::example("p", 90, 110);
        interest.namespace = Some("shop".to_owned());
        interest.account = Some("cart".to_owned());
        interest.addresses = vec!["10.0.0.7".to_owned()];
        take(&mut asked, "node-b", vec![interest], Micros(0));
        assert!(asked.has_account("system:serviceaccount:shop:cart"));
        let from = |address: &str| record(&json!({"sourceIPs": ["10.0.0.7", address]}));
        assert_eq!(nodes(&asked, &from("10.0.0.7")), ["node-b"]);
        assert_eq!(nodes(&asked, &from("10.0.0.8")), [""; 0]);
        take(&mut asked, "node-b", Vec::new(), Micros(0));
        assert!(!asked.has_account("system:serviceaccount:shop:cart"));
    }

    #[test]
    fn a_way_into_a_pod_is_known_by_the_name_of_who_is_asked_about() {
        let mut asked = Asked::default();
        let mut interest = Interest::example("p", 40_000, 40_060);
        interest.namespace = Some("shop".to_owned());
        interest.name = Some("cart-0".to_owned());
        take(&mut asked, "node-b", vec![interest], Micros(0));
        let into = |subresource: &str, name: &str| {
            asked.way_into(&record(&json!({"user": {"username": "admin"}, "objectRef":
                {"resource": "pods", "subresource": subresource, "namespace": "shop", "name": name}})))
        };
        let name = into("exec", "cart-0").unwrap();
        let of_name: Vec<_> = asked.of_name(&name).map(|(node, it)| (node, &*it.pod)).collect();
        assert_eq!(of_name, [("node-b", "p")]);
        assert_eq!((into("exec", "cart-1"), into("log", "cart-0")), (None, None));
    }

    /// Of a pod that has a name, an account and an address.
    fn known(pod: &str, name: &str) -> Interest {
        Interest {
            namespace: Some("shop".to_owned()),
            name: Some(name.to_owned()),
            account: Some(name.to_owned()),
            ..Interest::example(pod, 0, 100)
        }
    }

    fn is_forgotten(asked: &Asked) -> bool {
        let Asked { nodes, by_pod, by_account, by_name, by_canary } = asked;
        nodes.is_empty()
            && by_pod.is_empty()
            && by_account.is_empty()
            && by_name.is_empty()
            && by_canary.is_empty()
    }

    #[test]
    fn a_pod_that_has_many_names_in_what_is_asked_leaves_nothing_behind() {
        let mut asked = Asked::default();
        let names = (0..4).map(|name| known("p", &format!("cart-{name}"))).collect();
        let new = take(&mut asked, "a", names, Micros(0));
        assert_eq!((new.interests.len(), asked.pods(), asked.by_name.len()), (1, 1, 1));
        take(&mut asked, "b", vec![known("p", "other")], Micros(0));
        asked.add("b", &known("p", "yet-another"));
        for node in ["a", "b"] {
            take(&mut asked, node, Vec::new(), Micros(0));
        }
        assert!(is_forgotten(&asked), "{asked:?}");
    }

    #[test]
    fn of_what_waits_only_that_is_kept_which_is_asked_still() {
        let (mut asked, mut waiting) = (Asked::default(), Asked::default());
        for pod in ["p", "q"] {
            waiting.add("a", &known(pod, pod));
            waiting.add("b", &known(pod, pod));
        }
        take(&mut asked, "a", vec![known("q", "q"), known("r", "r")], Micros(0));
        waiting.drop_unasked("a", &asked);
        let mut left: Vec<_> = waiting.interests().map(|(node, it)| (node, &*it.pod)).collect();
        left.sort_unstable();
        assert_eq!(left, [("a", "q"), ("b", "p"), ("b", "q")]);
        waiting.drop_unasked("b", &asked);
        take(&mut asked, "a", Vec::new(), Micros(0));
        waiting.drop_unasked("a", &asked);
        assert!(is_forgotten(&waiting), "{waiting:?}");
    }

    #[test]
    fn only_what_was_not_asked_before_is_new() {
        let mut asked = Asked::default();
        let mut new = |from, until| {
            take(&mut asked, "n", vec![Interest::example("p", from, until)], Micros(0))
                .interests
                .len()
        };
        assert_eq!(new(100, 160), 1);
        assert_eq!(new(100, 160), 0, "said again");
        assert_eq!(new(100, 300), 0, "it goes on");
        assert_eq!(new(150, 300), 0, "its beginning is over");
        assert_eq!(new(99, 300), 1, "it began earlier");
        assert_eq!(new(900, 960), 1, "another one, after a pause");
    }

    #[test]
    fn what_was_not_said_again_is_forgotten() {
        let mut asked = Asked::default();
        take(&mut asked, "a", vec![Interest::example("p", 0, 100)], Micros(0));
        take(&mut asked, "b", vec![Interest::example("q", 0, 100)], Micros(1));
        asked.forget(FORGOTTEN);
        assert_eq!(asked.pods(), 2);
        asked.forget(FORGOTTEN + Micros(1));
        assert!(!asked.has_pod("p") && asked.has_pod("q"));
        take(&mut asked, "b", Vec::new(), Micros(2));
        assert!(asked.is_empty() && !asked.has_pod("q"));
    }

    #[test]
    fn a_canary_goes_to_the_node_whose_it_is_however_many_say_that_they_are_it() {
        let mut asked = Asked::default();
        let wants = |run: &str| Question { interests: Vec::new(), canary: Some(run.to_owned()) };
        assert_eq!(asked.take("b", wants("run"), Micros(0)), wants("run"));
        assert_eq!(asked.take("b", wants("run"), Micros(0)), Question::default(), "said again");
        asked.take("c", wants("other"), Micros(0));
        asked.forget(Micros(0));
        let at = |micros: i64| {
            let at = Micros::from_secs(100) + Micros(micros);
            record(&json!({"userAgent": "tokentrail-canary/run", "requestReceivedTimestamp": at}))
        };
        assert_eq!(asked.canary_of(&at(0)), ["b"]);
        // Another stage of it, and a crowd.
        assert_eq!(asked.canary_of(&at(0)), [""; 0]);
        assert_eq!(asked.canary_of(&at(499_999)), [""; 0]);
        asked.take("b", wants("run"), Micros(0));
        assert_eq!(asked.canary_of(&at(499_999)), [""; 0]);
        assert_eq!(asked.canary_of(&at(500_000)), ["b"]);
        assert_eq!(asked.wanted(&at(900_000)).nodes, [""; 0], "it is no request of a pod");
        assert_eq!(asked.take("b", wants("next"), Micros(0)), wants("next"));
        assert_eq!(asked.canary_of(&at(2_000_000)), [""; 0], "of a run that is over");
        asked.take("c", Question::default(), Micros(0));
        asked.forget(Micros(0));
        assert!(!asked.is_empty() && asked.by_canary.len() == 1);
    }

    #[test]
    fn so_many_nodes_may_ask_and_none_takes_the_place_of_another() {
        let mut asked = Asked::default();
        for node in 0..NODES {
            assert!(asked.has_room(&format!("n{node}")));
            take(&mut asked, &format!("n{node}"), vec![Interest::example("p", 0, 1)], Micros(0));
        }
        assert!(!asked.has_room("one more") && asked.has_room("n0"));
        take(&mut asked, "n1", Vec::new(), Micros(0));
        assert!(asked.has_room("one more"), "who asks for nothing takes no room");
        let new = take(&mut asked, "n0", vec![Interest::example("q", 0, 1)], Micros(0));
        assert_eq!((new.interests.len(), asked.has_pod("q")), (1, true));
    }
}
