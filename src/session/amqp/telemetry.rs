//! A link that telemetry comes on: deliveries out of it as batches, and their outcomes back.
//!
//! A delivery is accepted once all of it is durable. What came together goes into the log together, and neighbours are
//! accepted together.

use std::collections::VecDeque;

use super::message;
use crate::amqp::Link;
use crate::model::SystemKey;
use crate::proto::amqp::{Accept, Delivery, DeliveryState, Error};
use crate::wire::batch::{Batch, BatchBuilder};

/// Messages that a device may send ahead; renewed when half of it is used.
const CREDIT: u32 = 500;
/// A joined batch grows no further than this.
const JOINED_BYTES_MAX: usize = 64 * 1024;

/// Neighbouring deliveries that wait for the same durability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// What has to be stored for them.
    last_sequence: u64,
    first: u32,
    last: u32,
    count: u64,
}

pub(super) struct Uplink {
    link: Link,
    builder: BatchBuilder,
    /// In the order of sequences.
    waiting: VecDeque<Run>,
}

impl Uplink {
    pub fn accept(link: Link) -> Self {
        link.accept(Accept {
            credit: CREDIT,
            ..Accept::default()
        });
        Self {
            link,
            builder: BatchBuilder::default(),
            waiting: VecDeque::new(),
        }
    }

    /// Takes what came, as one batch from this sequence on, of a device that follows this model, if any. What is no message is refused on the way.
    pub fn take_batch(&mut self, first_sequence: u64, bytes_max: usize, model_id: &str) -> Option<Batch> {
        while self.builder.body_bytes() < JOINED_BYTES_MAX
            && let Some(delivery) = self.link.take()
        {
            match message::telemetry(&delivery.payload, delivery.format, bytes_max) {
                Ok(mut messages) => {
                    // IoT Hub, message format section 2.
                    if !model_id.is_empty() {
                        for message in &mut messages {
                            message.system.push((SystemKey::DataSchema, model_id.to_owned()));
                        }
                    }
                    messages.iter().for_each(|message| self.builder.push(message));
                    let last_sequence = first_sequence + u64::from(self.builder.count()) - 1;
                    note(&mut self.waiting, &delivery, last_sequence);
                }
                Err(refused) => self.link.reject(&delivery, refused),
            }
            if self.link.credit() < CREDIT / 2 {
                self.link.grant(CREDIT);
            }
        }
        if self.builder.is_empty() {
            return None;
        }
        Some(Batch {
            first_sequence,
            count: self.builder.count(),
            skip: false,
            payload: self.builder.finish_payload(),
        })
    }

    /// All up to this sequence is durable.
    pub fn acknowledge(&mut self, sequence: u64) {
        for run in acknowledged(&mut self.waiting, sequence) {
            self.link
                .dispose(run.first, run.last, run.count, DeliveryState::Accepted);
        }
    }

    pub async fn changed(&self) {
        self.link.changed().await;
    }

    pub fn is_detached(&self) -> bool {
        self.link.is_detached()
    }

    pub fn has_deliveries(&self) -> bool {
        self.link.has_deliveries()
    }

    /// Ends the link; what was not accepted is the device's again.
    pub fn end(self, error: Error) {
        self.release();
        self.link.end(error);
    }

    /// The link has ended: nobody hears of outcomes any more. Counts them as settled all the same, so that the
    /// connection's end need not wait for them.
    pub fn forget(self) {
        self.release();
    }

    // IoT Hub, AMQP section 4.1: clients send what was released again.
    fn release(&self) {
        for run in &self.waiting {
            self.link
                .dispose(run.first, run.last, run.count, DeliveryState::Released);
        }
        while let Some(delivery) = self.link.take() {
            if !delivery.is_settled {
                self.link.dispose(delivery.id, delivery.id, 1, DeliveryState::Released);
            }
        }
    }
}

fn note(waiting: &mut VecDeque<Run>, delivery: &Delivery, last_sequence: u64) {
    if delivery.is_settled {
        return;
    }
    let run = Run {
        last_sequence,
        first: delivery.id,
        last: delivery.id,
        count: 1,
    };
    waiting.push_back(run);
}

/// What is settled by a sequence, neighbours together: deliveries of other links of the session stand in between.
fn acknowledged(waiting: &mut VecDeque<Run>, sequence: u64) -> Vec<Run> {
    let mut settled: Vec<Run> = Vec::new();
    while let Some(run) = waiting.pop_front_if(|run| run.last_sequence <= sequence) {
        match settled.last_mut() {
            Some(earlier) if earlier.last.wrapping_add(1) == run.first => {
                earlier.last = run.last;
                earlier.count += run.count;
            }
            Some(_) | None => settled.push(run),
        }
    }
    settled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(id: u32, is_settled: bool) -> Delivery {
        Delivery {
            id,
            tag: Default::default(),
            is_settled,
            format: 0,
            payload: Default::default(),
        }
    }

    #[test]
    fn neighbours_are_accepted_together_and_others_left_alone() {
        let mut waiting = VecDeque::new();
        for (id, is_settled, last_sequence) in [
            (u32::MAX, false, 1),
            (0, false, 3),
            (1, true, 4),
            (2, false, 5),
            (4, false, 6),
            (5, false, 9),
        ] {
            note(&mut waiting, &delivery(id, is_settled), last_sequence);
        }
        let ranges = |runs: Vec<Run>| -> Vec<_> { runs.iter().map(|run| (run.first, run.last, run.count)).collect() };
        assert_eq!(ranges(acknowledged(&mut waiting, 0)), []);
        // The batch of the last one is stored in part.
        assert_eq!(
            ranges(acknowledged(&mut waiting, 8)),
            [(u32::MAX, 0, 2), (2, 2, 1), (4, 4, 1)]
        );
        assert_eq!(ranges(acknowledged(&mut waiting, 9)), [(5, 5, 1)]);
        assert!(waiting.is_empty());
    }
}
