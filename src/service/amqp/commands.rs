//! Messages to devices: accepted once they are durable in the device's queue.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use super::Services;
use crate::amqp::{Link, error, message};
use crate::hub::outbox::{Enqueued, OutboxError};
use crate::hub::{ErrorCode, IdentityName};
use crate::model::{DeviceId, Message, ModuleId};
use crate::proto::amqp::address::{Address, Purpose};
use crate::proto::amqp::message::Message as Sections;
use crate::proto::amqp::{Accept, Delivery, DeliveryState, Error};
use crate::shard::timing::pass;

/// Messages that a service may send ahead.
const CREDIT: u32 = 200;
/// Messages that wait for the store; then no further one is taken.
const PENDING_MAX: usize = 128;

type Outcome = (Delivered, Result<Enqueued, OutboxError>);

/// What has to be answered.
#[derive(Clone, Copy)]
struct Delivered {
    id: u32,
    is_settled: bool,
}

pub(super) async fn run(services: Arc<Services>, link: Link) {
    link.accept(Accept {
        credit: CREDIT,
        ..Accept::default()
    });
    let (outcomes, mut outcome) = mpsc::unbounded_channel::<Outcome>();
    let mut pending = 0;
    loop {
        while pending < PENDING_MAX
            && let Some(delivery) = link.take()
        {
            match services.enqueue(&link, &delivery, &outcomes).await {
                Ok(()) => pending += 1,
                Err(error) => reject(&link, delivered(&delivery), error),
            }
            if link.credit() < CREDIT / 2 {
                link.grant(CREDIT);
            }
        }
        tokio::select! {
            Some(first) = outcome.recv() => {
                let mut accepted = Vec::new();
                let mut next = Some(first);
                while let Some((delivered, result)) = next {
                    pending -= 1;
                    match result {
                        Ok(_) if delivered.is_settled => {}
                        Ok(_) => accepted.push(delivered.id),
                        Err(failed) => reject(&link, delivered, error::of(failed.code(), failed)),
                    }
                    next = outcome.try_recv().ok();
                }
                accept(&link, accepted);
            }
            () = link.changed() => {}
        }
        if link.is_detached() {
            // What was taken is stored all the same: nobody is left to be told.
            return;
        }
    }
}

impl Services {
    /// Hands a message to the store; its outcome comes later.
    async fn enqueue(
        &self,
        link: &Link,
        delivery: &Delivery,
        outcomes: &mpsc::UnboundedSender<Outcome>,
    ) -> Result<(), Error> {
        let (name, message) = read(delivery)?;
        let visited = link.visited();
        pass(self.throttles.admit_command(Instant::now(), visited.now()))
            .await
            .map_err(|throttled| error::of_throttled(&throttled))?;
        let (outcomes, delivered) = (outcomes.clone(), delivered(delivery));
        self.outboxes.enqueue(&name, &message, visited.now(), move |result| {
            drop(outcomes.send((delivered, result)));
        });
        Ok(())
    }
}

fn delivered(delivery: &Delivery) -> Delivered {
    Delivered {
        id: delivery.id,
        is_settled: delivery.is_settled,
    }
}

/// Whom a message is for, and the message.
fn read(delivery: &Delivery) -> Result<(IdentityName, Message), Error> {
    let invalid = |reason: String| error::of(ErrorCode::ARGUMENT_INVALID, reason);
    let sections = Sections::read(&delivery.payload).map_err(|error| invalid(error.to_string()))?;
    // IoT Hub, AMQP section 7: a missing `to` is an invalid operation.
    let to = sections
        .properties
        .to
        .ok_or_else(|| error::of(ErrorCode::INVALID_OPERATION, "the property `to` is missing"))?;
    let Some(Address::Device {
        device,
        module,
        purpose: Purpose::Commands,
    }) = Address::parse(to)
    else {
        return Err(invalid(format!("{to:?} is no device's queue")));
    };
    let name = IdentityName {
        device: DeviceId::new(&device).map_err(|error| invalid(format!("the device id {error}")))?,
        module: match module {
            Some(id) => Some(ModuleId::new(&id).map_err(|error| invalid(format!("the module id {error}")))?),
            None => None,
        },
    };
    let message = message::read(&sections).map_err(|error| invalid(error.to_string()))?;
    Ok((name, message))
}

fn reject(link: &Link, delivered: Delivered, error: Error) {
    tracing::debug!(
        condition = error.condition.name(),
        reason = error.description,
        "message refused"
    );
    if !delivered.is_settled {
        link.dispose(delivered.id, delivered.id, 1, DeliveryState::Rejected(Some(error)));
    }
}

/// Accepts deliveries, neighbours together.
fn accept(link: &Link, mut ids: Vec<u32>) {
    ids.sort_unstable();
    for run in ids.chunk_by(|one, next| one.wrapping_add(1) == *next) {
        let (first, last) = (run[0], run[run.len() - 1]);
        link.dispose(first, last, run.len() as u64, DeliveryState::Accepted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SystemKey;
    use crate::proto::amqp::message::{MessageWriter, Properties};

    fn delivery(to: Option<&str>) -> Delivery {
        let mut payload = Vec::new();
        let mut writer = MessageWriter::new(&mut payload);
        writer.properties(&Properties {
            to,
            content_type: Some("text/plain"),
            ..Properties::default()
        });
        writer.application_properties(1, |map| {
            map.string("iothub-ack");
            map.string("full");
        });
        writer.data(b"on");
        Delivery {
            id: 1,
            tag: Default::default(),
            is_settled: false,
            format: 0,
            payload: payload.into(),
        }
    }

    #[test]
    fn the_address_in_the_message_names_the_queue() {
        let (name, message) = read(&delivery(Some("/devices/a%2Bb/modules/m/messages/deviceBound"))).unwrap();
        assert_eq!((name.device.as_str(), name.module.unwrap().as_str()), ("a+b", "m"));
        assert_eq!(message.get(SystemKey::Ack), Some("full"));
        assert_eq!(message.body, b"on");
    }

    #[test]
    fn a_message_for_nobody_is_refused() {
        let code = |to| read(&delivery(to)).unwrap_err().condition;
        assert_eq!(code(None).name(), "amqp:not-allowed");
        assert_eq!(code(Some("/devices/d/twin")).name(), "com.microsoft:argument-error");
        assert_eq!(code(Some("lamp")).name(), "com.microsoft:argument-error");
    }
}
