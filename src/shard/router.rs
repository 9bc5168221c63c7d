//! Partition to owner: how doors reach the shard of a device and the log of a partition.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::command::{Command, Revoke, SessionId};
use super::inbox::Inbox;
use crate::hub::registry::{ChangeKind, IdentityChanged};
use crate::log::{PartitionView, Storage};
use crate::model::{DeviceId, PartitionId, SequenceNumber};
use crate::wire::close::CloseCode;

/// A partition as everybody but its owner sees it.
pub struct Partition<S: Storage> {
    pub view: Arc<PartitionView<S>>,
    /// The duplicate filter is stored up to here; the log keeps everything from here on.
    filter_covered: AtomicU64,
    /// Readers at the end of the log wait here.
    tail: Notify,
}

impl<S: Storage> Partition<S> {
    pub fn new(view: Arc<PartitionView<S>>, filter_covered: SequenceNumber) -> Self {
        Self {
            view,
            filter_covered: AtomicU64::new(filter_covered.0),
            tail: Notify::new(),
        }
    }

    pub fn filter_covered(&self) -> SequenceNumber {
        SequenceNumber(self.filter_covered.load(Ordering::Acquire))
    }

    pub(super) fn set_filter_covered(&self, covered: SequenceNumber) {
        self.filter_covered.fetch_max(covered.0, Ordering::AcqRel);
    }

    pub(super) fn tail_moved(&self) {
        self.tail.notify_waiters();
    }

    /// Completes when something at or after `next` is durable.
    pub async fn durable_past(&self, next: SequenceNumber) {
        loop {
            let moved = self.tail.notified();
            tokio::pin!(moved);
            // Registered before the check, so that a mark that moves in between is not missed.
            moved.as_mut().enable();
            if self.view.durable() > next {
                return;
            }
            moved.await;
        }
    }
}

/// The map of the hub; one per process, shared by all doors.
pub struct Router<S: Storage> {
    inboxes: Vec<Arc<Inbox>>,
    partitions: Vec<Arc<Partition<S>>>,
    next_session: AtomicU64,
}

impl<S: Storage> Router<S> {
    pub fn new(inboxes: Vec<Arc<Inbox>>, partitions: Vec<Arc<Partition<S>>>) -> Self {
        assert!(!inboxes.is_empty() && !partitions.is_empty());
        Self {
            inboxes,
            partitions,
            next_session: AtomicU64::new(1),
        }
    }

    pub fn shard_count(&self) -> usize {
        self.inboxes.len()
    }

    pub fn partition_count(&self) -> u16 {
        u16::try_from(self.partitions.len()).expect("the partition count is a u16 in the configuration")
    }

    pub fn partitions(&self) -> &[Arc<Partition<S>>] {
        &self.partitions
    }

    /// `None` when the hub has no such partition.
    pub fn partition(&self, partition: PartitionId) -> Option<&Arc<Partition<S>>> {
        self.partitions.get(usize::from(partition.0))
    }

    pub fn partition_of(&self, device: &DeviceId) -> PartitionId {
        PartitionId::of_hash(device.hash64(), self.partition_count())
    }

    /// The index of the shard that owns a partition.
    pub fn shard_of(&self, partition: PartitionId) -> usize {
        shard_of(partition, self.inboxes.len())
    }

    pub fn inbox(&self, partition: PartitionId) -> &Arc<Inbox> {
        &self.inboxes[self.shard_of(partition)]
    }

    pub fn inboxes(&self) -> &[Arc<Inbox>] {
        &self.inboxes
    }

    pub fn new_session(&self) -> SessionId {
        SessionId(self.next_session.fetch_add(1, Ordering::Relaxed))
    }

    /// Cuts off the sessions that a change of an identity concerns, once their home shard's queue has room.
    // IoT Hub, identity: disabling or deleting a device drops its connections; a changed key ends what was proved by it.
    pub async fn identity_changed(&self, change: &IdentityChanged) {
        let own = Some(change.generation);
        let of_modules_too = own.filter(|_| change.identity.module.is_some());
        let (code, reason, generation, kept) = match change.kind {
            ChangeKind::Disabled => (
                CloseCode::DeviceDisabled,
                "the device was disabled",
                of_modules_too,
                None,
            ),
            ChangeKind::Deleted => (
                CloseCode::DeviceDeleted,
                "the identity was deleted",
                of_modules_too,
                None,
            ),
            // Modules have keys of their own. Whoever proved himself by one that stays goes on.
            ChangeKind::KeysChanged => {
                let reason = "the identity's credential was changed";
                (CloseCode::Unauthorized, reason, own, Some(change.proofs.clone()))
            }
            ChangeKind::Created | ChangeKind::Updated | ChangeKind::Enabled => return,
        };
        let device = &change.identity.device;
        let revoke = Revoke {
            device_id: device.as_str().to_owned(),
            generation,
            kept,
            code,
            reason: reason.to_owned(),
        };
        let inbox = self.inbox(self.partition_of(device));
        // The cut must not be lost to a full queue.
        while inbox.push_control(Command::Revoke(revoke.clone())).is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Partitions go to shards round robin.
pub fn shard_of(partition: PartitionId, shard_count: usize) -> usize {
    usize::from(partition.0) % shard_count
}
