//! Whose pod a request may be joined with: what a token says, checked against its user and the index.

use super::*;

/// A request of this user whose token names [`POD`], which an index may know.
fn of(user: &str, pod: Option<&Pod>) -> Request {
    let mut request = request(101.0, "r");
    request.record.user.username = user.into();
    request.pod = pod.cloned().map(Arc::new);
    request
}

#[test]
fn a_request_is_joined_only_with_a_pod_that_can_be_its_users() {
    let in_shop = Pod { namespace: "shop".into(), ..Pod::default() };
    let nowhere = Pod::default();
    for (user, pod, alerts) in [
        ("system:serviceaccount:shop:cart", Some(&in_shop), 1),
        ("system:serviceaccount:shop:cart", Some(&nowhere), 1),
        ("system:serviceaccount:shop:cart", None, 1),
        // No index, so nothing contradicts it.
        ("system:serviceaccount:other:cart", None, 1),
        ("system:serviceaccount:other:cart", Some(&in_shop), 0),
        ("alice", Some(&in_shop), 0),
        ("alice", None, 0),
    ] {
        let mut scene = scene();
        scene.open(open(100.0)).request(of(user, pod)).until(1_000.0);
        assert_eq!(scene.alerts().len(), alerts, "{user} {pod:?}");
        let counted = scene.correlator.losses().false_claims;
        assert_eq!(counted, u64::from(alerts == 0), "{user} {pod:?}");
    }
}

#[test]
fn a_pod_learns_nothing_from_requests_that_cannot_be_its_own() {
    let in_shop = Pod { namespace: "shop".into(), ..Pod::default() };
    let mut scene = scene();
    scene.watch(0.0);
    let mut forged = of("system:serviceaccount:other:cart", Some(&in_shop));
    forged.time = at(700.0);
    scene.request(forged).open(open(1_000.0)).request(request(1_001.0, "own"));
    assert_eq!(scene.alerts()[0].request.as_ref().unwrap().request, RequestKind::New);
}
