//! What tells people: the alert document and the places it is written to.
//!
//! `ecs` defines the document, `document` makes one of a finding, `message` its one sentence, `evidence` adds what an analyst
//! would look up next, `fit` makes a line of it, `log` keeps documents on disk, `unpublished` reads there what is yet to be published, `text` shows one to a person. A further sink is one more file here and one line in `agent`.

pub mod document;
pub mod ecs;
pub mod evidence;
pub mod fit;
pub mod log;
mod message;
pub mod record;
pub mod text;
pub mod unpublished;
mod who;
