//! tokentrail: joins who opened a pod's service-account token with the Kubernetes API requests made
//! with it, on the node, within milliseconds.
pub mod attribution;
pub mod audit;
pub mod correlation;
pub mod kernel;
pub mod rules;
pub mod time;
