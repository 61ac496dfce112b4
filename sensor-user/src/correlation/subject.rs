//! Whether an exception keeps a rule quiet, and what is known of an open and a request for that.
//! Part of the [`Correlator`].

use std::{borrow::Cow, sync::Arc};

use super::{Correlator, Open, Swallowed, finding::Attached, ids, journal::Journal};
use crate::{
    attribution::pods::{Container, Pod},
    audit::{self, AuditRecord},
    rules::{catalogue::RuleId, exceptions::Subject},
};

impl<J: Journal> Correlator<J> {
    /// Whether an exception keeps a rule quiet about this; it is then counted, the same thing once.
    pub(super) fn excepted(
        &mut self,
        rule: RuleId,
        open: Option<&Open>,
        request: Option<&Attached>,
    ) -> bool {
        if self.rulebook.exceptions.iter().next().is_none() {
            return false;
        }
        let record = request.map(|request| &*request.record);
        let initiators = open.map(|open| self.initiators(open, record)).unwrap_or_default();
        let facts = Facts::of(open, request, &initiators);
        let subject = facts.subject(rule, &self.settings.cluster);
        let time = request
            .map(|it| it.record.request_received_timestamp)
            .or(open.map(|open| open.open.wall))
            .unwrap_or_default();
        let Some(exception) = self.rulebook.exceptions.swallowing(rule, &subject, time) else {
            return false;
        };
        let id = match (request, open) {
            (Some(request), _) => ids::swallowed_request(rule, request.id),
            (None, Some(open)) => ids::swallowed_open(rule, &open.boot_id, &open.open),
            (None, None) => return true,
        };
        if self.swallowed.put(id.clone(), ()).is_none() {
            self.hits.push(Swallowed { exception, id });
        }
        true
    }
}

/// The facts, with the texts that have to be put together.
struct Facts<'a> {
    open: Option<&'a Open>,
    request: Option<&'a Attached>,
    initiators: &'a [Arc<AuditRecord>],
    command: Option<String>,
    resource: Option<Cow<'a, str>>,
}

impl<'a> Facts<'a> {
    fn of(
        open: Option<&'a Open>,
        request: Option<&'a Attached>,
        initiators: &'a [Arc<AuditRecord>],
    ) -> Self {
        Self {
            open,
            request,
            initiators,
            command: open.map(|open| open.open.args.join(" ")),
            resource: request.map(|request| request.record.resource()),
        }
    }

    fn subject<'b>(&'b self, rule: RuleId, cluster: &'b str) -> Subject<'b>
    where
        'a: 'b,
    {
        let open = self.open.map(|open| &open.open);
        let pod: Option<&Pod> = self.open.and_then(|open| open.pod.as_deref());
        let (named_in, named) =
            self.open.and_then(|open| open.named.as_ref()).map(|(a, b)| (&**a, &**b)).unzip();
        let container = self.container();
        let record = self.request.map(|request| &*request.record);
        // Where a minting is told, the account that it is for; else who asked.
        let minted = match rule {
            RuleId::TokenRequestByUser | RuleId::DecoyUsed => record.and_then(|it| it.minted_for()),
            RuleId::TokenAccessThenApiRequest
            | RuleId::TokenReadFromOutside
            | RuleId::TokenRead => None,
        };
        let account = minted.or_else(|| record.and_then(|it| it.service_account()));
        let (namespace, name) = account.unzip();
        // Several may have been it.
        let initiator = self.initiators.first().filter(|_| self.initiators.len() == 1);
        Subject {
            cluster: Some(cluster).filter(|cluster| !cluster.is_empty()),
            namespace: pod.map(|pod| &*pod.namespace).or(named_in).or(namespace),
            owner: pod.and_then(|pod| pod.owner.as_ref()).map(|owner| &*owner.name),
            service_account: pod.map(|pod| &*pod.service_account).or(name),
            pod: pod
                .map(|pod| &*pod.name)
                .or(named)
                .or_else(|| record.and_then(|it| it.extra(audit::POD_NAME))),
            container: container.map(|container| &*container.name),
            image: container.map(|container| &*container.image),
            executable: open.map(|open| open.executable.as_str()),
            command: self.command.as_deref(),
            user: record.map(|record| record.user.username.as_str()),
            initiator: initiator.map(|session| session.user.username.as_str()),
            user_agent: record.and_then(|record| record.user_agent.as_deref()),
            verb: record.map(|record| record.verb.as_str()),
            resource: self.resource.as_deref(),
            source: record.and_then(AuditRecord::source_ip).and_then(|ip| ip.parse().ok()),
            grade: open.map(|open| open.grade),
            native: open.and_then(|open| open.native),
            request: self.request.map(|request| request.request),
        }
    }

    /// The opener's container.
    fn container(&self) -> Option<&'a Container> {
        let open = self.open?;
        let id = open.open.reader.as_ref()?.container_id.as_deref()?;
        open.reader.as_deref()?.container(id)
    }
}
