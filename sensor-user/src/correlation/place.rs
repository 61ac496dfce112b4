//! Which pods an open and a request are of, as an index knows them when they enter. Called by whoever
//! feeds the correlator, before it does: correlation itself asks no index.

use super::{Open, Request};
use crate::attribution::pods::PodIndex;

impl Open {
    /// Adds the pods that it is about, as the index knows them by now.
    pub fn find_pods(&mut self, pods: &PodIndex) {
        self.pod = self.open.pod_uid.as_deref().and_then(|uid| pods.pod(uid)).cloned();
        let reader = self.open.reader.as_ref();
        self.reader = reader.and_then(|reader| pods.pod(&reader.pod_uid)).cloned();
    }
}

impl Request {
    /// Adds the pod that it is of, as the index knows it by now: by its token, else by its service
    /// account and address.
    pub fn find_pod(&mut self, pods: &PodIndex) {
        if self.record.pod_uid().is_none()
            && let Some((namespace, account)) = self.record.service_account()
            && let Some(address) = self.record.source_ip()
        {
            let pod = pods.by_address(namespace, account, address);
            self.by_address = pod.map(|pod| pod.uid.to_string());
        }
        self.pod = self.pod_uid().and_then(|uid| pods.pod(uid)).cloned();
    }
}
