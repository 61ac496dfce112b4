//! `tokentrail schema`: the JSON Schema of an alert, made from the structures that alerts are
//! serialised from.

use std::io::{self, Write};

use schemars::generate::SchemaSettings;

use super::{Exit, tell};
use crate::alert::ecs::Document;

/// Prints it.
pub fn execute() -> Exit {
    match writeln!(io::stdout().lock(), "{}", text()) {
        Ok(()) => Exit::Done,
        Err(error) => {
            tell(&error);
            Exit::Failed
        }
    }
}

/// The schema as it is checked in under `deploy/schema`.
pub fn text() -> String {
    // Of what is written, not of what could be read: only then are fields that may be left out
    // not required.
    let settings = SchemaSettings::default().for_serialize();
    format!("{:#}", settings.into_generator().into_root_schema_for::<Document>().to_value())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_schema_that_is_shipped_is_the_one_of_this_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/schema/alert.schema.json");
        let shipped = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            shipped.trim() == super::text().trim(),
            "write it anew: tokentrail schema > deploy/schema/alert.schema.json"
        );
    }
}
