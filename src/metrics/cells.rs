//! Cells that the data path writes: one of each shard, one of each partition, all plain atomics.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::histogram::Histogram;
use crate::wire::close::CloseCode;

/// A label's closed set of values.
macro_rules! label {
    ($(#[$doc:meta])* $Name:ident { $($(#[$variant_doc:meta])* $Variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $Name {
            $($(#[$variant_doc])* $Variant,)*
        }

        impl $Name {
            pub const ALL: &'static [Self] = &[$(Self::$Variant),*];

            /// The label's value.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$Variant => $text,)*
                }
            }
        }
    };
}

label! {
    /// Where a batch spends its time between first byte and acknowledgement.
    Stage {
        /// Read, decrypted, checked.
        Door = "door",
        /// Waiting for its home shard.
        Queue = "queue",
        Append = "append",
        /// Waiting for the disk.
        Sync = "sync",
        /// From the door to the acknowledgement.
        Total = "total",
    }
}

label! {
    /// How a handshake ended.
    Handshake {
        Full = "full",
        Resumed = "resumed",
        /// Answered with a QUIC Retry; the client comes again and is counted again.
        Retried = "retried",
        /// Over a limit of sessions.
        Refused = "refused",
        /// TLS was completed and the credential was not accepted.
        Unauthorized = "unauthorized",
        TimedOut = "timed_out",
        Failed = "failed",
    }
}

label! {
    SessionKind {
        Device = "device",
        Service = "service",
    }
}

label! {
    /// What sessions waited for.
    Backpressure {
        /// A session's own messages that are not acknowledged.
        Session = "session_inflight",
        /// A partition's budget of bytes on their way into the log.
        Partition = "partition_inflight",
        /// The shard's, of all its partitions.
        Shard = "shard_inflight",
        DiskFull = "disk_full",
    }
}

/// One number for each value of a label.
#[derive(Debug)]
pub(super) struct Each<T, const N: usize>([T; N]);

impl<T: Default, const N: usize> Default for Each<T, N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| T::default()))
    }
}

impl<T, const N: usize> Each<T, N> {
    pub(super) fn at(&self, index: usize) -> &T {
        &self.0[index]
    }

    pub(super) fn each(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }
}

/// What one shard counts. The shard's thread is the usual writer; a foreign one costs a cache line, not a count.
/// Cells keep apart by alignment.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ShardCell {
    pub(super) accepted: AtomicU64,
    pub(super) accepted_bytes: AtomicU64,
    pub(super) appended: AtomicU64,
    pub(super) appended_bytes: AtomicU64,
    pub(super) acknowledged: AtomicU64,
    pub(super) duplicates: AtomicU64,
    pub(super) delivered: AtomicU64,
    pub(super) delivered_bytes: AtomicU64,
    pub(super) queue: AtomicU64,
    pub(super) inflight_bytes: AtomicU64,
    pub(super) refused: Each<AtomicU64, { CloseCode::ALL.len() }>,
    pub(super) handshakes: Each<AtomicU64, { Handshake::ALL.len() }>,
    pub(super) sessions: Each<AtomicI64, { SessionKind::ALL.len() }>,
    pub(super) closed: Each<AtomicU64, { CloseCode::ALL.len() }>,
    pub(super) backpressure_nanos: Each<AtomicU64, { Backpressure::ALL.len() }>,
    pub(super) latency: Each<Histogram, { Stage::ALL.len() }>,
}

impl ShardCell {
    pub fn accepted(&self, messages: u64, bytes: u64) {
        self.accepted.fetch_add(messages, Relaxed);
        self.accepted_bytes.fetch_add(bytes, Relaxed);
    }

    pub fn appended(&self, messages: u64, bytes: u64) {
        self.appended.fetch_add(messages, Relaxed);
        self.appended_bytes.fetch_add(bytes, Relaxed);
    }

    pub fn acknowledged(&self, messages: u64) {
        self.acknowledged.fetch_add(messages, Relaxed);
    }

    pub fn duplicates(&self, messages: u64) {
        self.duplicates.fetch_add(messages, Relaxed);
    }

    pub fn delivered(&self, messages: u64, bytes: u64) {
        self.delivered.fetch_add(messages, Relaxed);
        self.delivered_bytes.fetch_add(bytes, Relaxed);
    }

    pub fn refused(&self, reason: CloseCode, messages: u64) {
        self.refused.at(index(reason)).fetch_add(messages, Relaxed);
    }

    /// The hub closed a connection.
    pub fn closed(&self, reason: CloseCode) {
        self.closed.at(index(reason)).fetch_add(1, Relaxed);
    }

    pub fn handshake(&self, outcome: Handshake) {
        self.handshakes.at(outcome as usize).fetch_add(1, Relaxed);
    }

    pub fn session_opened(&self, kind: SessionKind) {
        self.sessions.at(kind as usize).fetch_add(1, Relaxed);
    }

    pub fn session_ended(&self, kind: SessionKind) {
        self.sessions.at(kind as usize).fetch_sub(1, Relaxed);
    }

    /// Commands that wait for the shard.
    pub fn set_queue(&self, commands: u64) {
        self.queue.store(commands, Relaxed);
    }

    pub fn set_inflight(&self, bytes: u64) {
        self.inflight_bytes.store(bytes, Relaxed);
    }

    /// So far. A reading that is a little behind an earlier one changes nothing.
    pub fn set_backpressure(&self, cause: Backpressure, nanos: u64) {
        self.backpressure_nanos.at(cause as usize).fetch_max(nanos, Relaxed);
    }

    /// `messages` are weighed in, so that a quantile speaks of messages and not of batches.
    pub fn latency(&self, stage: Stage, duration: Duration, messages: u64) {
        self.latency.at(stage as usize).record_n(duration, messages);
    }
}

fn index(code: CloseCode) -> usize {
    CloseCode::ALL
        .iter()
        .position(|known| *known == code)
        .expect("the list has every code")
}

/// What a partition's log looks like; set by its owner.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct PartitionCell {
    pub(super) bytes: AtomicU64,
    pub(super) segments: AtomicU64,
    pub(super) next_sequence: AtomicU64,
    pub(super) inflight_bytes: AtomicU64,
    /// Bits: why appends are, or soon will be, refused.
    pub(super) refusing: AtomicU64,
}

pub(super) const POISONED: u64 = 1;
/// No segment can be prepared.
pub(super) const DISK_FULL: u64 = 2;
/// Batches wait, because the disk is full.
pub(super) const STALLED: u64 = 4;

impl PartitionCell {
    pub fn set_size(&self, bytes: u64, segments: u64) {
        self.bytes.store(bytes, Relaxed);
        self.segments.store(segments, Relaxed);
    }

    /// The sequence number the next record will get. Lag is counted from here.
    pub fn set_next_sequence(&self, next: u64) {
        self.next_sequence.store(next, Relaxed);
    }

    /// Bytes on their way into its log.
    pub fn set_inflight(&self, bytes: u64) {
        self.inflight_bytes.store(bytes, Relaxed);
    }

    pub fn set_poisoned(&self, is: bool) {
        self.set(POISONED, is);
    }

    pub fn set_disk_full(&self, is: bool) {
        self.set(DISK_FULL, is);
    }

    /// Devices wait for room on the disk.
    pub fn set_stalled(&self, is: bool) {
        self.set(STALLED, is);
    }

    fn set(&self, bit: u64, is: bool) {
        if is {
            self.refusing.fetch_or(bit, Relaxed);
        } else {
            self.refusing.fetch_and(!bit, Relaxed);
        }
    }
}
