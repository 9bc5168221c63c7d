//! The device routes over HTTPS: telemetry, one message or a batch a request, and messages to the device, one a request.
//!
//! ```text
//!   POST ── credential ── headers or JSON -> messages ── budget ──> home shard ── durable ──> 204
//! ```
//!
//! HTTPS has no session: each request proves its identity, displaces nobody, and knows no duplicates. Routes whose
//! capability this hub has not are not routed. Deliberately does not know other doors, metrics or the server.

mod commands;
mod events;

use std::sync::Arc;
use std::time::Instant;

use crate::http::{Answer, Answering, Call, Entry, Refused, Room, Route};
use crate::hub::outbox::Settlement;
use crate::hub::throttle::Class;
use crate::hub::{Authenticated, Authenticator, Credential, ErrorCode, Outboxes, Permissions, Throttles};
use crate::log::DiskStorage;
use crate::session::post::{Unstored, post};
use crate::shard::command::{Messages, PostError};
use crate::shard::router::Router;
use crate::shard::timing::pass;
use actix_web::http::header::AUTHORIZATION;

// IoT Hub, HTTPS section 2.
pub const ROUTES: &[Entry] = &[
    ("POST", "/devices/{}/messages/events", Route::DeviceEvents),
    ("POST", "/devices/{}/modules/{}/messages/events", Route::DeviceEvents),
    ("GET", "/devices/{}/messages/devicebound", Route::CommandReceive),
    ("DELETE", "/devices/{}/messages/devicebound/{}", Route::CommandSettle),
    (
        "POST",
        "/devices/{}/messages/devicebound/{}/abandon",
        Route::CommandAbandon,
    ),
    ("POST", "/devices/{}/files", Route::DeviceFiles),
    ("POST", "/devices/{}/files/notifications", Route::DeviceFiles),
    ("POST", "/devices/{}/files/notifications/{}", Route::DeviceFiles),
];

/// What the credential of any of the routes must allow.
pub fn permission(_: Route) -> Permissions {
    Permissions::DEVICE_CONNECT
}

/// The room of the device routes.
pub struct Devices {
    pub authenticator: Authenticator,
    pub outboxes: Outboxes,
    pub throttles: Arc<Throttles>,
    pub router: Arc<Router<DiskStorage>>,
    /// The name that tokens are made for.
    pub host_name: String,
}

impl Room for Devices {
    fn routes(&self) -> &'static [Entry] {
        ROUTES
    }

    fn answer(self: Arc<Self>, route: Route, call: Call) -> Answering {
        Box::pin(async move {
            let identity = self.authenticate(&call)?;
            let name = &identity.identity;
            match route {
                Route::DeviceEvents => {
                    let messages = events::read(&call).await?;
                    let (count, bytes) = (u64::from(messages.count), messages.payload.len() as u64);
                    let turn = self
                        .throttles
                        .admit_telemetry(name, count, bytes, Instant::now(), call.now());
                    pass(turn).await?;
                    self.store(&call, identity, messages).await
                }
                Route::CommandReceive => {
                    pass(self.throttles.admit(Class::C2dReceives, 1, Instant::now())).await?;
                    self.receive(&call, name).await
                }
                Route::CommandSettle if call.query("reject").is_some() => {
                    self.settle(&call, name, Settlement::Reject).await
                }
                Route::CommandSettle => self.settle(&call, name, Settlement::Complete).await,
                Route::CommandAbandon => self.settle(&call, name, Settlement::Abandon).await,
                // IoT Hub, file upload: the hub has no storage account.
                Route::DeviceFiles => Err(Refused::new(
                    ErrorCode::NO_UPLOAD_STORAGE,
                    "no storage is configured for file upload",
                )),
                Route::DeviceGet
                | Route::DevicePut
                | Route::DeviceDelete
                | Route::DeviceList
                | Route::DeviceBulk
                | Route::DeviceQuery
                | Route::KeysRegenerate
                | Route::ModuleGet
                | Route::ModulePut
                | Route::ModuleDelete
                | Route::ModuleList
                | Route::StatisticsDevices
                | Route::StatisticsService
                | Route::TwinGet
                | Route::TwinPatch
                | Route::TwinPut
                | Route::MethodInvoke
                | Route::CommandPurge
                | Route::FeedbackReceive
                | Route::FeedbackComplete
                | Route::FeedbackAbandon
                | Route::None => {
                    unreachable!("not among this room's routes")
                }
            }
        })
    }
}

impl Devices {
    fn authenticate(&self, call: &Call) -> Result<Authenticated, Refused> {
        let wanted = call.identity()?;
        let chain: Vec<&[u8]> = call.certificates().iter().map(AsRef::as_ref).collect();
        // IoT Hub, HTTPS section 1: a certificate counts where there is no header.
        let credential = match chain.split_first() {
            Some((leaf, intermediates)) if !call.headers().contains_key(AUTHORIZATION) => {
                Credential::Certificate { leaf, intermediates }
            }
            _ => Credential::Sas(call.authorization()?),
        };
        Ok(self
            .authenticator
            .authenticate(credential, &wanted, &self.host_name, call.now())?)
    }

    async fn store(&self, call: &Call, identity: Authenticated, messages: Messages) -> Result<Answer, Refused> {
        let stored = post(&self.router, &identity, messages, call.config().busy_timeout).await;
        stored.map_err(|unstored| match &unstored {
            Unstored::NoRoom | Unstored::Unknown => Refused::busy(&unstored.to_string()),
            Unstored::Refused(error) => refused(error),
        })?;
        Ok(Answer::no_content())
    }
}

fn refused(error: &PostError) -> Refused {
    let code = match error {
        PostError::TooLarge(_) => ErrorCode::MESSAGE_TOO_LARGE,
        PostError::Poisoned => ErrorCode::SERVER_ERROR,
        PostError::Stopping => ErrorCode::SERVER_BUSY,
    };
    Refused::new(code, error.to_string())
}
