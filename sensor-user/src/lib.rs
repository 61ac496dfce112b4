//! tokentrail.
pub mod attribution;
pub mod audit;
pub mod kernel;
pub mod redact;
pub mod time;
