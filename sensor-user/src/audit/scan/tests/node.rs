//! Lines of a node's pods, in any spelling, against a full parse.

use proptest::prelude::*;
use serde_json::Value;

use super::{super::*, recorded, spelled};

const UID: &str = "1ea46c86-1147-4be1-87fb-a5cf75e8c8dd";
const ACCOUNT: &str = "system:serviceaccount:shop:till";
const DECOY: &str = "system:serviceaccount:shop:decoy";

fn interest<T>(look: impl FnOnce(&Interest<'_>) -> T) -> T {
    look(&Interest {
        pods: Pods::OfNode(Node {
            name: "node-a",
            has_pod: &|uid| uid == UID,
            has_account: &|user| user == ACCOUNT,
        }),
        accounts: Users::Named(&|user| user == DECOY),
        ..Interest::LIVE
    })
}

/// A user with a pod, a node and a name, each there or not.
fn user() -> impl Strategy<Value = String> {
    let of = |some: &'static str, other: &'static str| {
        let text = prop_oneof![spelled(some), spelled(other)];
        prop::option::of(text.prop_map(|text| format!("[\"{text}\"]")))
    };
    let name = prop_oneof![spelled(ACCOUNT), spelled(DECOY), spelled("jane")];
    let keys = (spelled(POD_UID), spelled(NODE_NAME));
    (name, keys, of(UID, "another"), of("node-a", "node-b")).prop_map(
        |(name, (uid_key, node_key), uid, node)| {
            let uid = uid.map(|uid| format!("\"{uid_key}\":{uid}"));
            let node = node.map(|node| format!("\"{node_key}\":{node}"));
            let extra: Vec<String> = node.into_iter().chain(uid).collect();
            format!("{{\"username\":\"{name}\",\"extra\":{{{}}}}}", extra.join(","))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_line_is_of_interest_if_its_user_is_of_the_node_by_any_sign(
        user in user(),
        impersonated in prop::option::of(user()),
    ) {
        let naive: Value = serde_json::from_str(&user).unwrap();
        let uid = naive["extra"][POD_UID][0].as_str();
        let name = naive["username"].as_str();
        let wanted = uid == Some(UID)
            || naive["extra"][NODE_NAME][0] == "node-a"
            || (uid.is_none() && name == Some(ACCOUNT))
            || name == Some(DECOY);
        let impersonated =
            impersonated.map_or_else(String::new, |it| format!("\"impersonatedUser\":{it},"));
        let line = format!(
            "{{\"stage\":\"Panic\",\"user\":{user},{impersonated}\"requestReceivedTimestamp\":\"2026-11-21T23:50:21Z\",\"stageTimestamp\":\"2026-11-21T23:50:21Z\"}}"
        );
        let record = interest(|interest| classify(line.as_bytes(), interest));
        prop_assert_eq!(matches!(record, Scan::Record(_)), wanted, "{}", line);
    }
}

#[test]
fn a_real_line_of_another_nodes_pod_is_skipped_without_decoding() {
    for line in recorded!("pod-allowed").lines() {
        assert_eq!(interest(|it| glance(line.as_bytes(), it)), Glance::Decode, "its uid");
        let elsewhere = line.replace(UID, "another");
        assert_eq!(interest(|it| glance(elsewhere.as_bytes(), it)), Glance::Skip, "{elsewhere}");
    }
}
