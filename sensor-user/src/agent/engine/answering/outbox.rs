//! Records on their way to the broker: the queue to it, and what found no room there and is to be sent later. Counts
//! them, so that it is known when all of a time are with the broker. A part of `answering`.

use tokio::sync::{mpsc, watch};

use crate::{nats::answering::Answer, time::Micros};

pub(super) struct Outbox {
    queue: mpsc::Sender<Answer>,
    /// How many of those in the queue the broker has taken.
    taken: watch::Receiver<u64>,
    queued: u64,
    /// Received time of the earliest record that found no room.
    deferred: Option<Micros>,
    /// How many found none so far.
    skipped: u64,
    /// How many of them were given to the queue once more, and are with the broker.
    made_good: u64,
    /// How many came before the first that was not.
    before_skipped: Option<u64>,
    /// How many in the queue must be taken before there is room for them, or they are with the broker.
    room_at: u64,
    due: u64,
}

impl Outbox {
    pub(super) fn new(queue: mpsc::Sender<Answer>, taken: watch::Receiver<u64>) -> Self {
        Self {
            queue,
            taken,
            queued: 0,
            deferred: None,
            skipped: 0,
            made_good: 0,
            before_skipped: None,
            room_at: 0,
            due: 0,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.queue.capacity() > 0
    }

    /// Gives a record that was received then to the queue; whether it found room there. If not, it is to be found
    /// and given once more.
    pub(super) fn give(&mut self, answer: Answer, received: Micros) -> bool {
        let has_room = self.queue.try_send(answer).is_ok();
        if has_room {
            self.queued += 1;
        } else {
            self.before_skipped.get_or_insert(self.queued + self.skipped);
            self.skipped += 1;
            self.room_at = self.queued;
            self.deferred = Some(self.deferred.map_or(received, |it| it.min(received)));
        }
        self.due = self.queued + self.skipped;
        has_room
    }

    /// Gives a canary to the queue; whether it found room there. If not, another one will come.
    pub(super) fn give_canary(&mut self, answer: Answer) -> bool {
        let has_room = self.queue.try_send(answer).is_ok();
        self.queued += u64::from(has_room);
        has_room
    }

    /// Since when what was received is to be given once more, if there is room for it by now.
    pub(super) fn again(&mut self) -> Option<Micros> {
        if self.taken() < self.room_at {
            return None;
        }
        if self.deferred.is_none() {
            (self.made_good, self.before_skipped) = (self.skipped, None);
        }
        self.deferred.take()
    }

    /// What was to be given once more has been: it is with the broker when the queue of now is.
    pub(super) fn was_given_again(&mut self) {
        self.room_at = self.queued;
    }

    /// Whether something is to be given once more.
    pub(super) fn is_deferred(&self) -> bool {
        self.deferred.is_some()
    }

    /// Whether there are records that found no room, and are not with the broker yet.
    pub(super) fn is_behind(&self) -> bool {
        self.before_skipped.is_some()
    }

    /// Records that are for the broker so far, up to the last that is no canary.
    pub(super) fn due(&self) -> u64 {
        self.due
    }

    /// How many of them the broker has taken, up to the first that found no room and was not sent since.
    pub(super) fn done(&self) -> u64 {
        let done = self.taken() + self.made_good;
        self.before_skipped.map_or(done, |before| done.min(before))
    }

    /// Records that were given to the queue.
    pub(super) fn queued(&self) -> u64 {
        self.queued
    }

    /// How many of these the broker has taken.
    pub(super) fn taken(&self) -> u64 {
        *self.taken.borrow()
    }
}
