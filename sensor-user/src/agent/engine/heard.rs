//! Which of the audit lines that were read matter on this node, asked before they are decoded: in a
//! large cluster most are of pods of other nodes. A part of `engine`.
//!
//! A pod whose token is opened here has its volume here, and had it before its containers started. So a
//! request of a pod without one cannot follow from an open, unless that open was already seen.

use super::{Engine, Way};
use crate::{
    audit::{
        ReadLine, ReadRecord, SERVICE_ACCOUNT,
        scan::{Interest, Node, Pods, Users},
    },
    kernel::clock::Now,
    time::Micros,
};

impl Engine {
    /// The records of the lines that matter.
    pub(super) fn decode(
        &mut self,
        source: usize,
        lines: Vec<ReadLine>,
        now: Now,
    ) -> Vec<ReadRecord> {
        if lines.is_empty() {
            return Vec::new();
        }
        let Self { senses, join, rulebook, sources, origin, answering, .. } = self;
        let Some(source) = sources.get_mut(source) else { return Vec::new() };
        // After the lines were read: whatever pod they are of is mounted by now, or gone.
        let knows_pods = senses.knows_pods(now.steady);
        // An audit side alone has no pods, but those that others ask about.
        let knows_pods = knows_pods || (answering.is_some() && senses.sensor().is_none());
        let (correlator, senses, decoys) = (&join.correlator, &*senses, &rulebook.current().decoys);
        let asked = answering.as_ref();
        let has_pod = |uid: &str| {
            correlator.awaits(uid)
                || senses.has_pod(uid)
                || asked.is_some_and(|asked| asked.wants_pod(uid))
        };
        let has_account = |user: &str| {
            let account = user.strip_prefix(SERVICE_ACCOUNT).and_then(|it| it.split_once(':'));
            account.is_some_and(|(namespace, name)| senses.pods.index.has_account(namespace, name))
                || asked.is_some_and(|asked| asked.wants_account(user))
        };
        let node = Node { name: &origin.node_name, has_pod: &has_pod, has_account: &has_account };
        let is_decoy = |user: &str| decoys.contains_user(user);
        let interest = Interest {
            pods: if knows_pods { Pods::OfNode(node) } else { Pods::All },
            accounts: if knows_pods { Users::Named(&is_decoy) } else { Users::All },
            ..Interest::LIVE
        };
        let records = source.decoder.decode_all(&lines, &interest);
        if let Some(answering) = answering.as_mut().filter(|_| source.way != Way::Nats) {
            for ReadLine { line, read_at, .. } in lines {
                answering.keep(line, now.wall - Micros::from_duration(read_at.elapsed()));
            }
        }
        let newest = records.iter().map(|read| read.record.stage_timestamp).max();
        source.newest_stage = source.newest_stage.max(newest);
        records
    }
}
