//! What comes to a device beside the acknowledgements of its telemetry: messages, changes of its twin, direct methods.
//!
//! Each of the three is a stream of the device's session. It is opened when first used and opened anew on every later
//! session, so that whoever waits on it need not know of lost connections. One at a time for each purpose: a second takes
//! the first one's place, which then fails with 409003.
//!
//! All waits may be cancelled: what was read is kept for the next.

mod commands;
mod methods;
mod twin;

use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};

use super::ClientError;
use super::device::{Device, next_frame};
use crate::wire::control::{Control, Failed};
use crate::wire::device::{DEVICE_FRAME_BYTES_MAX, Ready};
use crate::wire::frame::{Decoder, Frame, Kind};

pub use crate::wire::device::Outcome;
pub use commands::{Command, Commands};
pub use methods::{MethodAnswer, MethodCall, Methods};
pub use twin::{DesiredChange, Twin};

/// A hub that refuses a stream for a passing reason is asked again after this.
const REOPEN_AFTER: Duration = Duration::from_millis(500);

impl Device {
    /// The messages that services queue for this device; at most `window` of them unsettled at once (the hub's limit is
    /// 50).
    pub fn commands(&self, window: u32) -> Commands {
        Commands::new(self.clone(), window)
    }

    /// The device's twin. `desired_seen` is the newest `$version` of the desired properties that the device has kept; 0
    /// for none. What it missed comes first.
    pub fn twin(&self, desired_seen: u64) -> Twin {
        Twin::new(self.clone(), desired_seen)
    }

    /// The direct methods that services call; at most `window` at once (the hub's limit is 10).
    pub fn methods(&self, window: u32) -> Methods {
        Methods::new(self.clone(), window)
    }
}

/// A stream of one session.
struct Stream {
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
    decoder: Decoder,
}

/// Why a stream cannot be used any more.
enum Ended {
    /// Open it anew.
    Lost(String),
    /// Nothing will help.
    Failed(ClientError),
}

impl From<Ended> for ClientError {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Lost(reason) => Self::Unreachable(reason),
            Ended::Failed(error) => error,
        }
    }
}

impl Stream {
    /// Opens a stream on the running session, or on the next.
    async fn open(device: &Device, first: &impl Control) -> Result<Self, ClientError> {
        let mut used = None;
        loop {
            let connection = device.session(used.as_ref()).await?;
            match Self::open_on(&connection, first).await {
                Ok(stream) => return Ok(stream),
                Err(Ended::Failed(error)) => return Err(error),
                Err(Ended::Lost(_)) => {
                    tokio::time::sleep(REOPEN_AFTER).await;
                    // A session that is over is not tried twice.
                    used = connection.close_reason().map(|_| connection);
                }
            }
        }
    }

    async fn open_on(connection: &Connection, first: &impl Control) -> Result<Self, Ended> {
        let (send, recv) = connection
            .open_bi()
            .await
            .map_err(|error| Ended::Lost(error.to_string()))?;
        let mut stream = Self {
            connection: connection.clone(),
            send,
            recv,
            decoder: Decoder::new(DEVICE_FRAME_BYTES_MAX),
        };
        stream.write(first).await?;
        let _: Ready = read(&stream.next().await?)?;
        Ok(stream)
    }

    async fn write(&mut self, frame: &impl Control) -> Result<(), Ended> {
        self.write_bytes(&frame.to_frame()).await
    }

    async fn write_bytes(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        let written = self.send.write_all(bytes).await;
        written.map_err(|error| Ended::Lost(error.to_string()))
    }

    /// The next frame; cancelling loses nothing.
    async fn next(&mut self) -> Result<Frame, Ended> {
        match next_frame(&mut self.recv, &mut self.decoder).await {
            Ok(Frame {
                kind: Kind::Failed,
                body,
                ..
            }) => {
                let Failed { code, reason, next } = Failed::from_body(&body).map_err(protocol)?;
                // 5xx: the store was busy, or failed and may be back.
                if code >= 500_000 {
                    tokio::time::sleep(REOPEN_AFTER).await;
                    return Err(Ended::Lost(format!("{reason} ({code})")));
                }
                Err(Ended::Failed(ClientError::Refused { code, reason, next }))
            }
            Ok(frame) => Ok(frame),
            Err(Some(error)) => Err(Ended::Failed(error)),
            Err(None) => Err(Ended::Lost(match self.connection.close_reason() {
                Some(reason) => reason.to_string(),
                None => "the hub ended the stream".into(),
            })),
        }
    }
}

fn read<C: Control>(frame: &Frame) -> Result<C, Ended> {
    if frame.kind != C::KIND {
        return Err(unexpected(frame.kind));
    }
    C::from_body(&frame.body).map_err(protocol)
}

fn protocol(error: crate::wire::control::ControlError) -> Ended {
    Ended::Failed(ClientError::Protocol(error.to_string()))
}

fn unexpected(kind: Kind) -> Ended {
    Ended::Failed(ClientError::Protocol(format!("{kind:?} on such a stream")))
}

/// The contract's refusal of one request.
fn refused(code: u32, reason: String) -> ClientError {
    ClientError::Refused { code, reason, next: 0 }
}
