//! What a client's packets are to the session: telemetry at once, the rest one by one.

use std::num::NonZeroU16;

use super::ended::{Ended, Refusal};
use super::twin::{Request, Tag};
use super::uplink::{Uplink, is_served};
use crate::hub::subscriptions::Subscription;
use crate::proto::mqtt::topic::Published;
use crate::proto::mqtt::{Packet, Property, Publish, QoS, Reason, Version};

/// What the session does besides telemetry.
#[derive(Debug)]
pub(super) enum Event {
    Subscribe {
        packet_id: NonZeroU16,
        filters: Vec<Subscription>,
    },
    Unsubscribe {
        packet_id: NonZeroU16,
        filters: Vec<String>,
    },
    /// A message to the device arrived, or is not wanted.
    Acknowledged(NonZeroU16, Reason),
    Twin(Tag, Request),
    MethodAnswer {
        rid: String,
        status: i32,
        payload: Vec<u8>,
    },
    Goodbye {
        reason: Reason,
        /// Seconds; of MQTT 5.
        session_expiry: Option<u32>,
    },
}

pub(super) struct Intake {
    pub version: Version,
    pub uplink: Uplink,
    /// Messages of QoS 1 that may wait for their acknowledgement.
    pub inflight_max: u16,
    /// What is to be sent.
    pub out: Vec<u8>,
    /// What the session has still to do before more is read.
    pub event: Option<Event>,
}

impl Intake {
    /// Takes a packet. Whether more may be taken now.
    #[inline]
    pub fn take(&mut self, packet: &Packet<'_>) -> Result<bool, Ended> {
        match packet {
            Packet::Publish(publish) => self.publish(publish),
            Packet::PubAck(ack) => self.has(Event::Acknowledged(ack.packet_id, ack.reason)),
            Packet::PingReq => {
                Packet::PingResp
                    .encode(self.version, &mut self.out)
                    .expect("an empty packet has no limits");
                Ok(self.out.len() < super::config::SENDING_BYTES_MAX)
            }
            Packet::Subscribe(subscribe) => {
                let is_numbered = |property| matches!(property, Property::SubscriptionId(_));
                if subscribe.properties.iter().any(is_numbered) {
                    return Err(Ended::protocol("subscription identifiers are not served"));
                }
                let filters = subscribe.filters().map(|filter| Subscription {
                    filter: filter.filter.to_owned(),
                    qos: filter.qos as u8,
                });
                let filters = filters.collect();
                self.has(Event::Subscribe {
                    packet_id: subscribe.packet_id,
                    filters,
                })
            }
            Packet::Unsubscribe(unsubscribe) => self.has(Event::Unsubscribe {
                packet_id: unsubscribe.packet_id,
                filters: unsubscribe.filters().map(str::to_owned).collect(),
            }),
            Packet::Disconnect(disconnect) => {
                let session_expiry = disconnect.properties.iter().find_map(|property| match property {
                    Property::SessionExpiry(seconds) => Some(seconds),
                    _ => None,
                });
                self.has(Event::Goodbye {
                    reason: disconnect.reason,
                    session_expiry,
                })
            }
            // MQTT 3.1.1 [MQTT-3.1.0-2].
            Packet::Connect(_) => Err(Ended::protocol("a second CONNECT")),
            // IoT Hub, MQTT section 11.
            Packet::PubRec(_) | Packet::PubRel(_) | Packet::PubComp(_) => {
                Err(Ended::protocol("a packet of QoS 2, which is not served"))
            }
            Packet::Auth(_) => Err(Ended::protocol("no enhanced authentication is under way")),
            Packet::ConnAck(_) | Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::PingResp => {
                Err(Ended::protocol("a packet that only servers send"))
            }
        }
    }

    fn has(&mut self, event: Event) -> Result<bool, Ended> {
        self.event = Some(event);
        Ok(false)
    }

    #[inline]
    fn publish(&mut self, publish: &Publish<'_>) -> Result<bool, Ended> {
        if !is_served(publish.qos) {
            self.uplink.refuse(publish, Refusal::QOS)?;
        }
        let waiting = self.uplink.window.waiting();
        if self.version == Version::V5 && publish.packet_id.is_some() && waiting >= usize::from(self.inflight_max) {
            return Err(Ended::receive_maximum(self.inflight_max));
        }
        if !publish.properties.is_empty() {
            check(publish)?;
        }
        if !self.uplink.is_latest(publish.topic) {
            match Published::parse(publish.topic) {
                Some(Published::Telemetry { owner, bag }) => {
                    if let Err(refusal) = self.uplink.look_at(publish.topic, owner, bag) {
                        self.uplink.refuse(publish, refusal)?;
                        return Ok(self.goes_on());
                    }
                }
                Some(asked) => {
                    if let Some(id) = publish.packet_id {
                        self.uplink.answer(id, Reason::SUCCESS);
                    }
                    return self.has(event(asked, publish));
                }
                None => {
                    self.uplink.refuse(publish, Refusal::TOPIC)?;
                    return Ok(self.goes_on());
                }
            }
        }
        self.uplink.take(publish)?;
        Ok(self.goes_on())
    }

    fn goes_on(&self) -> bool {
        !self.uplink.is_full() && self.has_room()
    }

    /// Whether more messages may wait for their acknowledgement. Of a client of MQTT 5, which was told how many may, more
    /// are a violation; one of 3.1.1 is read no further.
    pub fn has_room(&self) -> bool {
        self.version == Version::V5 || self.uplink.window.waiting() < usize::from(self.inflight_max)
    }
}

fn check(publish: &Publish<'_>) -> Result<(), Ended> {
    for property in publish.properties.iter() {
        match property {
            // The CONNACK grants none.
            Property::TopicAlias(_) => return Err(Ended::topic_alias()),
            // MQTT 5 [MQTT-3.3.4-6].
            Property::SubscriptionId(_) => return Err(Ended::protocol("a client's message names a subscription")),
            _ => {}
        }
    }
    Ok(())
}

fn event(asked: Published<'_>, publish: &Publish<'_>) -> Event {
    let tag = |rid: &str| Tag {
        rid: rid.to_owned(),
        correlation: publish.properties.iter().find_map(|property| match property {
            Property::CorrelationData(data) => Some(data.to_vec()),
            _ => None,
        }),
        is_heard: false,
    };
    match asked {
        Published::TwinGet { rid } => Event::Twin(tag(rid), Request::Get),
        Published::TwinReport { rid, version } => Event::Twin(
            tag(rid),
            Request::Report {
                patch: publish.payload.to_vec(),
                if_version: version.map(str::to_owned),
            },
        ),
        Published::MethodAnswer { status, rid } => {
            // A client of MQTT 5 that answers on the response topic says its status beside.
            let said = publish.properties.iter().find_map(|property| match property {
                Property::User("status", status) => status.parse().ok(),
                _ => None,
            });
            Event::MethodAnswer {
                rid: rid.to_owned(),
                status: said.unwrap_or(status),
                payload: publish.payload.to_vec(),
            }
        }
        Published::Telemetry { .. } => unreachable!("telemetry is taken at once"),
    }
}

/// A quality of service as it is stored.
pub(super) fn qos(stored: u8) -> QoS {
    match stored {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    }
}
