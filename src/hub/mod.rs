//! The contract of the hub, free of protocols: who is known, who may do what, what their twins hold, which groups read
//! how far.
//!
//! It deliberately does not know sockets, files, clocks, actors or wire formats: `now` is an argument, randomness comes
//! from an `Entropy` handed in, and what is kept goes through `state::State`. Doors turn its typed errors into codes of
//! their protocol; each error names the contract's code.
//!
//! Invariants:
//! - Nothing here blocks on a commit: writes take a `done` callback, called once the change is durable or refused.
//!   `*_blocking` twins are for the command line and tests.
//! - What a peer is told about a refused credential does not say whether the identity exists.
//! - No input from outside panics, and work and allocation per credential are bounded.

pub mod auth;
pub mod authority;
pub mod bulk;
pub mod code;
pub mod config;
pub mod connection_string;
pub mod dates;
mod decide;
pub mod entropy;
pub mod events;
pub mod feedback;
pub mod filter;
pub mod groups;
pub mod identity;
mod json;
mod lane;
pub mod meta;
pub mod method;
pub mod outbox;
pub mod policy;
pub mod presence;
pub mod query;
pub mod registry;
pub mod sas;
pub mod subscriptions;
pub mod throttle;
pub mod twin;
pub mod x509;

pub use auth::{AuthError, AuthMethod, Authenticated, Authenticator, Credential, ServiceAuthenticated};
pub use authority::Authorities;
pub use code::ErrorCode;
pub use config::HubConfig;
pub use entropy::Entropy;
pub use events::{EventKind, EventSettings, Events, Recorder};
pub use feedback::{FeedbackError, Feedbacks};
pub use filter::{DeviceKey, PersistedFilter, Position};
pub use groups::{Claim, GroupError, Groups};
pub use identity::{DeviceIdentity, IdentityName, ModuleIdentity};
pub use method::{MethodAnswer, MethodCall, MethodError, MethodRequest, MethodResponse};
pub use outbox::{OutboxError, Outboxes, QueueSettings};
pub use policy::{KeySlot, Permissions, Policies};
pub use presence::{Live, Presence};
pub use registry::{ChangeKind, Changed, IdentityChanged, IfMatch, Registry, RegistryError};
pub use subscriptions::Subscriptions;
pub use throttle::{Throttled, Throttles};
pub use twin::{Twin, TwinChanged, TwinError, TwinUpdate, Twins};
