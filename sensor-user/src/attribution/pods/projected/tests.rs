//! Volumes as the API writes them, and which of their files count.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn read(volumes: Value) -> Vec<Projected> {
    projected(&serde_json::from_value::<Vec<VolumeSpec>>(volumes).unwrap())
}

/// Path and meaning of each file of a volume with these sources; `None` if it is left out.
fn files_of(sources: &Value) -> Option<Vec<(String, Option<TokenFile>)>> {
    let volumes = read(json!([{"name": "v", "projected": {"sources": sources}}]));
    let files = &volumes.first()?.files;
    Some(files.iter().map(|it| (it.path.to_string(), it.file)).collect())
}

const TOKEN: Option<TokenFile> = Some(TokenFile::Token);
const CA: Option<TokenFile> = Some(TokenFile::CaCert);

#[test]
fn a_volume_tells_which_of_its_files_are_tokens_for_the_api_server() {
    let token =
        |path: &str| json!({"serviceAccountToken": {"expirationSeconds": 3607, "path": path}});
    let for_vault = json!({"serviceAccountToken": {"audience": "vault", "path": "token"}});
    let root_ca = json!({"configMap": {"name": "kube-root-ca.crt",
                                       "items": [{"key": "ca.crt", "path": "ca.crt"}]}});
    let moved_ca = json!({"configMap": {"name": "kube-root-ca.crt",
                                        "items": [{"key": "other", "path": "ca.crt"},
                                                  {"key": "ca.crt", "path": "tls/root.pem"}]}});
    let whole_ca = json!({"configMap": {"name": "kube-root-ca.crt"}});
    let other_map =
        json!({"configMap": {"name": "web", "items": [{"key": "ca.crt", "path": "ca.crt"}]}});
    let namespace = json!({"downwardAPI": {"items": [{"path": "namespace", "fieldRef":
                                           {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}});
    for (sources, expected) in [
        // As admission adds it.
        (json!([token("token"), root_ca, namespace]), vec![("token", TOKEN), ("ca.crt", CA)]),
        (
            json!([token("kube/api/key"), moved_ca]),
            vec![("kube/api/key", TOKEN), ("tls/root.pem", CA)],
        ),
        (json!([token("./a//b/"), whole_ca]), vec![("a/b", TOKEN), ("ca.crt", CA)]),
        (json!([for_vault, token("mine")]), vec![("token", None), ("mine", TOKEN)]),
        (json!([for_vault, other_map]), vec![("token", None)]),
        (json!([other_map, {"clusterTrustBundle": {"path": "token"}}, {}]), vec![]),
        (json!(null), vec![]),
    ] {
        let expected = expected.into_iter().map(|(path, file)| (path.to_owned(), file)).collect();
        assert_eq!(files_of(&sources), Some(expected), "{sources}");
    }
}

#[test]
fn the_api_servers_audience_is_the_one_not_given_or_a_name_of_its_service() {
    for (audience, expected) in [
        ("", true),
        ("https://kubernetes.default.svc", true),
        ("https://kubernetes.default.svc.cluster.local", true),
        ("https://kubernetes.default.svc.corp.example:443/", true),
        ("kubernetes.default.svc", true),
        ("vault", false),
        ("https://kubernetes.default.svcs", false),
        ("https://vault.example/kubernetes.default.svc", false),
        ("sts.amazonaws.com", false),
    ] {
        assert_eq!(is_api_server(audience), expected, "{audience}");
    }
}

#[test]
fn only_projected_volumes_are_kept_and_secrets_in_them_are_noted() {
    let volumes = read(json!([
        {"name": "tls", "secret": {"secretName": "web"}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "legacy", "projected": {"sources": [{"secret": {"name": "robot"}}]}},
        {"name": "none", "projected": {"sources": []}},
        {"name": "unset", "projected": null},
    ]));
    let kept: Vec<_> =
        volumes.iter().map(|it| (&*it.name, it.has_secret, it.has_token())).collect();
    assert_eq!(kept, [("legacy", true, false), ("none", false, false)]);
}

#[test]
fn a_volume_that_is_too_large_or_leads_elsewhere_is_left_out() {
    for path in ["", ".", "/token", "../token", "a/../../b"] {
        assert_eq!(files_of(&json!([{"serviceAccountToken": {"path": path}}])), None, "{path}");
    }
    let volume = |name: &str, path: &str, count: usize| {
        let token = json!({"serviceAccountToken": {"path": path}});
        json!({"name": name, "projected": {"sources": vec![token; count]}})
    };
    let volumes = read(json!([
        volume("long", &"x".repeat(ROOM), 1),
        volume("many", "token", 1_000),
        volume("mine", "token", 1),
    ]));
    assert_eq!(volumes.iter().map(|it| &*it.name).collect::<Vec<_>>(), ["mine"]);
    let volumes = read(json!(vec![volume("v", "token", 3); 1_000]));
    let bytes: usize = volumes.iter().map(Projected::bytes).sum();
    assert!(volumes.len() > 30 && bytes <= ROOM, "{} of {bytes} bytes", volumes.len());
}

proptest! {
    #[test]
    fn whatever_is_kept_is_a_path_below_the_volume(text in ".{0,40}|(\\.|/|a){0,40}") {
        if let Some(clean) = path(&text) {
            prop_assert!(clean.split('/').all(|name| !matches!(name, "" | "." | "..")), "{clean}");
            prop_assert_eq!(path(&clean), Some(clean.clone()));
        }
    }
}
