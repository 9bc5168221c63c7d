//! A device's further streams: messages to it, its twin, direct methods; each a task of its own on the session's arbiter.
//!
//! A stream's fault ends the stream, never the session; the session's end ends them all. One task a session waits for
//! streams to be opened; a device that opens none costs nothing else.

mod commands;
mod methods;
mod twin;

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};

use super::door::{Closing, Door};
use super::service::failed;
use crate::hub::{ErrorCode, IdentityName};
use crate::model::Generation;
use crate::wire::control::{Control, Failed};
use crate::wire::device::{CommandsOpen, DEVICE_FRAME_BYTES_MAX, MethodsOpen, TwinOpen};
use crate::wire::frame::{Decoder, Frame, Kind};

/// How long a device has to send the first frame of a stream it opened.
const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests of one stream that wait for the store; then it is read no further.
const PENDING_MAX: usize = 64;

/// Whose streams they are.
pub(super) struct Target {
    pub door: Arc<Door>,
    pub name: IdentityName,
    /// Of this life of the identity.
    pub generation: Generation,
}

/// Accepts streams for as long as it lives.
pub(super) struct Acceptor(tokio::task::JoinHandle<()>);

impl Acceptor {
    pub fn start(connection: &Connection, target: Target) -> Self {
        let (connection, target) = (connection.clone(), Arc::new(target));
        Self(actix_rt::spawn(async move {
            while let Ok((send, recv)) = connection.accept_bi().await {
                let stream = Stream {
                    target: target.clone(),
                    send,
                    recv,
                    decoder: Decoder::new(DEVICE_FRAME_BYTES_MAX),
                };
                actix_rt::spawn(stream.run());
            }
        }))
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One stream that a device opened.
struct Stream {
    target: Arc<Target>,
    send: SendStream,
    recv: RecvStream,
    decoder: Decoder,
}

impl Stream {
    async fn run(mut self) {
        match self.serve().await {
            Ok(()) => {}
            Err(Fault::Failed(failed)) => drop(self.send.write_all(&failed.to_frame()).await),
            Err(Fault::Gone) => return,
        }
        let _ = self.send.finish();
    }

    async fn serve(&mut self) -> Result<(), Fault> {
        if self.recv.is_0rtt() {
            // What changes twins and settles messages must not be repeated by whoever recorded it.
            return Err(failed(400_003, "these streams are not for early data").into());
        }
        let first = tokio::time::timeout(FIRST_FRAME_TIMEOUT, self.next_frame()).await;
        let frame = match first {
            Ok(frame) => frame?.ok_or_else(|| failed(400_000, "the stream ended before its first frame"))?,
            Err(_) => return Err(failed(400_024, "no first frame in time").into()),
        };
        match frame.kind {
            Kind::CommandsOpen => commands::run(self, read::<CommandsOpen>(&frame)?).await,
            Kind::TwinOpen => twin::run(self, read::<TwinOpen>(&frame)?).await,
            Kind::MethodsOpen => methods::run(self, read::<MethodsOpen>(&frame)?).await,
            kind => Err(failed(400_003, &format!("{kind:?} cannot open a device's stream")).into()),
        }
    }

    /// The next frame; `None` at the stream's end. Cancel-safe.
    async fn next_frame(&mut self) -> Result<Option<Frame>, Fault> {
        Ok(super::service::next_frame(&mut self.recv, &mut self.decoder).await?)
    }

    async fn write(&mut self, frame: &impl Control) -> Result<(), Fault> {
        self.send.write_all(&frame.to_frame()).await.map_err(|_| Fault::Gone)
    }
}

/// Why a stream ends before its peer ended it.
enum Fault {
    Failed(Failed),
    /// The connection or the peer's side of the stream is gone: nobody to tell.
    Gone,
}

impl From<Failed> for Fault {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

impl From<Closing> for Fault {
    fn from(closing: Closing) -> Self {
        if closing.is_gone() {
            Self::Gone
        } else {
            Self::Failed(failed(400_006, &closing.reason))
        }
    }
}

fn refused(code: ErrorCode, reason: impl std::fmt::Display) -> Fault {
    Fault::Failed(failed(code.number, &reason.to_string()))
}

fn replaced() -> Fault {
    refused(
        ErrorCode::SUBSCRIPTION_CONFLICT,
        "another stream of the same identity took this one's place",
    )
}

fn read<T: Control>(frame: &Frame) -> Result<T, Fault> {
    T::from_body(&frame.body).map_err(|error| refused(ErrorCode::FORMAT_ERROR, error))
}

fn unexpected(kind: Kind) -> Fault {
    Fault::Failed(failed(400_003, &format!("a {kind:?} frame has no place here")))
}
