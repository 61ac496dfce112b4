//! tokentrail.
pub mod attribution;
pub mod audit;
pub mod kernel;
pub mod time;
