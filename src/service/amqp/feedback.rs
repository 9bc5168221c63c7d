//! Feedback about messages to devices: batches under locks, settled by whoever reads them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::Services;
use crate::amqp::message::guid_tag;
use crate::amqp::{Link, error};
use crate::hub::FeedbackError;
use crate::hub::feedback::FeedbackBatch;
use crate::hub::outbox::{LockToken, Settlement};
use crate::proto::amqp::message::{MessageWriter, Properties};
use crate::proto::amqp::{Accept, Condition, DeliveryState, Error};

// IoT Hub, C2D section 8: clients refuse any other.
const CONTENT_TYPE: &str = "application/vnd.microsoft.iothub.feedback.json";
/// How often an idle receiver looks; a look that finds nothing reads one row of memory. Batches are released at most
/// every 15 seconds unless they are full.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Batches of one link that are not settled.
const UNSETTLED_MAX: usize = 64;

enum Answered {
    Received(Result<Option<FeedbackBatch>, FeedbackError>),
    Settled(u32, DeliveryState, bool, Result<(), FeedbackError>),
}

pub(super) async fn run(services: Arc<Services>, link: Link) {
    link.accept(Accept {
        tracks_outcomes: true,
        ..Accept::default()
    });
    let mut receiver = Receiver {
        services,
        unsettled: HashMap::new(),
        is_receiving: false,
    };
    let (answers, mut answered) = mpsc::unbounded_channel();
    receiver.serve(&link, &answers, &mut answered).await;
    receiver.give_back(&link, &mut answered).await;
}

struct Receiver {
    services: Arc<Services>,
    unsettled: HashMap<u32, LockToken>,
    is_receiving: bool,
}

impl Receiver {
    async fn serve(
        &mut self,
        link: &Link,
        answers: &mpsc::UnboundedSender<Answered>,
        answered: &mut mpsc::UnboundedReceiver<Answered>,
    ) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut may_have_more = true;
        while !link.is_detached() {
            while let Some(settled) = link.take_settled() {
                self.settle(link, settled, answers);
            }
            if may_have_more && !self.is_receiving && self.unsettled.len() < UNSETTLED_MAX && link.can_send() {
                (self.is_receiving, may_have_more) = (true, false);
                let answers = answers.clone();
                let now = link.visited().now();
                self.services
                    .feedbacks
                    .receive(now, move |batch| drop(answers.send(Answered::Received(batch))));
            }
            tokio::select! {
                () = link.changed() => {}
                _ = look.tick() => may_have_more = true,
                Some(answer) = answered.recv() => match answer {
                    Answered::Received(received) => {
                        self.is_receiving = false;
                        match received {
                            Ok(None) => link.drained(),
                            Ok(Some(batch)) => {
                                may_have_more = true;
                                self.deliver(link, &batch);
                            }
                            Err(failed) => return link.end(error::of(failed.code(), failed)),
                        }
                    }
                    Answered::Settled(id, state, is_final, result) => answer_settled(link, id, state, is_final, result),
                },
            }
        }
    }

    fn deliver(&mut self, link: &Link, batch: &FeedbackBatch) {
        if !link.can_send() {
            // Asked for with credit that is gone: back with it, for whoever comes next.
            self.abandon(link, batch.token);
            return;
        }
        let tag = guid_tag(batch.token.into());
        let host_name = link.visited().door.host_name.clone();
        let id = link.send(&tag, |out| {
            let mut writer = MessageWriter::new(out);
            writer.annotations(4, |map| {
                map.symbol("x-opt-sequence-number");
                map.ulong(batch.sequence);
                map.symbol("iothub-enqueuedtime");
                map.timestamp(batch.enqueued.0);
                map.symbol("iothub-deliverycount");
                map.ubyte(batch.delivery_count);
                map.symbol("x-opt-lock-token");
                map.string(&batch.token.to_string());
            });
            writer.properties(&Properties {
                user_id: Some(host_name.as_bytes()),
                content_type: Some(CONTENT_TYPE),
                content_encoding: Some("utf-8"),
                ..Properties::default()
            });
            writer.data(&batch.body());
        });
        self.unsettled.insert(id, batch.token);
    }

    // IoT Hub, AMQP section 5.
    fn settle(&mut self, link: &Link, settled: crate::proto::amqp::Settled, answers: &mpsc::UnboundedSender<Answered>) {
        let Some(token) = self.unsettled.get(&settled.id).copied() else {
            return;
        };
        let state = match settled.state {
            Some(DeliveryState::Received) if !settled.is_final => return,
            Some(state) => state,
            // Settled without an outcome: the receiver gave it up.
            None => DeliveryState::Released,
        };
        self.unsettled.remove(&settled.id);
        let settlement = match &state {
            DeliveryState::Accepted => Settlement::Complete,
            DeliveryState::Rejected(_) => Settlement::Reject,
            DeliveryState::Released
            | DeliveryState::Modified { .. }
            | DeliveryState::Received
            | DeliveryState::Other => Settlement::Abandon,
        };
        let (answers, id, is_final) = (answers.clone(), settled.id, settled.is_final);
        let now = link.visited().now();
        self.services.feedbacks.settle(token, settlement, now, move |result| {
            drop(answers.send(Answered::Settled(id, state, is_final, result)));
        });
    }

    fn abandon(&self, link: &Link, token: LockToken) {
        let now = link.visited().now();
        // If it fails, the lock runs out.
        self.services.feedbacks.settle(token, Settlement::Abandon, now, |_| ());
    }

    /// What was handed out, or is about to be, waits for the next receiver.
    async fn give_back(mut self, link: &Link, answered: &mut mpsc::UnboundedReceiver<Answered>) {
        while self.is_receiving {
            match answered.recv().await {
                Some(Answered::Received(received)) => {
                    self.is_receiving = false;
                    if let Ok(Some(batch)) = received {
                        self.abandon(link, batch.token);
                    }
                }
                Some(Answered::Settled(..)) => {}
                None => return,
            }
        }
        for token in self.unsettled.values() {
            self.abandon(link, *token);
        }
    }
}

/// Tells a peer that waits for it how its outcome came out.
fn answer_settled(link: &Link, id: u32, state: DeliveryState, is_final: bool, result: Result<(), FeedbackError>) {
    if is_final {
        return;
    }
    let state = match result {
        Ok(()) => state,
        Err(failed) => {
            let lost = Error::new(Condition::MESSAGE_LOCK_LOST, failed.to_string());
            DeliveryState::Rejected(Some(lost))
        }
    };
    link.settle(id, state);
}
