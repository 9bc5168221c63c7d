//! The service routes over HTTPS: the identity registry and its statistics, twins, direct methods, and what became of
//! messages to devices.
//!
//! | route | permission |
//! | --- | --- |
//! | `GET /devices`, `/devices/{id}`, `/devices/{id}/modules`, `/devices/{id}/modules/{mid}`, `/statistics/devices` | RegistryRead |
//! | `PUT`, `DELETE` of a device or module, `POST /devices`, `/devices/keys/regenerate` | RegistryWrite |
//! | `GET /statistics/service`, `POST /devices/query`, all of `/twins`, `DELETE /devices/{id}/commands`, all of `/messages/servicebound/feedback` | ServiceConnect |
//!
//! Knows the hub's registry and, to cut off sessions, the shards' router; deliberately does not know device doors,
//! metrics or the server. An answered change is durable, and its sessions are told to end before the answer leaves.

mod bulk;
mod identity;
mod messages;
mod method;
mod query;
mod twin;

use std::sync::Arc;
use std::time::Instant;

use crate::http::{Answer, Answering, Call, Entry, Refused, Room, Route};
use crate::hub::outbox::Settlement;
use crate::hub::throttle::Class;
use crate::hub::{Authenticator, Feedbacks, Live, Outboxes, Permissions, Registry, Throttles, Twins};
use crate::log::DiskStorage;
use crate::shard::lines::Lines;
use crate::shard::router::Router;
use crate::shard::timing::pass;

// IoT Hub, HTTPS section 5.
pub const ROUTES: &[Entry] = &[
    ("GET", "/devices", Route::DeviceList),
    ("POST", "/devices", Route::DeviceBulk),
    ("POST", "/devices/keys/regenerate", Route::KeysRegenerate),
    // Section 6.
    ("POST", "/devices/query", Route::DeviceQuery),
    ("GET", "/devices/{}", Route::DeviceGet),
    ("PUT", "/devices/{}", Route::DevicePut),
    ("DELETE", "/devices/{}", Route::DeviceDelete),
    ("GET", "/devices/{}/modules", Route::ModuleList),
    ("GET", "/devices/{}/modules/{}", Route::ModuleGet),
    ("PUT", "/devices/{}/modules/{}", Route::ModulePut),
    ("DELETE", "/devices/{}/modules/{}", Route::ModuleDelete),
    ("GET", "/statistics/devices", Route::StatisticsDevices),
    ("GET", "/statistics/service", Route::StatisticsService),
    // Section 7.
    ("GET", "/twins/{}", Route::TwinGet),
    ("PATCH", "/twins/{}", Route::TwinPatch),
    ("PUT", "/twins/{}", Route::TwinPut),
    ("GET", "/twins/{}/modules/{}", Route::TwinGet),
    ("PATCH", "/twins/{}/modules/{}", Route::TwinPatch),
    ("PUT", "/twins/{}/modules/{}", Route::TwinPut),
    // Section 8.
    ("POST", "/twins/{}/methods", Route::MethodInvoke),
    ("POST", "/twins/{}/modules/{}/methods", Route::MethodInvoke),
    // Section 9.
    ("DELETE", "/devices/{}/commands", Route::CommandPurge),
    ("GET", "/messages/servicebound/feedback", Route::FeedbackReceive),
    ("DELETE", "/messages/servicebound/feedback/{}", Route::FeedbackComplete),
    (
        "POST",
        "/messages/servicebound/feedback/{}/abandon",
        Route::FeedbackAbandon,
    ),
];

/// The room of the service routes.
pub struct Rest {
    pub authenticator: Authenticator,
    pub registry: Registry,
    pub twins: Twins,
    pub outboxes: Outboxes,
    pub feedbacks: Feedbacks,
    pub throttles: Arc<Throttles>,
    pub live: Live,
    pub lines: Lines,
    pub router: Arc<Router<DiskStorage>>,
    /// The name that tokens are made for.
    pub host_name: String,
    /// How many devices are connected now.
    pub connected_devices: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Room for Rest {
    fn routes(&self) -> &'static [Entry] {
        ROUTES
    }

    fn answer(self: Arc<Self>, route: Route, call: Call) -> Answering {
        Box::pin(async move { self.serve(route, call).await })
    }
}

impl Rest {
    async fn serve(&self, route: Route, call: Call) -> Result<Answer, Refused> {
        self.permit(&call, permission(route))?;
        if let Some(class) = class(route) {
            self.throttle(class, 1).await?;
        }
        match route {
            Route::DeviceGet => self.device_get(&call),
            Route::DevicePut => self.device_put(call).await,
            Route::DeviceDelete => self.device_delete(&call).await,
            Route::DeviceList => self.device_list(call).await,
            Route::DeviceBulk => self.bulk(call).await,
            Route::DeviceQuery => self.query(call).await,
            Route::KeysRegenerate => self.regenerate(call).await,
            Route::ModuleGet => self.module_get(&call),
            Route::ModulePut => self.module_put(call).await,
            Route::ModuleDelete => self.module_delete(&call).await,
            Route::ModuleList => self.module_list(&call),
            Route::TwinGet => self.twin_get(&call),
            Route::TwinPatch => self.twin_change(call, twin::Way::Patch).await,
            Route::TwinPut => self.twin_change(call, twin::Way::Replace).await,
            Route::MethodInvoke => self.invoke(call).await,
            Route::CommandPurge => self.purge(&call).await,
            Route::FeedbackReceive => self.feedback_receive(&call).await,
            Route::FeedbackComplete => self.feedback_settle(&call, Settlement::Complete).await,
            Route::FeedbackAbandon => self.feedback_settle(&call, Settlement::Abandon).await,
            Route::StatisticsDevices => self.statistics(),
            Route::StatisticsService => Ok(Answer::json(
                200,
                &serde_json::json!({ "connectedDeviceCount": (self.connected_devices)() }),
            )),
            Route::DeviceEvents
            | Route::DeviceFiles
            | Route::CommandReceive
            | Route::CommandSettle
            | Route::CommandAbandon
            | Route::None => unreachable!("not among this room's routes"),
        }
    }

    /// Waits until so many units of a class may be used.
    async fn throttle(&self, class: Class, units: u64) -> Result<(), Refused> {
        Ok(pass(self.throttles.admit(class, units, Instant::now())).await?)
    }

    /// Each request carries its own credential.
    fn permit(&self, call: &Call, wanted: Permissions) -> Result<(), Refused> {
        let token = call.authorization()?;
        self.authenticator
            .authenticate_service(token, wanted, &self.host_name, call.now())?;
        Ok(())
    }
}

// IoT Hub, identity and security section 2.
pub fn permission(route: Route) -> Permissions {
    match route {
        Route::DeviceGet | Route::DeviceList | Route::ModuleGet | Route::ModuleList | Route::StatisticsDevices => {
            Permissions::REGISTRY_READ
        }
        Route::DevicePut
        | Route::DeviceDelete
        | Route::DeviceBulk
        | Route::KeysRegenerate
        | Route::ModulePut
        | Route::ModuleDelete => Permissions::REGISTRY_WRITE,
        Route::StatisticsService
        | Route::DeviceQuery
        | Route::TwinGet
        | Route::TwinPatch
        | Route::TwinPut
        | Route::MethodInvoke
        | Route::CommandPurge
        | Route::FeedbackReceive
        | Route::FeedbackComplete
        | Route::FeedbackAbandon => Permissions::SERVICE_CONNECT,
        Route::DeviceEvents
        | Route::DeviceFiles
        | Route::CommandReceive
        | Route::CommandSettle
        | Route::CommandAbandon
        | Route::None => unreachable!("not among this room's routes"),
    }
}

/// Which throttle a request counts for, once; what counts each of its items does so itself.
// IoT Hub, quotas and errors section 2.
fn class(route: Route) -> Option<Class> {
    match route {
        Route::DeviceGet
        | Route::DevicePut
        | Route::DeviceDelete
        | Route::DeviceList
        | Route::ModuleGet
        | Route::ModulePut
        | Route::ModuleDelete
        | Route::ModuleList
        | Route::StatisticsDevices => Some(Class::Registry),
        Route::DeviceQuery => Some(Class::Queries),
        Route::TwinGet => Some(Class::TwinReads),
        Route::TwinPatch | Route::TwinPut => Some(Class::TwinUpdates),
        Route::DeviceBulk
        | Route::KeysRegenerate
        | Route::MethodInvoke
        | Route::StatisticsService
        | Route::CommandPurge
        | Route::FeedbackReceive
        | Route::FeedbackComplete
        | Route::FeedbackAbandon => None,
        Route::DeviceEvents
        | Route::DeviceFiles
        | Route::CommandReceive
        | Route::CommandSettle
        | Route::CommandAbandon
        | Route::None => unreachable!("not among this room's routes"),
    }
}

/// Runs what walks the store where it blocks nobody.
async fn walk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refused> {
    actix_web::web::block(work)
        .await
        .map_err(|_| Refused::busy("too many walks through the registry at a time"))
}
