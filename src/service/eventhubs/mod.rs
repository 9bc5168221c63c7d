//! The built-in endpoint as Event Hubs clients read it: one link a partition and consumer group, over AMQP.
//!
//! ```text
//!   attach ── address, selector ──> Seats (who reads) ──> reader ── slices of the log ──> event (sections) ──> Link
//!   $management ──> facts of the hub and of a partition
//! ```
//!
//! Invariants:
//! - Nothing is sent that is not durable, and nothing twice on a link; a link's sequence numbers only grow.
//! - A stalled reader holds no more than its connection's buffer: nothing is read ahead of what may be sent.
//!
//! Deliberately does not know the AMQP connection's state, devices' doors, metrics or the server. Contract:
//! `d2c-builtin-endpoint.md`.

mod event;
mod management;
pub mod observer;
mod reader;
mod seats;

use std::rc::Rc;
use std::sync::Arc;

use self::observer::Observer;
use self::seats::Seats;
use crate::amqp::credentials::Grant;
use crate::amqp::node::Node;
use crate::amqp::{Link, Room, Visit, Visited};
use crate::hub::Groups;
use crate::hub::policy::Permissions;
use crate::log::DiskStorage;
use crate::model::{ConsumerGroup, PartitionId, UtcMillis};
use crate::proto::amqp::address::Address;
use crate::proto::amqp::{Attach, Condition, Error, Info, Role};
use crate::shard::readers::Readers;
use crate::shard::router::Router;

#[cfg(any(test, feature = "testing"))]
pub mod fuzz {
    //! Entry points for fuzzing what reads a client's words.
    pub use super::reader::start_of;
}

/// The built-in endpoint. One for the hub.
pub struct EventHubs {
    router: Arc<Router<DiskStorage>>,
    groups: Groups,
    readers: Arc<Readers>,
    seats: Arc<Seats>,
    observer: Arc<dyn Observer>,
    facts: Facts,
}

/// What clients are told of the endpoint.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The name that stands as `EntityPath` in connection strings; compared without case.
    pub entity: String,
    pub created: UtcMillis,
    /// Where clients are sent that ask under the hub's own name.
    pub host_name: String,
    pub port: u16,
}

impl EventHubs {
    pub fn new(
        router: Arc<Router<DiskStorage>>,
        groups: Groups,
        readers: Arc<Readers>,
        observer: Arc<dyn Observer>,
        facts: Facts,
    ) -> Arc<Self> {
        Arc::new(Self {
            router,
            groups,
            readers,
            seats: Arc::default(),
            observer,
            facts,
        })
    }

    fn is_entity(&self, name: &str) -> bool {
        name.eq_ignore_ascii_case(&self.facts.entity)
    }

    /// The consumer group and partition of an address, if the hub has them.
    fn find(&self, entity: &str, group: &str, partition: &str) -> Result<(ConsumerGroup, PartitionId), Error> {
        if !self.is_entity(entity) {
            return Err(not_found(entity));
        }
        let missing = || not_found(&format!("{entity}/ConsumerGroups/{group}/Partitions/{partition}"));
        let name = ConsumerGroup::new(group).map_err(|_| missing())?;
        let exists = self.groups.exists(&name).map_err(|error| {
            Error::new(
                Condition::INTERNAL_ERROR,
                format!("consumer groups cannot be read: {error}"),
            )
        })?;
        let id = partition
            .parse()
            .ok()
            .map(PartitionId)
            .filter(|id| self.router.partition(*id).is_some());
        match id {
            Some(id) if exists => Ok((name, id)),
            Some(_) | None => Err(missing()),
        }
    }

    // Built-in endpoint section 3.
    fn redirect(&self, rest: &str) -> Error {
        let Facts {
            entity,
            host_name,
            port,
            ..
        } = &self.facts;
        let address = format!("amqps://{host_name}:{port}/{entity}/{rest}");
        Error::new(Condition::REDIRECT, "the built-in endpoint has a name of its own")
            .with("hostname", Info::Text(host_name.clone()))
            .with("network-host", Info::Text(host_name.clone()))
            .with("port", Info::Int(i32::from(*port)))
            .with("address", Info::Text(address))
    }
}

// Built-in endpoint section 4.2: clients look for these words.
fn not_found(entity: &str) -> Error {
    Error::new(
        Condition::NOT_FOUND,
        format!("The messaging entity '{entity}' could not be found. (status-code: 404)"),
    )
}

impl Room for EventHubs {
    fn visit(self: Arc<Self>, _: &Rc<Visited>) -> Rc<dyn Visit> {
        let hub = self.clone();
        let management = Node::new(move |visited, request| management::answer(&hub, visited, request));
        Rc::new(EventsVisit { hub: self, management })
    }
}

struct EventsVisit {
    hub: Arc<EventHubs>,
    management: Rc<Node>,
}

impl Visit for EventsVisit {
    fn attach(self: Rc<Self>, address: &Address, attach: &Attach, link: Link) -> Option<Link> {
        match address {
            // Each request is judged by itself: it may bring its own token.
            Address::Management { entity } => match entity {
                Some(entity) if !self.hub.is_entity(entity) => link.end(not_found(entity)),
                Some(_) | None => self.management.attach(attach, link),
            },
            Address::Partition {
                entity,
                group,
                partition,
            } if attach.role == Role::Receiver => {
                let path = format!("{entity}/ConsumerGroups/{group}/Partitions/{partition}");
                let opened = link.authorize(Grant::Events(path)).and_then(|_| {
                    let (group, partition) = self.hub.find(entity, group, partition)?;
                    reader::open(&self.hub, group, partition, attach)
                });
                match opened {
                    Ok(reader) => drop(actix_rt::spawn(reader.run(link))),
                    Err(error) => link.end(error),
                }
            }
            Address::Partition { entity, .. } | Address::Entity(entity) => {
                let refused = match link.authorize(Grant::Events(entity.clone())) {
                    Err(error) => error,
                    Ok(_) if !self.hub.is_entity(entity) => not_found(entity),
                    // Built-in endpoint section 1: outside senders cannot write.
                    Ok(_) => Error::new(
                        Condition::NOT_ALLOWED,
                        "the built-in endpoint is written by the hub alone",
                    ),
                };
                link.end(refused);
            }
            Address::HubEvents { rest } => match link.authorize(Grant::Service(Permissions::SERVICE_CONNECT)) {
                Ok(_) => link.end(self.hub.redirect(rest)),
                Err(error) => link.end(error),
            },
            _ => return Some(link),
        }
        None
    }
}
