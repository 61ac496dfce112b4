//! What the webhook counts, and the closed lists of what it answers and finds fault with.
//!
//! Counts posts, bodies and connections; what is in the bodies is counted with all audit lines.

use std::fmt;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// What became of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// 200: its events are safe, or it held none that can be used.
    Taken,
    /// 429: the queue is full.
    Busy,
    /// 401: without a token that is known.
    Unauthenticated,
    /// 405: not a POST.
    NotPost,
    /// 500: its body stopped coming.
    TooSlow,
    /// None: the connection ended inside of the body.
    Cut,
}

impl Answer {
    const ALL: [Self; 6] =
        [Self::Taken, Self::Busy, Self::Unauthenticated, Self::NotPost, Self::TooSlow, Self::Cut];

    fn as_str(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Busy => "busy",
            Self::Unauthenticated => "unauthenticated",
            Self::NotPost => "not_post",
            Self::TooSlow => "too_slow",
            Self::Cut => "cut",
        }
    }
}

/// Why a body, or the rest of it, could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BadBody {
    /// Not one JSON object.
    NotJson,
    /// JSON of another kind.
    WrongKind,
    /// An object without a list of items.
    NoItems,
    /// It ends before its object does.
    Torn,
    /// Longer than the bound, unpacked.
    TooLarge,
    /// An encoding that is not gzip, or broken gzip.
    BadEncoding,
}

impl BadBody {
    const ALL: [Self; 6] = [
        Self::NotJson,
        Self::WrongKind,
        Self::NoItems,
        Self::Torn,
        Self::TooLarge,
        Self::BadEncoding,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::NotJson => "not_json",
            Self::WrongKind => "wrong_kind",
            Self::NoItems => "no_items",
            Self::Torn => "torn",
            Self::TooLarge => "too_large",
            Self::BadEncoding => "bad_encoding",
        }
    }
}

impl fmt::Display for BadBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a connection was ended before it came to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No TLS, no certificate that counts, or too slow with it.
    Handshake,
    /// It gave way to a newer one before it had proven who it is.
    Displaced,
    /// All places are held by clients that have.
    Full,
}

impl Refusal {
    const ALL: [Self; 3] = [Self::Handshake, Self::Displaced, Self::Full];

    fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Displaced => "displaced",
            Self::Full => "full",
        }
    }
}

macro_rules! label {
    ($labels:ident { $name:ident: $kind:ty }) => {
        impl EncodeLabelValue for $kind {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
                EncodeLabelValue::encode(&self.as_str(), encoder)
            }
        }

        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        struct $labels {
            $name: $kind,
        }
    };
}

label!(AnswerLabels { answer: Answer });
label!(BodyLabels { reason: BadBody });
label!(RefusalLabels { reason: Refusal });

/// Counters of the webhook. Clones count into the same place.
#[derive(Clone, Debug, Default)]
pub struct WebhookMetrics {
    /// Open connections.
    pub connections: Gauge,
    /// Events that had been taken before.
    pub duplicates: Counter,
    /// Times that changed certificates or tokens could not be used.
    pub reload_failures: Counter,
    answers: Family<AnswerLabels, Counter>,
    bad_bodies: Family<BodyLabels, Counter>,
    refused: Family<RefusalLabels, Counter>,
}

impl WebhookMetrics {
    /// Puts the metrics under their `tokentrail_audit_webhook_` names.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("tokentrail_audit_webhook");
        registry.register("connections", "Open connections", self.connections.clone());
        registry.register("requests", "Requests, by what became of them", self.answers.clone());
        registry.register(
            "bad_bodies",
            "Bodies that could not be used to their end, by reason",
            self.bad_bodies.clone(),
        );
        registry.register(
            "refused_connections",
            "Connections ended before a request, by reason",
            self.refused.clone(),
        );
        registry.register(
            "duplicates",
            "Audit events that had been taken before",
            self.duplicates.clone(),
        );
        registry.register(
            "reload_failures",
            "Times that changed certificates or tokens could not be used",
            self.reload_failures.clone(),
        );
        // Each is there before its first case.
        for answer in Answer::ALL {
            drop(self.answers.get_or_create(&AnswerLabels { answer }));
        }
        for reason in BadBody::ALL {
            drop(self.bad_bodies.get_or_create(&BodyLabels { reason }));
        }
        for reason in Refusal::ALL {
            drop(self.refused.get_or_create(&RefusalLabels { reason }));
        }
    }

    /// The counter of one answer.
    pub fn answers(&self, answer: Answer) -> Counter {
        self.answers.get_or_create_owned(&AnswerLabels { answer })
    }

    /// The counter of one fault.
    pub fn bad_bodies(&self, reason: BadBody) -> Counter {
        self.bad_bodies.get_or_create_owned(&BodyLabels { reason })
    }

    /// The counter of one refusal.
    pub fn refused(&self, reason: Refusal) -> Counter {
        self.refused.get_or_create_owned(&RefusalLabels { reason })
    }
}
