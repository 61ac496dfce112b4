//! Where opens and requests meet: each is given the pods that it is about, as the index knows them by
//! now, and handed to the correlator.

use crate::{
    alert::record::Recorder,
    attribution::{TokenOpen, pods::PodIndex},
    correlation::{Correlator, Finding, Open, Request, journal::FileJournal},
    time::Micros,
};

/// Where opens and requests meet.
pub(super) struct Join {
    /// Of this boot.
    pub(super) boot_id: String,
    /// Where opens are recorded, if anywhere.
    pub(super) recorder: Option<Recorder>,
    /// How much earlier than an open the audit sources may by now date a request that follows it.
    pub(super) skew: Micros,
    /// The state machine.
    pub(super) correlator: Correlator<FileJournal>,
    /// What is to be told.
    pub(super) findings: Vec<Finding>,
}

impl Join {
    /// Records an open and hands it on.
    pub(super) fn open(&mut self, open: TokenOpen, pods: &PodIndex, now: Micros) {
        let open = self.of(open, pods);
        if let Some(recorder) = &mut self.recorder {
            recorder.add(&open);
        }
        self.correlator.open(open, now, &mut self.findings);
    }

    /// Hands an open on that was recorded before.
    pub(super) fn join(&mut self, open: TokenOpen, pods: &PodIndex, now: Micros) {
        let open = self.of(open, pods);
        self.correlator.open(open, now, &mut self.findings);
    }

    fn of(&self, open: TokenOpen, pods: &PodIndex) -> Open {
        let mut open = Open::new(self.boot_id.clone(), open);
        open.skew_us = self.skew.0;
        find_pods(&mut open, pods);
        open
    }

    /// Hands a request on, with the pod that it is of.
    pub(super) fn request(&mut self, mut request: Request, pods: &PodIndex, now: Micros) {
        find_pod(&mut request, pods);
        self.correlator.request(request, now, &mut self.findings);
    }
}

/// Adds what the index knows by now.
pub(super) fn find_pods(open: &mut Open, pods: &PodIndex) {
    open.pod = open.open.pod_uid.as_deref().and_then(|uid| pods.pod(uid)).cloned();
    let reader = open.open.reader.as_ref();
    open.reader = reader.and_then(|reader| pods.pod(&reader.pod_uid)).cloned();
}

/// Adds the pod that a request is of: by its token, else by its service account and address.
pub(super) fn find_pod(request: &mut Request, pods: &PodIndex) {
    if request.record.pod_uid().is_none()
        && let Some((namespace, account)) = request.record.service_account()
        && let Some(address) = request.record.source_ip()
    {
        let pod = pods.by_address(namespace, account, address);
        request.by_address = pod.map(|pod| pod.uid.to_string());
    }
    request.pod = request.pod_uid().and_then(|uid| pods.pod(uid)).cloned();
}
