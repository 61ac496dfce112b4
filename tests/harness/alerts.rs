//! The alert log, read as a log shipper would read it.

use std::{
    collections::HashSet,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::wait::{PATIENCE, wait_until};

/// An alert log: one JSON document a line.
#[derive(Clone, Debug)]
pub struct Alerts {
    path: PathBuf,
}

impl Alerts {
    /// The log at this path, which need not exist yet.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All documents so far. A last line without its end is still being written and left out.
    ///
    /// # Errors
    /// If the file cannot be read, a complete line is no document of the shipped schema, or an
    /// `event.id` is there twice.
    pub fn all(&self) -> Result<Vec<Value>> {
        let text = match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            text => text.with_context(|| format!("could not read {:?}", self.path))?,
        };
        let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
        let mut ids = HashSet::new();
        let documents = complete.lines().map(|line| {
            let document: Value =
                serde_json::from_str(line).with_context(|| format!("no JSON document: {line}"))?;
            #[cfg(feature = "system-tests")]
            crate::schema::check(&document)?;
            let id = text_at(&document, "/event/id");
            ensure!(ids.insert(id.to_owned()), "event.id {id} is there twice in\n{complete}");
            Ok(document)
        });
        documents.collect()
    }

    /// All documents that `wanted` accepts.
    ///
    /// # Errors
    /// As [`Alerts::all`].
    pub fn matching(&self, wanted: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
        Ok(self.all()?.into_iter().filter(|document| wanted(document)).collect())
    }

    /// Waits for the first document that `wanted` accepts; `what` is for the error.
    ///
    /// # Errors
    /// If none comes within [`PATIENCE`]; the error shows those that came.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_until(PATIENCE, what, || Ok(self.all()?.into_iter().find(|it| wanted(it))))
            .with_context(|| format!("the alert log has {:?}", self.all().unwrap_or_default()))
    }
}

/// The text at this JSON pointer; empty if there is none.
pub(crate) fn text_at<'document>(document: &'document Value, pointer: &str) -> &'document str {
    document.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
