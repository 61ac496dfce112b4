//! The API server's own description of its objects (`/openapi/v2`), cut down to the kinds that the
//! chart renders and turned into the JSON Schemas that kubeconform takes, strictly: a key that the
//! API does not know is an error.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::shell::{root, say};

/// Where they are kept, from the root.
pub(crate) const FOLDER: &str = "tests/fixtures/openapi";

/// What the chart renders, and the namespace of the plain manifests: group, version, kind.
const KINDS: [(&str, &str, &str); 12] = [
    ("", "v1", "ConfigMap"),
    ("", "v1", "Namespace"),
    ("", "v1", "Pod"),
    ("", "v1", "Service"),
    ("", "v1", "ServiceAccount"),
    ("apps", "v1", "DaemonSet"),
    ("apps", "v1", "Deployment"),
    ("networking.k8s.io", "v1", "NetworkPolicy"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io", "v1", "Role"),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding"),
];

/// Writes the schemas anew from an API server's answer.
///
/// # Errors
/// If it lacks a kind, or a file cannot be written.
pub(crate) fn write(openapi: &Value) -> Result<()> {
    let folder = root().join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("could not create {folder:?}"))?;
    for (group, version, kind) in KINDS {
        let schema = schema(openapi, group, version, kind).with_context(|| {
            format!("the API server does not describe {kind} of {group}/{version}")
        })?;
        let path = folder.join(file_name(group, version, kind));
        fs::write(&path, serde_json::to_string(&schema)? + "\n")
            .with_context(|| format!("could not write {path:?}"))?;
    }
    say(format_args!("wrote {} schemas to {FOLDER}", KINDS.len()));
    Ok(())
}

/// As kubeconform looks for it: the kind, the first word of the group, the version.
fn file_name(group: &str, version: &str, kind: &str) -> String {
    let group = group.split('.').next().filter(|group| !group.is_empty());
    let words = [Some(kind), group, Some(version)];
    format!("{}.json", words.into_iter().flatten().collect::<Vec<_>>().join("-").to_lowercase())
}

/// The schema of one kind, with all that it refers to.
fn schema(openapi: &Value, group: &str, version: &str, kind: &str) -> Option<Value> {
    let definitions = openapi.get("definitions")?.as_object()?;
    let names = json!({"group": group, "version": version, "kind": kind});
    let (root, _) = definitions.iter().find(|(_, definition)| {
        definition
            .get("x-kubernetes-group-version-kind")
            .and_then(Value::as_array)
            .is_some_and(|kinds| kinds.contains(&names))
    })?;
    let mut pending = BTreeSet::from([root.clone()]);
    let mut used = BTreeMap::new();
    while let Some(name) = pending.pop_first() {
        let strict = definition(&name, definitions.get(&name)?, &mut pending);
        used.insert(name, strict);
        pending.retain(|name| !used.contains_key(name));
    }
    Some(json!({"$ref": format!("#/definitions/{root}"), "definitions": used}))
}

/// One definition, made strict; what it refers to is added to `pending`.
fn definition(name: &str, definition: &Value, pending: &mut BTreeSet<String>) -> Value {
    // The document says `string` for both; their own decoders take more.
    match name.rsplit('.').next() {
        Some("IntOrString") => json!({"type": ["string", "integer"]}),
        Some("Quantity") => json!({"type": ["string", "number"]}),
        _ => strict(definition, pending),
    }
}

fn strict(schema: &Value, pending: &mut BTreeSet<String>) -> Value {
    let Some(schema) = schema.as_object() else { return schema.clone() };
    let mut kept = Map::new();
    for (key, value) in schema {
        match key.as_str() {
            "$ref" => {
                if let Some(name) = value.as_str().and_then(|it| it.strip_prefix("#/definitions/"))
                {
                    pending.insert(name.to_owned());
                }
                kept.insert(key.clone(), value.clone());
            }
            "properties" => {
                let properties = value.as_object().into_iter().flatten();
                let properties: Map<_, _> =
                    properties.map(|(name, it)| (name.clone(), strict(it, pending))).collect();
                kept.insert(key.clone(), properties.into());
                kept.insert("additionalProperties".to_owned(), false.into());
            }
            "items" | "additionalProperties" => {
                kept.insert(key.clone(), strict(value, pending));
            }
            "type" | "required" | "enum" => {
                kept.insert(key.clone(), value.clone());
            }
            // Words for people, hints for merging, formats of Go.
            _ => {}
        }
    }
    kept.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_comes_with_all_it_refers_to_and_refuses_what_it_does_not_know() {
        let openapi = json!({"definitions": {
            "io.k8s.api.apps.v1.DaemonSet": {
                "description": "words",
                "properties": {"spec": {"$ref": "#/definitions/Spec"}, "kind": {"type": "string"}},
                "type": "object",
                "x-kubernetes-group-version-kind":
                    [{"group": "apps", "kind": "DaemonSet", "version": "v1"}],
            },
            "Spec": {
                "properties": {
                    "surge": {"$ref": "#/definitions/util.IntOrString"},
                    "self": {"$ref": "#/definitions/Spec"},
                    "labels": {"additionalProperties": {"type": "string"}, "type": "object"},
                },
                "required": ["surge"],
            },
            "util.IntOrString": {"format": "int-or-string", "type": "string"},
            "Unused": {"type": "object"},
        }});
        let expected = json!({
            "$ref": "#/definitions/io.k8s.api.apps.v1.DaemonSet",
            "definitions": {
                "io.k8s.api.apps.v1.DaemonSet": {
                    "properties": {
                        "spec": {"$ref": "#/definitions/Spec"},
                        "kind": {"type": "string"},
                    },
                    "additionalProperties": false,
                    "type": "object",
                },
                "Spec": {
                    "properties": {
                        "surge": {"$ref": "#/definitions/util.IntOrString"},
                        "self": {"$ref": "#/definitions/Spec"},
                        "labels": {"additionalProperties": {"type": "string"}, "type": "object"},
                    },
                    "additionalProperties": false,
                    "required": ["surge"],
                },
                "util.IntOrString": {"type": ["string", "integer"]},
            },
        });
        assert_eq!(schema(&openapi, "apps", "v1", "DaemonSet"), Some(expected));
        assert_eq!(schema(&openapi, "apps", "v2", "DaemonSet"), None);
    }

    #[test]
    fn files_are_called_as_kubeconform_looks_for_them() {
        assert_eq!(file_name("", "v1", "ConfigMap"), "configmap-v1.json");
        let name = file_name("rbac.authorization.k8s.io", "v1", "ClusterRole");
        assert_eq!(name, "clusterrole-rbac-v1.json");
    }
}
