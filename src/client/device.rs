//! A device: messages go into a buffer and from there, over as many connections as it takes, into the hub's log.
//!
//! ```text
//!  send ──> Buffer ──unacknowledged──> Append frames ──> hub
//!             ^                                           │
//!             └───────── acknowledge <──── Ack <──────────┘
//! ```
//!
//! Invariants: a message leaves the buffer only by the hub's acknowledgement (or by the buffer's drop policy); what is
//! sent again keeps its sequence, so that the hub recognises it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use quinn::{RecvStream, SendStream, VarInt};
use tokio::sync::{Notify, oneshot, watch};

use super::backoff::{Backoff, BackoffConfig};
use super::buffer::{Buffer, BufferConfig, BufferError, BufferSync, Stored, Unacknowledged, WhenFull};
use super::credential::Credential;
use super::endpoint::{ClientEndpoint, HubAddress};
use super::{AGENT, ClientError, WELCOME_TIMEOUT, silence};
use crate::model::{DeviceId, Epoch, Message};
use crate::wire::batch::BatchBuilder;
use crate::wire::close::CloseCode;
use crate::wire::control::{Ack, CONTROL_BYTES_MAX, Control, Goodbye, Hello, Role, Welcome};
use crate::wire::frame::{Decoder, Frame, Kind, VERSION};
use crate::wire::message;

/// Dropped stretches remembered, so that a late look at a receipt can still tell; older ones read as acknowledged.
const DROPPED_RANGES_MAX: usize = 1024;

/// Frames that wait are collected up to about this size and written at once: small batches would cost a wake-up of the
/// connection each.
const WRITE_BYTES: usize = 64 << 10;

/// How a device connects and what it keeps.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    pub hub: HubAddress,
    pub device_id: DeviceId,
    /// Empty for the device itself.
    pub module_id: String,
    pub credential: Credential,
    pub buffer: BufferConfig,
    pub backoff: BackoffConfig,
    /// Messages of one frame at most.
    pub batch_count_max: u32,
    /// Bytes of one frame, about, at most.
    pub batch_bytes_max: usize,
    /// Resume a remembered TLS session and send with the first packet. Repeats by an attacker change nothing: the hub
    /// filters them by sequence.
    pub early_data: bool,
}

impl DeviceOptions {
    /// Memory buffer of 16 MiB that refuses when full; batches of at most 1,024 messages and 64 KiB.
    pub fn new(hub: HubAddress, device_id: DeviceId, credential: Credential) -> Self {
        Self {
            hub,
            device_id,
            module_id: String::new(),
            credential,
            buffer: BufferConfig {
                bytes_max: 16 << 20,
                when_full: WhenFull::Refuse,
                directory: None,
                sync: BufferSync::Never,
            },
            backoff: BackoffConfig::default(),
            batch_count_max: 1024,
            batch_bytes_max: 64 << 10,
            early_data: true,
        }
    }
}

/// A message's place in the device's sequence; see [`Device::acknowledged`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Receipt(pub u64);

/// What the device is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Connecting,
    Connected,
    /// Waits before the next attempt.
    Waiting,
    /// Ended for good; `Device::failure` says why.
    Ended,
}

struct Inner {
    buffer: Buffer,
    acknowledged: u64,
    waiters: BTreeMap<u64, Vec<oneshot::Sender<Result<(), ClientError>>>>,
    dropped: Vec<RangeInclusive<u64>>,
    link: Link,
    connects: u64,
    failure: Option<(CloseCode, String)>,
    /// Why the last connection ended or was not made.
    trouble: Option<String>,
    encoded: Vec<u8>,
    /// Messages that may be in the log already under an older epoch.
    uncertain: bool,
}

struct Shared {
    inner: Mutex<Inner>,
    /// Something was pushed.
    pushed: Notify,
    /// Something was acknowledged, or the link changed.
    moved: Notify,
    /// The connection that was welcomed last, for as long as it lasts.
    session: watch::Sender<Option<quinn::Connection>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while it holds the buffer")
    }

    fn set_link(&self, link: Link) {
        self.lock().link = link;
        self.moved.notify_waiters();
    }
}

/// Cloning shares the device; it ends with `close` or with the last clone.
#[derive(Clone)]
pub struct Device {
    id: DeviceId,
    shared: Arc<Shared>,
    _task: Arc<Task>,
}

struct Task(tokio::task::JoinHandle<()>, Arc<Notify>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Device {
    /// Opens the buffer and connects in the background, for as long as it takes. Call within a tokio runtime.
    ///
    /// # Errors
    /// `ClientError::Buffer` when the buffer's directory cannot be opened.
    pub fn start(endpoint: ClientEndpoint, options: DeviceOptions) -> Result<Self, ClientError> {
        let buffer = Buffer::open(options.buffer.clone())?;
        let acknowledged = buffer.first_sequence() - 1;
        let shared = Arc::new(Shared {
            inner: Mutex::new(Inner {
                buffer,
                acknowledged,
                waiters: BTreeMap::new(),
                dropped: Vec::new(),
                link: Link::Connecting,
                connects: 0,
                failure: None,
                trouble: None,
                encoded: Vec::new(),
                uncertain: false,
            }),
            pushed: Notify::new(),
            moved: Notify::new(),
            session: watch::Sender::new(None),
        });
        let stop = Arc::new(Notify::new());
        let id = options.device_id.clone();
        let driver = Driver {
            endpoint,
            options,
            shared: shared.clone(),
            stop: stop.clone(),
        };
        let task = tokio::spawn(driver.run());
        Ok(Self {
            id,
            shared,
            _task: Arc::new(Task(task, stop)),
        })
    }

    pub fn device_id(&self) -> &DeviceId {
        &self.id
    }

    /// Puts a message into the buffer; waits while the buffer is full and refuses.
    ///
    /// # Errors
    /// `ClientError::Buffer` (too large, disk), `ClientError::Closed` when the hub refused the device for good.
    pub async fn send(&self, message: &Message) -> Result<Receipt, ClientError> {
        loop {
            let moved = self.shared.moved.notified();
            match self.try_send(message) {
                Err(ClientError::Buffer(BufferError::Full)) => moved.await,
                other => return other,
            }
        }
    }

    /// As `send`, without waiting.
    ///
    /// # Errors
    /// As `send`, and `BufferError::Full`.
    pub fn try_send(&self, message: &Message) -> Result<Receipt, ClientError> {
        let receipt = self.push(|encoded| message::encode(message, encoded))?;
        self.shared.pushed.notify_one();
        Ok(receipt)
    }

    /// Puts messages that are only bodies into the buffer, as many as it takes; returns the last one's receipt and how
    /// many were taken.
    ///
    /// # Errors
    /// As `try_send` for the first message.
    pub fn try_send_bodies<'a>(
        &self,
        bodies: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(Option<Receipt>, usize), ClientError> {
        let mut taken = 0;
        let mut last = None;
        for body in bodies {
            match self.push(|encoded| message::encode_body(body, encoded)) {
                Ok(receipt) => last = Some(receipt),
                Err(ClientError::Buffer(BufferError::Full)) => break,
                Err(error) if taken == 0 => return Err(error),
                Err(_) => break,
            }
            taken += 1;
        }
        self.shared.pushed.notify_one();
        Ok((last, taken))
    }

    fn push(&self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<Receipt, ClientError> {
        let mut inner = self.shared.lock();
        if let Some((code, reason)) = &inner.failure {
            return Err(ClientError::Closed {
                code: *code,
                reason: reason.clone(),
            });
        }
        let mut encoded = std::mem::take(&mut inner.encoded);
        encoded.clear();
        encode(&mut encoded);
        let pushed = inner.buffer.push(&encoded);
        inner.encoded = encoded;
        let pushed = pushed?;
        if let Some(dropped) = pushed.dropped {
            inner.drop_range(dropped);
        }
        Ok(Receipt(pushed.sequence))
    }

    /// Waits until the message, and with it every earlier one, is stored at the hub's durability level.
    ///
    /// # Errors
    /// `ClientError::Dropped` when the buffer's policy gave it up, `ClientError::Closed` when the hub refused the device
    /// for good, `ClientError::Stopped`.
    pub async fn acknowledged(&self, receipt: Receipt) -> Result<(), ClientError> {
        let answer = {
            let mut inner = self.shared.lock();
            if inner.dropped.iter().any(|range| range.contains(&receipt.0)) {
                return Err(ClientError::Dropped);
            }
            if receipt.0 <= inner.acknowledged {
                return Ok(());
            }
            if let Some((code, reason)) = &inner.failure {
                return Err(ClientError::Closed {
                    code: *code,
                    reason: reason.clone(),
                });
            }
            let (sender, answer) = oneshot::channel();
            inner.waiters.entry(receipt.0).or_default().push(sender);
            answer
        };
        answer.await.unwrap_or(Err(ClientError::Stopped))
    }

    /// The last message known to be stored.
    pub fn last_acknowledged(&self) -> Receipt {
        Receipt(self.shared.lock().acknowledged)
    }

    /// Completes at the next acknowledgement or change of the link; for senders that count by `last_acknowledged`.
    pub async fn moved(&self) {
        self.shared.moved.notified().await;
    }

    pub fn link(&self) -> Link {
        self.shared.lock().link
    }

    /// Connections that were welcomed so far.
    pub fn connects(&self) -> u64 {
        self.shared.lock().connects
    }

    /// Messages that wait for their acknowledgement.
    pub fn waiting(&self) -> u64 {
        self.shared.lock().buffer.len()
    }

    /// Messages that the buffer's policy dropped.
    pub fn dropped(&self) -> u64 {
        self.shared.lock().buffer.dropped_count()
    }

    /// Why the device ended, if the hub refused it for good.
    pub fn failure(&self) -> Option<(CloseCode, String)> {
        self.shared.lock().failure.clone()
    }

    /// Why the last connection ended or could not be made; `None` before the first trouble.
    pub fn trouble(&self) -> Option<String> {
        self.shared.lock().trouble.clone()
    }

    /// Whether messages may stand in the log twice: the buffer was an old copy, or another buffer of the same device was
    /// in use, so that the hub could not recognise what it had stored.
    pub fn may_have_duplicates(&self) -> bool {
        self.shared.lock().uncertain
    }

    /// Waits until the hub has welcomed the device.
    ///
    /// # Errors
    /// `ClientError::Closed` when it refused for good.
    pub async fn connected(&self) -> Result<(), ClientError> {
        loop {
            let moved = self.shared.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            {
                let inner = self.shared.lock();
                if let Some((code, reason)) = &inner.failure {
                    return Err(ClientError::Closed {
                        code: *code,
                        reason: reason.clone(),
                    });
                }
                if inner.link == Link::Connected {
                    return Ok(());
                }
            }
            moved.await;
        }
    }

    /// The connection of the running session, once there is one other than `after`.
    ///
    /// # Errors
    /// The device has ended.
    pub(super) async fn session(&self, after: Option<&quinn::Connection>) -> Result<quinn::Connection, ClientError> {
        let mut session = self.shared.session.subscribe();
        loop {
            let current = session.borrow_and_update().clone();
            if let Some(current) = current
                && after.is_none_or(|after| after.stable_id() != current.stable_id())
            {
                return Ok(current);
            }
            let moved = self.shared.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            {
                let inner = self.shared.lock();
                if inner.link == Link::Ended {
                    return Err(match &inner.failure {
                        Some((code, reason)) => ClientError::Closed {
                            code: *code,
                            reason: reason.clone(),
                        },
                        None => ClientError::Stopped,
                    });
                }
            }
            tokio::select! {
                _ = session.changed() => {}
                () = moved => {}
            }
        }
    }

    /// Ends the session politely. What is not acknowledged stays in a buffer that has a directory.
    pub async fn close(self) {
        self._task.1.notify_one();
        loop {
            let moved = self.shared.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if self.shared.lock().link == Link::Ended {
                return;
            }
            moved.await;
        }
    }
}

impl Inner {
    fn drop_range(&mut self, range: RangeInclusive<u64>) {
        let gone: Vec<u64> = self
            .waiters
            .range(range.clone())
            .map(|(sequence, _)| *sequence)
            .collect();
        for waiter in gone
            .iter()
            .filter_map(|sequence| self.waiters.remove(sequence))
            .flatten()
        {
            drop(waiter.send(Err(ClientError::Dropped)));
        }
        match self.dropped.last_mut() {
            Some(last) if *last.end() + 1 == *range.start() => *last = *last.start()..=*range.end(),
            Some(_) | None => {
                if self.dropped.len() == DROPPED_RANGES_MAX {
                    self.dropped.remove(0);
                }
                self.dropped.push(range);
            }
        }
    }

    fn acknowledge(&mut self, sequence: u64) {
        self.buffer.acknowledge(sequence);
        self.acknowledged = self.acknowledged.max(sequence);
        while let Some(entry) = self.waiters.first_entry() {
            if *entry.key() > sequence {
                return;
            }
            for waiter in entry.remove() {
                drop(waiter.send(Ok(())));
            }
        }
    }
}

/// A connection whose hello was answered.
struct Welcomed {
    connection: quinn::Connection,
    send: SendStream,
    recv: RecvStream,
    decoder: Decoder,
    welcome: Welcome,
}

/// How one connection ended.
struct Ended {
    error: ClientError,
    retry_after: Option<Duration>,
}

impl From<ClientError> for Ended {
    fn from(error: ClientError) -> Self {
        Self {
            error,
            retry_after: None,
        }
    }
}

/// Lets the device's streams know the connection, for as long as it is theirs.
struct Session<'a>(&'a Shared);

impl<'a> Session<'a> {
    fn new(shared: &'a Shared, connection: &quinn::Connection) -> Self {
        shared.session.send_replace(Some(connection.clone()));
        Self(shared)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.0.session.send_replace(None);
    }
}

struct Driver {
    endpoint: ClientEndpoint,
    options: DeviceOptions,
    shared: Arc<Shared>,
    stop: Arc<Notify>,
}

impl Driver {
    async fn run(self) {
        let mut backoff = Backoff::new(self.options.backoff);
        let mut epoch_refused = false;
        loop {
            self.shared.set_link(Link::Connecting);
            let ended = tokio::select! {
                ended = self.connection(&mut backoff, epoch_refused) => ended,
                () = self.stop.notified() => break,
            };
            let Err(Ended { error, retry_after }) = ended else {
                break;
            };
            // The hub has seen a newer epoch: ask for the next one instead of naming ours.
            epoch_refused = matches!(
                &error,
                ClientError::Closed {
                    code: CloseCode::StaleEpoch,
                    ..
                }
            ) && !epoch_refused;
            if !error.is_transient() && !epoch_refused {
                tracing::warn!(device = %self.options.device_id, %error, "the device gives up");
                self.fail(error);
                break;
            }
            tracing::debug!(device = %self.options.device_id, %error, "connection lost");
            self.shared.lock().trouble = Some(error.to_string());
            self.shared.set_link(Link::Waiting);
            let mut random = [0; 8];
            super::random(&mut random);
            let wait = backoff.handle_failure(Instant::now(), retry_after, || u64::from_le_bytes(random));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.stop.notified() => break,
            }
        }
        self.shared.set_link(Link::Ended);
    }

    fn fail(&self, error: ClientError) {
        let (code, reason) = match error {
            ClientError::Closed { code, reason } => (code, reason),
            other => (CloseCode::Internal, other.to_string()),
        };
        let mut inner = self.shared.lock();
        for waiter in std::mem::take(&mut inner.waiters).into_values().flatten() {
            drop(waiter.send(Err(ClientError::Closed {
                code,
                reason: reason.clone(),
            })));
        }
        inner.failure = Some((code, reason));
    }

    /// One connection, from the first packet to its end.
    async fn connection(&self, backoff: &mut Backoff, ask_epoch: bool) -> Result<(), Ended> {
        let own_epoch = self.shared.lock().buffer.epoch();
        let Welcomed {
            connection,
            mut send,
            mut recv,
            mut decoder,
            welcome,
        } = match tokio::time::timeout(WELCOME_TIMEOUT, self.establish(own_epoch, ask_epoch)).await {
            Ok(welcomed) => welcomed?,
            Err(_) => return Err(ClientError::Unreachable("no welcome in time".into()).into()),
        };
        let next = self.resume(&welcome, own_epoch)?;
        backoff.handle_connected(Instant::now());
        {
            let mut inner = self.shared.lock();
            inner.connects += 1;
        }
        self.shared.set_link(Link::Connected);
        let _session = Session::new(&self.shared, &connection);
        let ended = tokio::select! {
            ended = self.write_batches(&mut send, &welcome, next) => ended,
            ended = self.read_answers(&mut recv, &mut decoder) => ended,
            () = silence::falls(&connection) => {
                connection.close(VarInt::from_u32(0), b"");
                return Err(ClientError::Unreachable("the hub answers nothing".into()).into());
            }
            () = self.stop.notified() => {
                let _ = send.write_all(&Goodbye { code: 0, retry_after_ms: 0, reason: String::new() }.to_frame()).await;
                let _ = send.finish();
                // What is under way is acknowledged before the stream ends.
                let _ = tokio::time::timeout(Duration::from_secs(2), self.read_answers(&mut recv, &mut decoder)).await;
                connection.close(VarInt::from_u32(0), b"");
                return Ok(());
            }
        };
        match ended {
            Ok(retry_after) => Err(Ended {
                retry_after,
                ..closed(&connection).await
            }),
            Err(error) => {
                connection.close(VarInt::from_u32(CloseCode::MalformedFrame as u32), b"");
                Err(error.into())
            }
        }
    }

    /// Connects and says hello.
    async fn establish(&self, own_epoch: Epoch, ask_epoch: bool) -> Result<Welcomed, Ended> {
        let options = &self.options;
        let hash = options.device_id.hash64();
        // Without an epoch nothing may be repeated, so nothing is sent early.
        let early = options.early_data && own_epoch != Epoch(0) && !ask_epoch;
        let (connection, mut early) = self.endpoint.connect(&options.hub, Some(hash), early).await?;
        let hello = Hello {
            version_min: VERSION,
            version_max: VERSION,
            role: Role::Device,
            device_id: options.device_id.as_str().to_owned(),
            module_id: options.module_id.clone(),
            token: options.credential.device_token(
                &options.hub.host_name,
                &options.device_id,
                &options.module_id,
                super::now_seconds(),
            )?,
            epoch: if ask_epoch { 0 } else { own_epoch.0 },
            agent: AGENT.to_owned(),
        };
        loop {
            let (mut send, mut recv) = connection.open_bi().await.map_err(ClientError::from)?;
            // A failed write shows at the read below, with the reason.
            let _ = send.write_all(&hello.to_frame()).await;
            let mut decoder = Decoder::new(CONTROL_BYTES_MAX);
            match next_frame(&mut recv, &mut decoder).await {
                Ok(Frame {
                    kind: Kind::Welcome,
                    body,
                    ..
                }) => {
                    let welcome =
                        Welcome::from_body(&body).map_err(|error| ClientError::Protocol(error.to_string()))?;
                    return Ok(Welcomed {
                        connection,
                        send,
                        recv,
                        decoder,
                        welcome,
                    });
                }
                Ok(frame) => {
                    return Err(ClientError::Protocol(format!("{:?} instead of a welcome", frame.kind)).into());
                }
                Err(Some(error)) => return Err(error.into()),
                Err(None) => match early.take() {
                    // The hub did not take the early data; the connection itself goes on.
                    Some(accepted) => {
                        if accepted.await {
                            return Err(closed(&connection).await);
                        }
                    }
                    None => return Err(closed(&connection).await),
                },
            }
        }
    }

    /// Settles epoch and position with what the hub says; returns the sequence the hub expects next.
    fn resume(&self, welcome: &Welcome, own_epoch: Epoch) -> Result<u64, ClientError> {
        let mut inner = self.shared.lock();
        if own_epoch == Epoch(0) || welcome.epoch != own_epoch.0 {
            let uncertain = own_epoch != Epoch(0) && !inner.buffer.is_empty();
            inner.buffer.set_epoch(Epoch(welcome.epoch), Unacknowledged::Keep)?;
            inner.uncertain |= uncertain;
            return Ok(1);
        }
        let resumed = inner.buffer.resume(Stored {
            epoch: own_epoch,
            sequence: welcome.last_sequence,
        })?;
        if resumed.epoch != own_epoch {
            // This buffer is an old copy: its numbers are used up. The next connection names the new epoch.
            inner.uncertain |= resumed.is_uncertain;
            return Err(ClientError::Unreachable(
                "the buffer is older than what the hub has stored".into(),
            ));
        }
        inner.acknowledge(welcome.last_sequence);
        drop(inner);
        self.shared.moved.notify_waiters();
        Ok(welcome.last_sequence + 1)
    }

    /// Sends what waits, from `next` on, until the connection ends.
    async fn write_batches(
        &self,
        send: &mut SendStream,
        welcome: &Welcome,
        mut next: u64,
    ) -> Result<Option<Duration>, ClientError> {
        let count_max = self.options.batch_count_max.min(welcome.batch_count_max);
        let bytes_max = self.options.batch_bytes_max.min(welcome.batch_bytes_max as usize);
        let mut builder = BatchBuilder::default();
        let mut frames = Vec::new();
        loop {
            frames.clear();
            {
                let mut inner = self.shared.lock();
                let (mut first, mut last) = (0, 0);
                for (sequence, archive) in inner.buffer.unacknowledged(next) {
                    // A hole ends a batch: its messages are numbered without gaps.
                    let is_full = builder.count() == count_max || builder.body_bytes() + archive.len() + 4 > bytes_max;
                    if !builder.is_empty() && (is_full || sequence != last + 1) {
                        builder.finish(first, first > next, &mut frames);
                        next = last + 1;
                        if frames.len() >= WRITE_BYTES {
                            break;
                        }
                    }
                    if builder.is_empty() {
                        first = sequence;
                    }
                    last = sequence;
                    builder.push_archive(archive);
                }
                if !builder.is_empty() {
                    builder.finish(first, first > next, &mut frames);
                    next = last + 1;
                }
                if let Some(error) = inner.buffer.take_read_error() {
                    return Err(BufferError::Io(error).into());
                }
                if let Some(at) = inner.buffer.poll_timeout(Instant::now())
                    && at <= Instant::now()
                {
                    inner.buffer.handle_timeout(Instant::now())?;
                }
            }
            if frames.is_empty() {
                self.shared.pushed.notified().await;
            } else if send.write_all(&frames).await.is_err() {
                // The reader learns the reason.
                return std::future::pending().await;
            }
        }
    }

    /// Takes acknowledgements until the stream ends; returns what the hub asked to wait.
    async fn read_answers(
        &self,
        recv: &mut RecvStream,
        decoder: &mut Decoder,
    ) -> Result<Option<Duration>, ClientError> {
        let mut retry_after = None;
        loop {
            let frame = match next_frame(recv, decoder).await {
                Ok(frame) => frame,
                Err(None) => return Ok(retry_after),
                Err(Some(error)) => return Err(error),
            };
            let protocol = |error: crate::wire::control::ControlError| ClientError::Protocol(error.to_string());
            match frame.kind {
                Kind::Ack => {
                    let Ack { sequence } = Ack::from_body(&frame.body).map_err(protocol)?;
                    self.shared.lock().acknowledge(sequence);
                    self.shared.moved.notify_waiters();
                }
                Kind::Goodbye => {
                    let goodbye = Goodbye::from_body(&frame.body).map_err(protocol)?;
                    retry_after = Some(Duration::from_millis(u64::from(goodbye.retry_after_ms)));
                }
                kind => return Err(ClientError::Protocol(format!("{kind:?} on a device's stream"))),
            }
        }
    }
}

/// The next frame; `Err(None)` when the stream has ended or the connection is gone.
pub(super) async fn next_frame(recv: &mut RecvStream, decoder: &mut Decoder) -> Result<Frame, Option<ClientError>> {
    loop {
        match decoder.poll_frame() {
            Ok(Some(frame)) => return Ok(frame),
            Ok(None) => {}
            Err(error) => return Err(Some(ClientError::Protocol(error.to_string()))),
        }
        match recv.read_chunk(1 << 20, true).await {
            Ok(Some(chunk)) => decoder.feed(chunk.bytes),
            Ok(None) | Err(_) => return Err(None),
        }
    }
}

/// Why the connection ended; the close may still be on its way.
async fn closed(connection: &quinn::Connection) -> Ended {
    match tokio::time::timeout(Duration::from_secs(2), connection.closed()).await {
        Ok(error) => ClientError::from(error).into(),
        Err(_) => {
            connection.close(VarInt::from_u32(0), b"");
            ClientError::Unreachable("the hub ended the stream".into()).into()
        }
    }
}
