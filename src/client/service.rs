//! A service's connection: cursors with credit and checkpoints, and management requests.

use std::sync::Arc;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream, VarInt};

use super::credential::PolicyKey;
use super::device::next_frame;
use super::endpoint::{ClientEndpoint, HubAddress};
use super::{AGENT, ClientError, WELCOME_TIMEOUT};
use crate::log::record::{Record, records};
use crate::model::{SequenceNumber, UtcMillis};
use crate::wire::batch::Payload;
use crate::wire::control::{
    CONTROL_BYTES_MAX, Checkpoint, CheckpointStored, Control, Credit, Failed, From, Hello, Request, Response, Role,
    Subscribe, Subscribed, Welcome,
};
use crate::wire::frame::{Decoder, Frame, Kind, VERSION};
use crate::wire::message::MessageRef;
use crate::wire::stamp::{Origin, Stamp};

/// The largest frame a hub sends: a chunk of log records, of which a single one may exceed the usual size.
const FRAME_BYTES_MAX: u32 = 64 << 20;

#[derive(Clone, Debug)]
pub struct ServiceOptions {
    pub hub: HubAddress,
    pub key: PolicyKey,
}

/// A connection with a policy's rights. It does not reconnect by itself: a consumer goes on from its checkpoint or
/// position with a new one.
pub struct Service {
    connection: Connection,
    partition_count: u16,
    durability: String,
    /// The first stream: its end is the session's.
    _session: (SendStream, RecvStream),
}

impl Service {
    /// # Errors
    /// `ClientError::Closed` with the reason when the hub refuses, `Unreachable` when it does not answer within
    /// `WELCOME_TIMEOUT`.
    pub async fn connect(endpoint: &ClientEndpoint, options: &ServiceOptions) -> Result<Self, ClientError> {
        tokio::time::timeout(WELCOME_TIMEOUT, Self::establish(endpoint, options))
            .await
            .unwrap_or_else(|_| Err(ClientError::Unreachable("no welcome in time".into())))
    }

    async fn establish(endpoint: &ClientEndpoint, options: &ServiceOptions) -> Result<Self, ClientError> {
        let (connection, _) = endpoint.connect(&options.hub, None, false).await?;
        let (mut send, mut recv) = connection.open_bi().await?;
        let hello = Hello {
            version_min: VERSION,
            version_max: VERSION,
            role: Role::Service,
            device_id: String::new(),
            module_id: String::new(),
            token: options.key.token(&options.hub.host_name, super::now_seconds())?,
            epoch: 0,
            agent: AGENT.to_owned(),
        };
        // A failed write shows at the read, with the reason.
        let _ = send.write_all(&hello.to_frame()).await;
        let mut decoder = Decoder::new(CONTROL_BYTES_MAX);
        let frame = match next_frame(&mut recv, &mut decoder).await {
            Ok(frame) => frame,
            Err(Some(error)) => return Err(error),
            Err(None) => return Err(connection.closed().await.into()),
        };
        let welcome: Welcome = expect(&frame)?;
        Ok(Self {
            connection,
            partition_count: welcome.partition_count,
            durability: welcome.durability,
            _session: (send, recv),
        })
    }

    pub fn partition_count(&self) -> u16 {
        self.partition_count
    }

    /// `sync`, `interval` or `os`: what this hub's acknowledgements stand for.
    pub fn durability(&self) -> &str {
        &self.durability
    }

    /// A management request; operations are those of the hub's native door, answers JSON documents.
    ///
    /// # Errors
    /// `ClientError::Refused` with the contract's code.
    pub async fn request(&self, operation: &str, json: &serde_json::Value) -> Result<serde_json::Value, ClientError> {
        let request = Request {
            operation: operation.to_owned(),
            json: json.to_string(),
        };
        let mut stream = self.stream(&request).await?;
        let response: Response = expect(&stream.next().await?)?;
        if response.status != 200 {
            return Err(ClientError::Refused {
                code: response.code,
                reason: response.json,
                next: 0,
            });
        }
        serde_json::from_str(&response.json).map_err(|error| ClientError::Protocol(error.to_string()))
    }

    /// Opens a cursor.
    ///
    /// # Errors
    /// `ClientError::Refused`: no such partition or group, no permission, or owned at a higher level.
    pub async fn subscribe(&self, subscription: &Subscription) -> Result<Cursor, ClientError> {
        let mut stream = self.stream(&subscription.frame).await?;
        let subscribed: Subscribed = expect(&stream.next().await?)?;
        Ok(Cursor {
            stream,
            next: SequenceNumber(subscribed.start),
            first_retained: SequenceNumber(subscribed.first_retained),
            credit_bytes: subscription.frame.credit_bytes,
            consumed_bytes: 0,
            stored: None,
        })
    }

    async fn stream(&self, first: &impl Control) -> Result<Stream, ClientError> {
        let (mut send, recv) = self.connection.open_bi().await?;
        let _ = send.write_all(&first.to_frame()).await;
        Ok(Stream {
            connection: self.connection.clone(),
            send,
            recv,
            decoder: Decoder::new(FRAME_BYTES_MAX),
        })
    }

    /// Completes when the connection has ended.
    pub async fn closed(&self) -> ClientError {
        self.connection.closed().await.into()
    }

    pub fn close(&self) {
        self.connection.close(VarInt::from_u32(0), b"");
    }
}

struct Stream {
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
    decoder: Decoder,
}

impl Stream {
    async fn next(&mut self) -> Result<Frame, ClientError> {
        match next_frame(&mut self.recv, &mut self.decoder).await {
            Ok(frame) => Ok(frame),
            Err(Some(error)) => Err(error),
            Err(None) => Err(match self.connection.close_reason() {
                Some(reason) => reason.into(),
                None => ClientError::Unreachable("the hub ended the stream".into()),
            }),
        }
    }
}

fn expect<C: Control>(frame: &Frame) -> Result<C, ClientError> {
    if frame.kind == Kind::Failed {
        let Failed { code, reason, next } = Failed::from_body(&frame.body).map_err(protocol)?;
        return Err(ClientError::Refused { code, reason, next });
    }
    if frame.kind != C::KIND {
        return Err(ClientError::Protocol(format!(
            "{:?} where {:?} was due",
            frame.kind,
            C::KIND
        )));
    }
    C::from_body(&frame.body).map_err(protocol)
}

fn protocol(error: crate::wire::control::ControlError) -> ClientError {
    ClientError::Protocol(error.to_string())
}

/// What a cursor reads, and how.
#[derive(Clone, Debug)]
pub struct Subscription {
    frame: Subscribe,
}

impl Subscription {
    fn from(partition: u16, from: From, value: u64) -> Self {
        let frame = Subscribe {
            partition,
            group: crate::model::limits::DEFAULT_CONSUMER_GROUP.to_owned(),
            from,
            value,
            owner_level: 0,
            owner: String::new(),
            credit_bytes: 4 << 20,
        };
        Self { frame }
    }

    pub fn earliest(partition: u16) -> Self {
        Self::from(partition, From::Earliest, 0)
    }

    /// Only what is stored after this moment.
    pub fn latest(partition: u16) -> Self {
        Self::from(partition, From::Latest, 0)
    }

    pub fn sequence(partition: u16, sequence: SequenceNumber) -> Self {
        Self::from(partition, From::Sequence, sequence.0)
    }

    /// From the first message enqueued at this time or later.
    pub fn time(partition: u16, time: UtcMillis) -> Self {
        Self::from(partition, From::Time, time.0.max(0) as u64)
    }

    /// Where the group's checkpoint stands, or from the earliest message.
    pub fn checkpoint(partition: u16) -> Self {
        Self::from(partition, From::Checkpoint, 0)
    }

    #[must_use]
    pub fn group(mut self, group: &str) -> Self {
        self.frame.group = group.to_owned();
        self
    }

    /// Claims the partition for this reader within the group, which checkpoints need. A later claim of the same or a
    /// higher level takes it over.
    #[must_use]
    pub fn owner(mut self, name: &str, level: u64) -> Self {
        self.frame.owner = name.to_owned();
        self.frame.owner_level = level.max(1);
        self
    }

    /// Bytes the hub may send ahead of what is consumed; bounds this reader's memory.
    #[must_use]
    pub fn credit_bytes(mut self, bytes: u64) -> Self {
        self.frame.credit_bytes = bytes.max(1);
        self
    }
}

/// A running cursor. Dropping it ends it.
pub struct Cursor {
    stream: Stream,
    next: SequenceNumber,
    first_retained: SequenceNumber,
    credit_bytes: u64,
    consumed_bytes: u64,
    stored: Option<SequenceNumber>,
}

impl Cursor {
    /// The sequence number after the last message handed out.
    pub fn position(&self) -> SequenceNumber {
        self.next
    }

    /// The oldest message when the cursor was opened.
    pub fn first_retained(&self) -> SequenceNumber {
        self.first_retained
    }

    /// The newest checkpoint the hub has confirmed as durable on this cursor.
    pub fn stored_checkpoint(&self) -> Option<SequenceNumber> {
        self.stored
    }

    /// The next messages; waits at the end of the log.
    ///
    /// # Errors
    /// `ClientError::Refused` when ownership was lost, or when the log is damaged or deleted here: `next` in the error
    /// says where reading can go on.
    pub async fn next(&mut self) -> Result<Chunk, ClientError> {
        loop {
            match self.read().await? {
                Arrived::Chunk(chunk) => {
                    self.give_credit(&chunk).await;
                    return Ok(chunk);
                }
                Arrived::Stored => {}
            }
        }
    }

    /// Everything before `next` is processed. The confirmation arrives with the messages; see `stored_checkpoint`.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn checkpoint(&mut self, next: SequenceNumber) -> Result<(), ClientError> {
        let frame = Checkpoint { next: next.0 }.to_frame();
        self.stream
            .send
            .write_all(&frame)
            .await
            .map_err(|error| ClientError::Unreachable(error.to_string()))
    }

    /// As `checkpoint`, and waits until the hub has it on disk. Returns the messages that arrived meanwhile, which `next`
    /// will not hand out again: at most `credit_bytes` of them, since no further credit is given before the end.
    ///
    /// # Errors
    /// `ClientError::Refused` when ownership was lost.
    pub async fn checkpoint_stored(&mut self, next: SequenceNumber) -> Result<Vec<Chunk>, ClientError> {
        self.checkpoint(next).await?;
        let mut chunks = Vec::new();
        while self.stored.is_none_or(|stored| stored < next) {
            match self.read().await? {
                Arrived::Chunk(chunk) => chunks.push(chunk),
                Arrived::Stored => {}
            }
        }
        for chunk in &chunks {
            self.give_credit(chunk).await;
        }
        Ok(chunks)
    }

    async fn read(&mut self) -> Result<Arrived, ClientError> {
        let frame = self.stream.next().await?;
        match frame.kind {
            Kind::Deliver => {
                let chunk = Chunk {
                    bytes: frame.body,
                    from: self.next,
                };
                self.next = chunk.end()?;
                Ok(Arrived::Chunk(chunk))
            }
            // Anything else is a failure, or none of a cursor's business.
            _ => {
                self.stored = Some(SequenceNumber(expect::<CheckpointStored>(&frame)?.next));
                Ok(Arrived::Stored)
            }
        }
    }

    async fn give_credit(&mut self, chunk: &Chunk) {
        self.consumed_bytes += chunk.bytes.len() as u64;
        if self.consumed_bytes * 2 >= self.credit_bytes {
            let credit = Credit {
                bytes: std::mem::take(&mut self.consumed_bytes),
            };
            // A lost connection shows at the next read, with its reason.
            let _ = self.stream.send.write_all(&credit.to_frame()).await;
        }
    }
}

/// What came on a cursor's stream.
enum Arrived {
    Chunk(Chunk),
    /// `stored` has moved.
    Stored,
}

/// Whole log records, as they stand on the hub's disk.
#[derive(Clone, Debug)]
pub struct Chunk {
    bytes: Bytes,
    from: SequenceNumber,
}

/// One message as read from the log.
#[derive(Clone)]
pub struct Event<'a> {
    pub sequence: SequenceNumber,
    /// The hub's clock at acceptance.
    pub enqueued_time: UtcMillis,
    pub origin: Arc<Origin>,
    pub message: MessageRef<'a>,
}

impl Chunk {
    /// Bytes of the log records.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Messages of this chunk, without looking into them.
    ///
    /// # Errors
    /// `ClientError::Protocol` when the records cannot be read.
    pub fn count(&self) -> Result<u64, ClientError> {
        Ok(self.end()?.0 - self.from.0)
    }

    fn end(&self) -> Result<SequenceNumber, ClientError> {
        let mut end = self.from;
        for record in records(&self.bytes) {
            end = record
                .map_err(|error| ClientError::Protocol(error.to_string()))?
                .header
                .next();
        }
        Ok(end)
    }

    /// The messages, checked one by one. The first record may begin before the cursor; what lies before is left out.
    pub fn events(&self) -> impl Iterator<Item = Result<Event<'_>, ClientError>> {
        let from = self.from;
        records(&self.bytes)
            .flat_map(|record| match record {
                Ok(record) => events_of(&record),
                Err(error) => vec![Err(ClientError::Protocol(error.to_string()))],
            })
            .filter(move |event| !matches!(event, Ok(event) if event.sequence < from))
    }
}

/// The messages of one log record, checked one by one. The record's own checksum is the caller's business.
pub fn events_of<'a>(record: &Record<'a>) -> Vec<Result<Event<'a>, ClientError>> {
    let protocol = |error: &dyn std::fmt::Display| vec![Err(ClientError::Protocol(error.to_string()))];
    let origin = match Stamp::read(record.stamp) {
        Ok(stamp) => Arc::new(stamp.origin),
        Err(error) => return protocol(&error),
    };
    let payload = match Payload::new(record.payload, record.header.count) {
        Ok(payload) => payload,
        Err(error) => return protocol(&error),
    };
    let mut sequence = record.header.first;
    payload
        .messages()
        .map(|message| {
            let event = Event {
                sequence,
                enqueued_time: record.header.enqueued_time,
                origin: origin.clone(),
                message: message.map_err(|error| ClientError::Protocol(error.to_string()))?,
            };
            sequence = sequence.plus(1);
            Ok(event)
        })
        .collect()
}
