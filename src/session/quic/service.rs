//! A service's connection: consumers' cursors and management requests, each on a stream of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{Connection, RecvStream, SendStream, VarInt};

use super::cursor;
use super::door::{Closing, Door};
use super::management;
use super::observer::Peer;
use crate::hub::auth::ServiceAuthenticated;
use crate::model::UtcMillis;
use crate::wire::close::CloseCode;
use crate::wire::control::{
    CONTROL_BYTES_MAX, Control, Failed, Goodbye, Hello, Renew, Renewed, Request, Subscribe, Welcome,
};
use crate::wire::frame::{Decoder, Frame, Kind, VERSION};

/// A request's JSON document may be this large: 100 identities of a bulk operation, with room.
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// What a client is told to stay away when the hub stops.
const DRAIN_RETRY_AFTER_MS: u32 = 1000;
/// How long a peer has to send the first frame of a stream it opened.
const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn run(
    door: &Arc<Door>,
    connection: &Connection,
    (mut send, mut recv): (SendStream, RecvStream),
    mut decoder: Decoder,
    hello: Hello,
) -> Result<(), Closing> {
    let mut identity = door.authenticate_service(&hello.token)?;
    connection.set_send_window(u64::from(door.config.consumer_send_window_bytes));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(door.config.service_streams_max));
    let _open = OpenGuard::new(door);
    let welcome = Welcome {
        version: VERSION,
        epoch: 0,
        last_sequence: 0,
        partition: 0,
        partition_count: door.router.partition_count(),
        message_bytes_max: door.config.message_bytes_max,
        batch_bytes_max: door.config.batch_bytes_max,
        batch_count_max: super::config::BATCH_COUNT_MAX,
        expires_ms: identity.expires.map_or(0, |at| at.0),
        durability: door.durability.name().to_owned(),
    };
    write(&mut send, &welcome).await?;
    loop {
        let expiry = identity.expires.map(|at| door.instant_of(at));
        tokio::select! {
            stream = connection.accept_bi() => {
                let (send, recv) = stream.map_err(|_| Closing::gone())?;
                let stream = Stream { door: door.clone(), identity: identity.clone(), send, recv };
                actix_rt::spawn(stream.run());
            }
            frame = next_frame(&mut recv, &mut decoder) => match frame {
                Ok(Some(Frame { kind: Kind::Renew, body, .. })) => {
                    let renew = Renew::from_body(&body)
                        .map_err(|error| Closing::new(CloseCode::MalformedFrame, error.to_string()))?;
                    identity = door.authenticate_service(&renew.token)?;
                    write(&mut send, &Renewed { expires_ms: identity.expires.map_or(0, |at| at.0) }).await?;
                }
                Ok(Some(Frame { kind: Kind::Goodbye, .. }) | None) => return Ok(()),
                Ok(Some(frame)) => {
                    return Err(Closing::new(CloseCode::UnexpectedFrame, format!("{:?} on a service's first stream", frame.kind)));
                }
                Err(closing) => return Err(closing),
            },
            () = sleep_until(expiry) => {
                if identity.expires.is_some_and(|at: UtcMillis| door.clock.now() >= at) {
                    return Err(Closing::new(CloseCode::TokenExpired, "the token has expired"));
                }
            }
            () = door.shutdown.stopping() => {
                let goodbye = Goodbye {
                    code: CloseCode::Draining as u8,
                    retry_after_ms: DRAIN_RETRY_AFTER_MS,
                    reason: "the hub stops".into(),
                };
                write(&mut send, &goodbye).await?;
                let _ = send.finish();
                let _ = tokio::time::timeout(Duration::from_secs(1), send.stopped()).await;
                return Err(Closing::new(CloseCode::Draining, "the hub stops"));
            }
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

struct OpenGuard(Arc<Door>);

impl OpenGuard {
    fn new(door: &Arc<Door>) -> Self {
        door.observer.session_opened(Peer::Service);
        Self(door.clone())
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.observer.session_closed(Peer::Service);
    }
}

/// Writes a control frame.
pub(super) async fn write(send: &mut SendStream, frame: &impl Control) -> Result<(), Closing> {
    send.write_all(&frame.to_frame()).await.map_err(|_| Closing::gone())
}

/// The next frame of a stream; `None` at its end. Cancel-safe: what was read stays in the decoder.
pub(super) async fn next_frame(recv: &mut RecvStream, decoder: &mut Decoder) -> Result<Option<Frame>, Closing> {
    loop {
        let frame = decoder.poll_frame().map_err(|error| {
            let error = super::intake::IntakeError::Frame(error);
            Closing::new(error.close_code(), error.to_string())
        })?;
        if frame.is_some() {
            return Ok(frame);
        }
        match recv.read_chunk(64 * 1024, true).await {
            Ok(Some(chunk)) => decoder.feed(chunk.bytes),
            Ok(None) => return Ok(None),
            Err(_) => return Err(Closing::gone()),
        }
    }
}

/// One stream that a service opened.
struct Stream {
    door: Arc<Door>,
    identity: ServiceAuthenticated,
    send: SendStream,
    recv: RecvStream,
}

impl Stream {
    async fn run(mut self) {
        if let Err(failed) = self.serve().await {
            // A stream's fault ends the stream, not the consumers beside it.
            let _ = write(&mut self.send, &failed).await;
        }
        let _ = self.send.finish();
    }

    async fn serve(&mut self) -> Result<(), Failed> {
        let mut decoder = Decoder::new(REQUEST_BYTES_MAX.max(CONTROL_BYTES_MAX));
        let first = tokio::time::timeout(FIRST_FRAME_TIMEOUT, next_frame(&mut self.recv, &mut decoder)).await;
        let frame = match first {
            Ok(Ok(Some(frame))) => frame,
            Ok(Ok(None)) => return Err(failed(400_000, "the stream ended before a request")),
            Ok(Err(closing)) => return Err(failed(400_006, &closing.reason)),
            Err(_) => return Err(failed(400_024, "no request in time")),
        };
        match frame.kind {
            Kind::Subscribe => {
                let subscribe =
                    Subscribe::from_body(&frame.body).map_err(|error| failed(400_006, &error.to_string()))?;
                cursor::run(
                    &self.door,
                    &self.identity,
                    &mut self.send,
                    &mut self.recv,
                    decoder,
                    subscribe,
                )
                .await
            }
            Kind::Request => {
                let request = Request::from_body(&frame.body).map_err(|error| failed(400_006, &error.to_string()))?;
                // Whoever asked may leave: then nothing is taken for nobody.
                let response = tokio::select! {
                    response = management::respond(&self.door, &self.identity, &request) => response,
                    _ = self.send.stopped() => return Ok(()),
                };
                let _ = write(&mut self.send, &response).await;
                Ok(())
            }
            kind => Err(failed(400_003, &format!("{kind:?} cannot open a stream"))),
        }
    }
}

/// A failure that leaves nothing to go on from.
pub(super) fn failed(code: u32, reason: &str) -> Failed {
    Failed {
        code,
        reason: reason.to_owned(),
        next: 0,
    }
}
