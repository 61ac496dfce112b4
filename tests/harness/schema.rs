//! The JSON Schema that is shipped with the agent, and documents held against it.

use std::sync::LazyLock;

use anyhow::{Context as _, Result, anyhow, bail};
use jsonschema::Validator;
use serde_json::Value;

/// What `tokentrail schema` prints and users index alerts by.
const SHIPPED: &str = include_str!("../../deploy/schema/alert.schema.json");

static VALIDATOR: LazyLock<Result<Validator, String>> = LazyLock::new(|| {
    let schema: Value = serde_json::from_str(SHIPPED).map_err(|error| error.to_string())?;
    let options = jsonschema::options().should_validate_formats(true);
    options.build(&schema).map_err(|error| error.to_string())
});

/// Fails if a document is not as the schema says; the error lists everything that is not.
pub(crate) fn check(document: &Value) -> Result<()> {
    let validator = VALIDATOR
        .as_ref()
        .map_err(|error| anyhow!("{error}"))
        .context("the schema of alerts cannot be used")?;
    let breaches: Vec<String> = validator
        .iter_errors(document)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    if breaches.is_empty() {
        return Ok(());
    }
    bail!("not as the schema says: {}; the document is {document:#}", breaches.join("; "))
}
