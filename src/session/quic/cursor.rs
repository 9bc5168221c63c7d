//! A consumer's cursor on one partition: whole log records as slices of the log's mapping, within the reader's credit.
//!
//! A stalled consumer costs its connection's send window and nothing more: nothing is read ahead of what may be sent,
//! and what is read is not copied.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use tokio::sync::{Notify, oneshot};

use super::door::{Closing, Door};
use super::service::{failed, next_frame, write};
use crate::hub::auth::ServiceAuthenticated;
use crate::hub::policy::Permissions;
use crate::hub::{Claim, GroupError};
use crate::log::{Chunk, DiskStorage, PartitionView, ReadError, SeekError, Start};
use crate::model::{ConsumerGroup, PartitionId, SequenceNumber, UtcMillis};
use crate::wire::control::{Checkpoint, CheckpointStored, Control, Credit, Failed, From, Subscribe, Subscribed};
use crate::wire::frame::{self, Decoder, Frame, Kind};

/// Bytes of one Deliver frame, about; a single larger record is sent whole.
const DELIVER_BYTES: usize = 256 * 1024;

pub(super) async fn run(
    door: &Arc<Door>,
    identity: &ServiceAuthenticated,
    send: &mut SendStream,
    recv: &mut RecvStream,
    mut decoder: Decoder,
    subscribe: Subscribe,
) -> Result<(), Failed> {
    // IoT Hub, built-in endpoint: reading needs ServiceConnect.
    if !identity.permissions.allow(Permissions::SERVICE_CONNECT) {
        return Err(failed(401_002, "reading needs the ServiceConnect permission"));
    }
    let id = PartitionId(subscribe.partition);
    let Some(partition) = door.router.partition(id) else {
        return Err(failed(
            404_000,
            &format!("the hub has partitions 0 to {}", door.router.partition_count() - 1),
        ));
    };
    let group =
        ConsumerGroup::new(&subscribe.group).map_err(|error| failed(400_004, &format!("consumer group {error}")))?;
    if !door.groups.exists(&group).map_err(|error| group_failed(&error))? {
        return Err(group_failed(&GroupError::NotFound));
    }
    let ownership = Ownership::claim(door, &group, id, &subscribe).await?;
    let start = start_of(door, &group, id, &subscribe)?;
    let mut cursor = partition
        .view
        .cursor(start)
        .map_err(|error| seek_failed(&error, &partition.view))?;
    let subscribed = Subscribed {
        start: cursor.position().0,
        first_retained: partition.view.first_retained().0,
        next: partition.view.durable().0,
    };
    write(send, &subscribed).await.map_err(|_| gone())?;
    let _reading = door.readers.enter(&group, id, cursor.position());
    let mut credit = subscribe.credit_bytes;
    loop {
        let chunk = if credit == 0 {
            None
        } else {
            let bytes_max = DELIVER_BYTES.min(usize::try_from(credit).unwrap_or(usize::MAX));
            cursor.read(bytes_max).map_err(|error| read_failed(&error))?
        };
        match chunk {
            Some(chunk) => {
                credit = credit.saturating_sub(chunk.bytes.len() as u64);
                door.observer
                    .delivered(chunk.bytes.len() as u64, chunk.next.0 - chunk.first_wanted.0);
                _reading.at(chunk.next);
                deliver(send, chunk).await?;
                // A reader that is sent as much as it takes must still be heard.
                while let Some(frame) = ready(next_frame(recv, &mut decoder)).await {
                    match frame.map_err(|closing| closing_failed(&closing))? {
                        Some(frame) => handle(door, frame, &ownership, &mut credit, send).await?,
                        None => return Ok(()),
                    }
                }
                if let Some(ownership) = &ownership {
                    ownership.check()?;
                }
            }
            None => tokio::select! {
                () = partition.durable_past(cursor.position()), if credit > 0 => {}
                frame = next_frame(recv, &mut decoder) => match frame.map_err(|closing| closing_failed(&closing))? {
                    Some(frame) => handle(door, frame, &ownership, &mut credit, send).await?,
                    None => return Ok(()),
                },
                lost = lost(&ownership) => return Err(lost),
            },
        }
    }
}

async fn deliver(send: &mut SendStream, chunk: Chunk) -> Result<(), Failed> {
    let header = Bytes::copy_from_slice(&frame::header(Kind::Deliver, 0, chunk.bytes.len()));
    send.write_all_chunks(&mut [header, chunk.bytes])
        .await
        .map_err(|_| gone())
}

/// The future's value if it has one without waiting.
async fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        value = future => Some(value),
        () = std::future::ready(()) => None,
    }
}

async fn handle(
    door: &Arc<Door>,
    frame: Frame,
    ownership: &Option<Ownership>,
    credit: &mut u64,
    send: &mut SendStream,
) -> Result<(), Failed> {
    let malformed = |error: crate::wire::control::ControlError| failed(400_006, &error.to_string());
    match frame.kind {
        Kind::Credit => {
            *credit = credit.saturating_add(Credit::from_body(&frame.body).map_err(malformed)?.bytes);
            Ok(())
        }
        Kind::Checkpoint => {
            let next = Checkpoint::from_body(&frame.body).map_err(malformed)?.next;
            let Some(ownership) = ownership else {
                return Err(failed(400_003, "a reader without an owner level cannot checkpoint"));
            };
            ownership.commit(door, SequenceNumber(next)).await?;
            door.observer.checkpoint_stored();
            write(send, &CheckpointStored { next }).await.map_err(|_| gone())
        }
        kind => Err(failed(400_003, &format!("{kind:?} has no place on a cursor's stream"))),
    }
}

/// A reader's hold on a partition within its group.
struct Ownership {
    claim: Claim,
    taken_over: Arc<Notify>,
    door: Arc<Door>,
}

impl Ownership {
    /// `None` for a reader that did not ask for one.
    async fn claim(
        door: &Arc<Door>,
        group: &ConsumerGroup,
        partition: PartitionId,
        subscribe: &Subscribe,
    ) -> Result<Option<Self>, Failed> {
        if subscribe.owner_level == 0 {
            return Ok(None);
        }
        let level = i64::try_from(subscribe.owner_level).map_err(|_| failed(400_004, "the owner level is too high"))?;
        let (done, answer) = oneshot::channel();
        door.groups
            .claim(group, partition, &subscribe.owner, level, move |result| {
                drop(done.send(result))
            });
        let claim = answer
            .await
            .map_err(|_| gone())?
            .map_err(|error| group_failed(&error))?;
        let taken_over = Arc::new(Notify::new());
        let mut owners = door.owners.lock().expect("nothing panics while it holds the owners");
        if let Some(earlier) = owners.insert((group.clone(), partition), taken_over.clone()) {
            earlier.notify_one();
        }
        drop(owners);
        Ok(Some(Self {
            claim,
            taken_over,
            door: door.clone(),
        }))
    }

    async fn commit(&self, door: &Arc<Door>, next: SequenceNumber) -> Result<(), Failed> {
        let (done, answer) = oneshot::channel();
        door.groups
            .commit(&self.claim, next, move |result| drop(done.send(result)));
        answer.await.map_err(|_| gone())?.map_err(|error| group_failed(&error))
    }

    fn is_current(&self) -> bool {
        let owners = self
            .door
            .owners
            .lock()
            .expect("nothing panics while it holds the owners");
        let key = (self.claim.group.clone(), self.claim.partition);
        owners
            .get(&key)
            .is_some_and(|current| Arc::ptr_eq(current, &self.taken_over))
    }

    fn check(&self) -> Result<(), Failed> {
        if self.is_current() {
            Ok(())
        } else {
            Err(lost_ownership())
        }
    }
}

impl Drop for Ownership {
    fn drop(&mut self) {
        let mut owners = self
            .door
            .owners
            .lock()
            .expect("nothing panics while it holds the owners");
        let key = (self.claim.group.clone(), self.claim.partition);
        if owners
            .get(&key)
            .is_some_and(|current| Arc::ptr_eq(current, &self.taken_over))
        {
            owners.remove(&key);
            self.door.groups.release(&self.claim, |_| {});
        }
    }
}

async fn lost(ownership: &Option<Ownership>) -> Failed {
    match ownership {
        Some(ownership) => {
            ownership.taken_over.notified().await;
            lost_ownership()
        }
        None => std::future::pending().await,
    }
}

fn lost_ownership() -> Failed {
    failed(409_000, "another reader of the group took the partition over")
}

fn start_of(
    door: &Arc<Door>,
    group: &ConsumerGroup,
    partition: PartitionId,
    subscribe: &Subscribe,
) -> Result<Start, Failed> {
    Ok(match subscribe.from {
        From::Earliest => Start::Earliest,
        From::Latest => Start::Latest,
        From::Sequence => Start::Sequence(SequenceNumber(subscribe.value)),
        From::Time => Start::Time(UtcMillis(i64::try_from(subscribe.value).unwrap_or(i64::MAX))),
        From::Checkpoint => {
            let stored = door
                .groups
                .checkpoint(group, partition)
                .map_err(|error| group_failed(&error))?;
            stored.map_or(Start::Earliest, Start::Sequence)
        }
    })
}

fn seek_failed(error: &SeekError, view: &PartitionView<DiskStorage>) -> Failed {
    Failed {
        code: 400_004,
        reason: error.to_string(),
        next: view.first_retained().0,
    }
}

fn read_failed(error: &ReadError) -> Failed {
    let (code, next) = match error {
        ReadError::Retained { first } => (404_000, first.0),
        ReadError::Damaged(damage) => (500_001, damage.next.0),
        ReadError::Io(_) => (500_001, 0),
    };
    Failed {
        code,
        reason: error.to_string(),
        next,
    }
}

fn group_failed(error: &GroupError) -> Failed {
    failed(error.code().number, &error.to_string())
}

fn closing_failed(closing: &Closing) -> Failed {
    failed(400_006, &closing.reason)
}

fn gone() -> Failed {
    failed(0, "the connection is gone")
}
