//! A device's session: batches in, cumulative acknowledgements out.
//!
//! One task per session, on the arbiter that accepted the connection. It stops reading (so that QUIC flow control slows
//! the device down) while the shard's budget is used up, while the session has more unacknowledged bytes than it may, or
//! while a batch waits for its turn under the throttles.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream, ZeroRttAccepted};

use super::config::BATCH_COUNT_MAX;
use super::door::{Closing, Door};
use super::intake::{Intake, Said};
use super::observer::Peer;
use super::streams::{Acceptor, Target};
use crate::hub::throttle::Class;
use crate::model::{DeviceId, Epoch, UtcMillis};
use crate::session::home::{self, HomeSession};
use crate::session::telemetry::Telemetry;
use crate::shard::command::OpenError;
use crate::shard::timing::pass;
use crate::wire::batch::BatchLimits;
use crate::wire::close::CloseCode;
use crate::wire::control::{Ack, Control, Goodbye, Hello, Renewed, Welcome};
use crate::wire::frame::{Decoder, VERSION};

/// A peer that has not taken a few bytes for this long does not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a draining session may take to have its last batches acknowledged and its farewell delivered.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(3);
/// What a client is told to stay away when the hub stops.
const DRAIN_RETRY_AFTER_MS: u32 = 1000;
const CHUNKS: usize = 16;

/// Runs the session to its end. The error says how the connection is to be closed.
pub(super) async fn run(
    door: &Arc<Door>,
    connection: &Connection,
    streams: (SendStream, RecvStream),
    decoder: Decoder,
    hello: Hello,
    early: Option<ZeroRttAccepted>,
) -> Result<(), Closing> {
    let device = DeviceId::new(&hello.device_id)
        .map_err(|error| Closing::new(CloseCode::Unauthorized, format!("device id {error}")))?;
    let is_early = early.is_some() && streams.1.is_0rtt();
    let mut handshake = early;
    if is_early && hello.token.is_empty() {
        // A certificate is shown only by the finished handshake.
        finish(&mut handshake).await?;
    }
    let identity = door.authenticate_device(connection, &device, &hello)?;
    take_turn(door).await?;
    let (router, epoch) = (&door.router, Epoch(hello.epoch));
    let home = match home::open(router, &identity, epoch, is_early && handshake.is_some()).await {
        Err(OpenError::EarlyData) => {
            finish(&mut handshake).await?;
            home::open(router, &identity, epoch, false).await
        }
        other => other,
    }
    .map_err(closing_of)?;
    // A change of the identity between the first look and the open would have found no session to end.
    let identity = door.authenticate_device(connection, &device, &hello)?;
    home.link.set_proof(Some(identity.proof));
    let target = Target {
        door: door.clone(),
        name: identity.identity.clone(),
        generation: identity.generation,
    };
    let _streams = Acceptor::start(connection, target);
    let limits = BatchLimits {
        message_bytes_max: door.config.message_bytes_max as usize,
        count_max: BATCH_COUNT_MAX,
    };
    let welcome = Welcome {
        version: VERSION,
        epoch: home.opened.epoch.0,
        last_sequence: home.opened.last_sequence,
        partition: home.partition.0,
        partition_count: door.router.partition_count(),
        message_bytes_max: door.config.message_bytes_max,
        batch_bytes_max: door.config.batch_bytes_max,
        batch_count_max: BATCH_COUNT_MAX,
        expires_ms: identity.expires.map_or(0, |at| at.0),
        durability: door.durability.name().to_owned(),
    };
    let (send, recv) = streams;
    DeviceSession {
        door,
        connection,
        send,
        recv,
        device,
        module_id: hello.module_id,
        home: &home,
        intake: Intake::new(decoder, door.config.batch_bytes_max, limits),
        telemetry: Telemetry::new(
            &home,
            &door.throttles,
            door.clock.clone(),
            door.config.inflight_bytes_max,
        ),
        outgoing: welcome.to_frame(),
        written: 0,
        write_started: Instant::now(),
        acknowledged: home.opened.last_sequence,
        expires: identity.expires,
        expiry: identity.expires.map(|at| door.instant_of(at)),
        is_reading: true,
    }
    .run()
    .await
}

// IoT Hub, quotas and errors section 2: the rate of new connections is limited, not their number.
async fn take_turn(door: &Door) -> Result<(), Closing> {
    let turn = door.throttles.admit(Class::Connections, 1, Instant::now());
    let passed = pass(turn).await;
    passed.map_err(|throttled| Closing::new(CloseCode::Busy, throttled.to_string()))
}

async fn finish(handshake: &mut Option<ZeroRttAccepted>) -> Result<(), Closing> {
    if let Some(handshake) = handshake.take() {
        handshake.await;
    }
    Ok(())
}

fn closing_of(error: OpenError) -> Closing {
    let code = match &error {
        OpenError::StaleEpoch { .. } => CloseCode::StaleEpoch,
        OpenError::EarlyData => CloseCode::UnexpectedFrame,
        OpenError::Poisoned(_) | OpenError::State(_) => CloseCode::Internal,
        OpenError::Stopping => CloseCode::Draining,
        OpenError::Busy => CloseCode::Busy,
    };
    Closing::new(code, error.to_string())
}

/// The session counts as open for as long as this lives.
struct Counted<'a>(&'a Door);

impl<'a> Counted<'a> {
    fn new(door: &'a Door) -> Self {
        door.observer.session_opened(Peer::Device);
        Self(door)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.observer.session_closed(Peer::Device);
    }
}

struct DeviceSession<'a> {
    door: &'a Arc<Door>,
    connection: &'a Connection,
    send: SendStream,
    recv: RecvStream,
    device: DeviceId,
    module_id: String,
    home: &'a HomeSession,
    intake: Intake,
    telemetry: Telemetry,
    outgoing: Vec<u8>,
    written: usize,
    write_started: Instant,
    /// The last sequence an Ack (or the welcome) was made for.
    acknowledged: u64,
    expires: Option<UtcMillis>,
    /// `expires` on the clock that timers follow.
    expiry: Option<Instant>,
    is_reading: bool,
}

impl DeviceSession<'_> {
    async fn run(mut self) -> Result<(), Closing> {
        let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
        let _counted = Counted::new(self.door);
        // One timer for the session's life: making one for every wait costs more than the wait.
        let timer = tokio::time::sleep_until(far_future());
        tokio::pin!(timer);
        // Frames may have come together with the hello.
        self.read_frames()?;
        loop {
            self.hand_over();
            self.queue_ack();
            if !self.is_reading && self.is_idle() {
                return Ok(());
            }
            let may_read = self.is_reading && self.telemetry.has_room();
            let deadline = self.deadline().map_or_else(far_future, Into::into);
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            tokio::select! {
                biased;
                () = self.home.link.changed() => {
                    self.telemetry.take_acknowledged();
                    if let Some(end) = self.home.link.end() {
                        let closing = Closing::new(end.code, end.reason.clone());
                        return if end.code == CloseCode::Draining { self.farewell(closing).await } else { Err(closing) };
                    }
                }
                written = self.send.write(&self.outgoing[self.written..]), if !self.outgoing.is_empty() => {
                    self.written += written.map_err(|_| Closing::gone())?;
                    if self.written == self.outgoing.len() {
                        self.outgoing = Vec::new();
                        self.written = 0;
                    }
                }
                () = self.telemetry.unblocked(), if self.telemetry.is_blocked() => {}
                read = self.recv.read_chunks(&mut chunks), if may_read => match read {
                    Ok(Some(count)) => {
                        for chunk in &mut chunks[..count] {
                            self.intake.feed(std::mem::take(chunk));
                            self.read_frames()?;
                        }
                    }
                    Ok(None) => self.is_reading = false,
                    Err(_) => return Err(Closing::gone()),
                },
                () = timer.as_mut() => self.check_deadline()?,
                _ = self.connection.closed(), if !may_read => return Err(Closing::gone()),
            }
        }
    }

    fn read_frames(&mut self) -> Result<(), Closing> {
        loop {
            match self.intake.read() {
                Ok(None) => return Ok(()),
                Ok(Some(Said::Goodbye)) => {
                    self.is_reading = false;
                    return Ok(());
                }
                Ok(Some(Said::Renew(renew))) => {
                    let identity = self
                        .door
                        .authenticate_token(&self.device, &self.module_id, &renew.token)?;
                    self.home.link.set_proof(Some(identity.proof));
                    self.expires = identity.expires;
                    self.expiry = identity.expires.map(|at| self.door.instant_of(at));
                    self.push_outgoing(
                        &Renewed {
                            expires_ms: identity.expires.map_or(0, |at| at.0),
                        }
                        .to_frame(),
                    );
                }
                Err(error) => {
                    // What came before the fault is good and goes its way.
                    self.hand_over();
                    return Err(Closing::new(error.close_code(), error.to_string()));
                }
            }
        }
    }

    fn hand_over(&mut self) {
        self.telemetry.hand_over(|| self.intake.poll_batch());
    }

    fn is_idle(&self) -> bool {
        self.telemetry.is_idle() && self.outgoing.is_empty()
    }

    /// One Ack at a time is on its way; the next covers all that came meanwhile.
    fn queue_ack(&mut self) {
        let sequence = self.home.link.acknowledged();
        if sequence > self.acknowledged && self.outgoing.is_empty() {
            self.acknowledged = sequence;
            self.push_outgoing(&Ack { sequence }.frame_bytes());
        }
    }

    fn push_outgoing(&mut self, frame: &[u8]) {
        if self.outgoing.is_empty() {
            self.write_started = Instant::now();
        }
        self.outgoing.extend_from_slice(frame);
    }

    fn deadline(&self) -> Option<Instant> {
        let expiry = self.expiry;
        let write = (!self.outgoing.is_empty()).then(|| self.write_started + WRITE_TIMEOUT);
        let paced = self.telemetry.deadline();
        [expiry, write, paced].into_iter().flatten().min()
    }

    fn check_deadline(&mut self) -> Result<(), Closing> {
        if let Some(at) = self.expires {
            if self.door.clock.now() >= at {
                return Err(Closing::new(CloseCode::TokenExpired, "the token has expired"));
            }
            // The wall clock was set back, or the token outlives what a timer is asked to wait.
            self.expiry = Some(self.door.instant_of(at));
        }
        if !self.outgoing.is_empty() && self.write_started.elapsed() >= WRITE_TIMEOUT {
            return Err(Closing::new(CloseCode::TooSlow, "acknowledgements are not read"));
        }
        Ok(())
    }

    /// The hub stops: acknowledge what was taken, say goodbye, and give the peer time to hear it.
    async fn farewell(mut self, closing: Closing) -> Result<(), Closing> {
        let until = tokio::time::Instant::now() + FAREWELL_TIMEOUT;
        let polite = async {
            while !self.telemetry.is_acknowledged() {
                self.home.link.changed().await;
                self.telemetry.take_acknowledged();
            }
            let mut last = std::mem::take(&mut self.outgoing).split_off(self.written);
            last.extend(
                Ack {
                    sequence: self.home.link.acknowledged(),
                }
                .to_frame(),
            );
            let goodbye = Goodbye {
                code: closing.code as u8,
                retry_after_ms: DRAIN_RETRY_AFTER_MS,
                reason: closing.reason.clone(),
            };
            last.extend(goodbye.to_frame());
            if self.send.write_all(&last).await.is_ok() && self.send.finish().is_ok() {
                let _ = self.send.stopped().await;
            }
        };
        let _ = tokio::time::timeout_at(until, polite).await;
        Err(closing)
    }
}

/// Later than any session lives.
fn far_future() -> tokio::time::Instant {
    static FAR: std::sync::LazyLock<tokio::time::Instant> =
        std::sync::LazyLock::new(|| tokio::time::Instant::now() + Duration::from_secs(366 * 86_400));
    *FAR
}
