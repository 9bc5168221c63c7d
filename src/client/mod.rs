//! The native client library: devices that send, consumers that read, services that manage, over QUIC.
//!
//! - [`Device`](device::Device): connects, sends with per-message acknowledgements, keeps what is not acknowledged in a
//!   [`buffer`] (in memory or on disk), reconnects with [`backoff`] and resumes without loss, duplicate or reorder.
//!   [`streams`]: messages to it, its twin, direct methods.
//! - [`Service`](service::Service): cursors on partitions with credit and checkpoints, and management requests.
//! - [`ClientEndpoint`](endpoint::ClientEndpoint): the socket and TLS set-up they share.
//!
//! Knows the frames and nothing of the server's side, but for two pure formats it shares with it: SAS tokens
//! (`hub::sas`) and log records (`log::record`), which consumers receive as they stand on disk.
//!
//! Send a message and wait until it is durable:
//!
//! ```no_run
//! # use forebay::client::{device::{Device, DeviceOptions}, endpoint::{ClientEndpoint, HubAddress, TransportOptions}};
//! # use forebay::client::{credential::Credential, tls};
//! # use forebay::model::{DeviceId, Message};
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let tls = tls::client_config(tls::ClientTls::from_ca_file("forebay-data/ca.pem".as_ref())?)?;
//! let endpoint = ClientEndpoint::new(tls, &TransportOptions::default())?;
//! let hub = HubAddress { address: "127.0.0.1:8883".parse()?, host_name: "localhost".into() };
//! let credential = Credential::Key("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".into());
//! let device = Device::start(endpoint, DeviceOptions::new(hub, DeviceId::new("dev-01")?, credential))?;
//! let receipt = device.send(&Message::new(r#"{"temperature":21.5}"#)).await?;
//! device.acknowledged(receipt).await?; // on the hub's disk from here on
//! device.close().await;
//! # Ok(()) }
//! ```
//!
//! Take messages, follow the desired properties, answer methods:
//!
//! ```no_run
//! # use forebay::client::device::Device;
//! # use forebay::client::streams::{MethodAnswer, Outcome};
//! # async fn example(device: Device) -> Result<(), Box<dyn std::error::Error>> {
//! let methods = device.methods(4);
//! tokio::spawn(methods.serve(|call| async move { MethodAnswer::new(200, &format!("{{\"did\":{:?}}}", call.name)) }));
//! let mut commands = device.commands(10);
//! let command = commands.next().await?;
//! commands.settle(&command, Outcome::Complete).await?;
//! let mut twin = device.twin(0);
//! let change = twin.changed().await?;
//! twin.report(r#"{"period":30}"#, None).await?;
//! # Ok(()) }
//! ```
//!
//! Read a partition from its beginning and follow it:
//!
//! ```no_run
//! # use forebay::client::{service::{Service, ServiceOptions, Subscription}, endpoint::{ClientEndpoint, HubAddress}};
//! # async fn example(endpoint: ClientEndpoint, options: ServiceOptions) -> Result<(), Box<dyn std::error::Error>> {
//! let service = Service::connect(&endpoint, &options).await?;
//! let mut cursor = service.subscribe(&Subscription::earliest(0)).await?;
//! loop {
//!     for event in cursor.next().await?.events() {
//!         let event = event?;
//!         println!("{} {} {:?}", event.sequence, event.origin.device_id, event.message.body());
//!     }
//! }
//! # }
//! ```

//! Share a partition with other workers of a group, from its checkpoint on, and keep messages of a device on disk while the
//! hub is away:
//!
//! ```no_run
//! # use forebay::client::{buffer::{BufferConfig, BufferSync, WhenFull}, device::DeviceOptions};
//! # use forebay::client::service::{Service, Subscription};
//! # async fn example(service: Service, mut options: DeviceOptions) -> Result<(), Box<dyn std::error::Error>> {
//! let subscription = Subscription::checkpoint(0).group("cg2").owner("worker-1", 1).credit_bytes(1 << 20);
//! let mut cursor = service.subscribe(&subscription).await?;
//! let chunk = cursor.next().await?;
//! println!("{} messages", chunk.count()?);
//! cursor.checkpoint_stored(cursor.position()).await?; // whoever comes after goes on behind them
//!
//! options.buffer = BufferConfig {
//!     bytes_max: 256 << 20,
//!     when_full: WhenFull::DropOldest,
//!     directory: Some("/var/lib/pump/outgoing".into()),
//!     sync: BufferSync::Every(std::time::Duration::from_secs(1)),
//! };
//! # Ok(()) }
//! ```

pub mod backoff;
pub mod buffer;
pub mod credential;
pub mod device;
pub mod endpoint;
pub mod service;
mod silence;
pub mod streams;
pub mod tls;

use std::time::Duration;

use quinn::ConnectionError;

use crate::wire::close::CloseCode;

/// Name and version, for the hub's logs.
pub const AGENT: &str = concat!("forebay-rust/", env!("CARGO_PKG_VERSION"));

/// From the first packet to the welcome; as long as the hub waits for a hello. A hub that vanished between them cannot say
/// so: until a handshake is done a client does not know the token of a stateless reset, and would wait for the idle
/// timeout beside a hub that is long back.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a client operation failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The hub closed the connection, and says why.
    #[error("the hub closed the connection: {} ({reason})", code.label())]
    Closed { code: CloseCode, reason: String },
    /// The hub could not be reached, or the path to it is gone.
    #[error("no connection: {0}")]
    Unreachable(String),
    #[error("TLS: {0}")]
    Tls(String),
    #[error(transparent)]
    Io(std::io::Error),
    #[error("credential: {0}")]
    Credential(String),
    /// A stream's request was refused; the code is the contract's.
    #[error("the hub refused: {reason} ({code})")]
    Refused { code: u32, reason: String, next: u64 },
    /// The hub sent what the protocol does not allow.
    #[error("the hub sent {0}")]
    Protocol(String),
    #[error(transparent)]
    Buffer(#[from] buffer::BufferError),
    /// The message was dropped from a full buffer before it could be sent.
    #[error("the message was dropped from the full buffer")]
    Dropped,
    #[error("the client was closed")]
    Stopped,
}

impl ClientError {
    /// Whether trying again later can succeed without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Closed { code, .. } => code.is_transient(),
            Self::Unreachable(_) | Self::Io(_) => true,
            Self::Tls(_)
            | Self::Credential(_)
            | Self::Refused { .. }
            | Self::Protocol(_)
            | Self::Buffer(_)
            | Self::Dropped
            | Self::Stopped => false,
        }
    }
}

impl From<ConnectionError> for ClientError {
    fn from(error: ConnectionError) -> Self {
        match &error {
            ConnectionError::ApplicationClosed(close) => match CloseCode::from_number(close.error_code.into_inner()) {
                Some(code) => Self::Closed {
                    code,
                    reason: String::from_utf8_lossy(&close.reason).into_owned(),
                },
                None => Self::Protocol(format!("the unknown close code {}", close.error_code)),
            },
            ConnectionError::TransportError(_) => Self::Tls(error.to_string()),
            ConnectionError::VersionMismatch
            | ConnectionError::ConnectionClosed(_)
            | ConnectionError::Reset
            | ConnectionError::TimedOut
            | ConnectionError::LocallyClosed
            | ConnectionError::CidsExhausted => Self::Unreachable(error.to_string()),
        }
    }
}

/// Unpredictable bytes from the operating system's generator.
fn random(bytes: &mut [u8]) {
    use ring::rand::SecureRandom;
    ring::rand::SystemRandom::new()
        .fill(bytes)
        .expect("the operating system gives random bytes");
}

fn now_seconds() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
