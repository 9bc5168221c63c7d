//! Devices and modules over AMQP: telemetry, messages to them, direct methods, twins.
//!
//! ```text
//!   attach ── credential ──> Session (one for an identity on a connection) ── open ──> home shard
//!                              │ telemetry: the session's own task               append, acknowledge
//!                              ├ commands:  a task       methods, twin: a task for both links of a pair
//!                              └ ends when the shard ends it, or with its last link
//! ```
//!
//! Many identities may share a connection; each is connected from its first link to its last. Deliberately does not know
//! the connection's state, other doors, metrics or the server. Contract: `protocols-amqp.md` sections 3, 4, 7 and 8.

mod commands;
mod message;
mod methods;
pub mod observer;
mod pair;
mod session;
mod telemetry;
mod twin;

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use foldhash::HashMap;

pub use self::observer::Observer;
use self::pair::Half;
use self::session::Session;
use crate::amqp::credentials::{Grant, Granted};
use crate::amqp::{Link, Room, Visit, Visited, error};
use crate::hub::{Authenticated, ErrorCode, IdentityName, Outboxes, Throttles, Twins};
use crate::log::DiskStorage;
use crate::model::limits::MODEL_ID_BYTES_MAX;
use crate::model::{DeviceId, ModuleId};
use crate::proto::amqp::address::{Address, Purpose};
use crate::proto::amqp::{Accept, Attach, Error, Role};
use crate::shard::lines::Lines;
use crate::shard::router::Router;

#[cfg(any(test, feature = "testing"))]
pub mod fuzz {
    //! Entry points for fuzzing what reads a device's bytes.
    pub use super::message::telemetry;
}

// IoT Hub, AMQP section 4: clients say it on the link of telemetry, or on any.
const MODEL_ID: &str = "com.microsoft:model-id";

/// What devices' links lead to. One for the hub.
pub struct Devices {
    pub router: Arc<Router<DiskStorage>>,
    pub outboxes: Outboxes,
    pub twins: Twins,
    pub lines: Lines,
    pub throttles: Arc<Throttles>,
    pub observer: Arc<dyn Observer>,
}

impl Room for Devices {
    fn visit(self: Arc<Self>, _: &Rc<Visited>) -> Rc<dyn Visit> {
        Rc::new(DeviceVisit {
            devices: self,
            sessions: RefCell::default(),
        })
    }
}

/// The identities of one connection.
struct DeviceVisit {
    devices: Arc<Devices>,
    /// Their links keep them.
    sessions: RefCell<HashMap<IdentityName, Weak<Session>>>,
}

impl Visit for DeviceVisit {
    fn attach(self: Rc<Self>, address: &Address, attach: &Attach, link: Link) -> Option<Link> {
        let Address::Device {
            device,
            module,
            purpose,
        } = address
        else {
            return Some(link);
        };
        match self.authorize(device, module.as_deref(), &link) {
            Ok(identity) => self.lead(identity, *purpose, attach, link),
            Err(error) => link.end(error),
        }
        None
    }
}

impl DeviceVisit {
    fn authorize(&self, device: &str, module: Option<&str>, link: &Link) -> Result<Authenticated, Error> {
        let invalid = |error| error::of(ErrorCode::NOT_FOUND, format_args!("an id of the address {error}"));
        let name = IdentityName {
            device: DeviceId::new(device).map_err(invalid)?,
            module: module.map(ModuleId::new).transpose().map_err(invalid)?,
        };
        match link.authorize(Grant::Device(name))? {
            Granted::Device(identity) => Ok(identity),
            Granted::Service(_) => unreachable!("a device's grant names a device"),
        }
    }

    fn lead(&self, identity: Authenticated, purpose: Purpose, attach: &Attach, link: Link) {
        let model_id = attach
            .property(MODEL_ID)
            .and_then(|id| id.as_text())
            .unwrap_or_default();
        if model_id.len() > MODEL_ID_BYTES_MAX {
            return link.end(error::of(ErrorCode::ARGUMENT_INVALID, "the model id is too long"));
        }
        // IoT Hub, AMQP section 4.
        let is_module = identity.identity.module.is_some();
        match (purpose, attach.role) {
            (Purpose::Events, Role::Sender) => {
                let session = self.session(identity, &link);
                session.follow_model(model_id);
                session.send_telemetry(link);
            }
            (Purpose::Commands, Role::Receiver) => {
                let session = self.session(identity, &link);
                session.follow_model(model_id);
                actix_rt::spawn(commands::run(session, link, attach.sender_settles));
            }
            (Purpose::Methods | Purpose::Twin, role) => {
                let session = self.session(identity, &link);
                session.follow_model(model_id);
                session.pair(purpose, Half::new(role, attach, link));
            }
            // Inputs come from other modules of an Edge device, which the hub does not route; clients attach here all the
            // same, and one that is refused gives up its connection (azure-iot-amqp-base).
            (Purpose::Events, Role::Receiver) if is_module => {
                let session = self.session(identity, &link);
                actix_rt::spawn(silence(session, link));
            }
            (Purpose::Events, Role::Receiver) | (Purpose::Commands, Role::Sender) => {
                let reason = "the address is for the other direction";
                link.end(error::of(ErrorCode::INVALID_OPERATION, reason));
            }
        }
    }

    /// The identity's session, opened by its first link.
    fn session(&self, identity: Authenticated, link: &Link) -> Rc<Session> {
        let mut sessions = self.sessions.borrow_mut();
        let known = sessions.get(&identity.identity).and_then(Weak::upgrade);
        if let Some(session) = known.filter(|session| !session.is_ended()) {
            return session;
        }
        sessions.retain(|_, session| session.strong_count() > 0);
        let name = identity.identity.clone();
        let session = Session::start(self.devices.clone(), link.visited().clone(), identity);
        sessions.insert(name, Rc::downgrade(&session));
        session
    }
}

/// Serves a link on which nothing ever comes.
async fn silence(session: Rc<Session>, link: Link) {
    let mut watch = session.watch();
    if let Err(error) = watch.opened().await {
        return link.end(error);
    }
    link.accept(Accept::default());
    while !link.is_detached() {
        link.drained();
        tokio::select! {
            () = link.changed() => {}
            error = watch.ended() => return link.end(error),
        }
    }
}
