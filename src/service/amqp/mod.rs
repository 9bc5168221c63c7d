//! The hub's own AMQP endpoint for services: messages to devices, feedback about them, file notifications.
//!
//! Deliberately does not know the connection's state, devices' doors, metrics or the server. Contract: `protocols-amqp.md`
//! section 5, `c2d.md` sections 6 and 8.

mod commands;
mod feedback;

use std::rc::Rc;
use std::sync::Arc;

use crate::amqp::credentials::Grant;
use crate::amqp::{Link, Room, Visit, Visited};
use crate::hub::policy::Permissions;
use crate::hub::{Feedbacks, Outboxes, Throttles};
use crate::proto::amqp::address::Address;
use crate::proto::amqp::{Accept, Attach, Condition, Error, Role};

/// What services' links lead to. One for the hub.
pub struct Services {
    pub outboxes: Outboxes,
    pub feedbacks: Feedbacks,
    pub throttles: Arc<Throttles>,
}

impl Room for Services {
    fn visit(self: Arc<Self>, _: &Rc<Visited>) -> Rc<dyn Visit> {
        Rc::new(ServicesVisit(self))
    }
}

struct ServicesVisit(Arc<Services>);

impl Visit for ServicesVisit {
    fn attach(self: Rc<Self>, address: &Address, attach: &Attach, link: Link) -> Option<Link> {
        let role = match address {
            Address::Commands => Role::Sender,
            Address::Feedback | Address::FileNotifications => Role::Receiver,
            _ => return Some(link),
        };
        // IoT Hub, AMQP section 5.
        if let Err(error) = link.authorize(Grant::Service(Permissions::SERVICE_CONNECT)) {
            link.end(error);
            return None;
        }
        if attach.role != role {
            link.end(Error::new(
                Condition::NOT_ALLOWED,
                "the address is for the other direction",
            ));
            return None;
        }
        let services = self.0.clone();
        match address {
            Address::Commands => drop(actix_rt::spawn(commands::run(services, link))),
            Address::Feedback => drop(actix_rt::spawn(feedback::run(services, link))),
            // The hub has no storage for uploads, so nothing is ever told.
            _ => drop(actix_rt::spawn(silence(link))),
        }
        None
    }
}

async fn silence(link: Link) {
    link.accept(Accept::default());
    while !link.is_detached() {
        link.drained();
        link.changed().await;
    }
}
