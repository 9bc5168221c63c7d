//! Which messages of QoS 1 a session has sent: those that wait for their acknowledgement, and the last ones that have it.
//!
//! ```text
//!   received ──> [ acknowledged, known again | waiting for the disk ]
//!                  ^ oldest goes first         └─ durable ──> PUBACK, in the order received
//! ```
//!
//! A client that saw no acknowledgement sends its message again, marked as a duplicate and under the same packet id. What
//! stands here with the same content is acknowledged and not stored twice, also by the next connection of the session: the
//! epoch tells it how far the one before was stored.
//!
//! A client that uses one packet id again and again for the same words cannot be told from one that repeats: a duplicate of
//! a message of its that was lost is taken for the one before it.

use std::collections::VecDeque;
use std::num::NonZeroU16;

use crate::model::Epoch;
use crate::proto::mqtt::Reason;

/// Acknowledged messages that are known again.
const KNOWN_MAX: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    /// Of the session's epoch: durable once this is.
    sequence: u64,
    digest: u64,
    packet_id: NonZeroU16,
    reason: Reason,
    /// Whether it may be known again; an answer to a duplicate or a refusal is none.
    is_message: bool,
}

#[derive(Debug)]
pub struct Window {
    epoch: Epoch,
    entries: VecDeque<Entry>,
    /// Of them, how many from the oldest are acknowledged.
    acknowledged: usize,
    known_max: usize,
}

impl Window {
    /// Of a new session.
    pub fn new(epoch: Epoch, is_kept: bool) -> Self {
        Self {
            epoch,
            entries: VecDeque::new(),
            acknowledged: 0,
            known_max: if is_kept { KNOWN_MAX } else { 0 },
        }
    }

    /// The epoch to go on in.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The window for the next connection: what is stored is known again, the rest never came.
    #[must_use]
    pub fn resumed(mut self, stored: u64, is_kept: bool) -> Self {
        self.entries
            .retain(|entry| entry.is_message && entry.sequence <= stored);
        self.acknowledged = self.entries.len();
        self.known_max = if is_kept { KNOWN_MAX } else { 0 };
        self.trim();
        self
    }

    /// Messages that wait for their acknowledgement.
    pub fn waiting(&self) -> usize {
        self.entries.len() - self.acknowledged
    }

    /// Whether a message that is marked as a duplicate was taken before.
    pub fn knows(&self, packet_id: NonZeroU16, digest: u64) -> bool {
        let last = self
            .entries
            .iter()
            .rev()
            .find(|entry| entry.is_message && entry.packet_id == packet_id);
        last.is_some_and(|entry| entry.digest == digest)
    }

    /// Whether it waits for its acknowledgement.
    pub fn is_waiting(&self, packet_id: NonZeroU16) -> bool {
        let mut waiting = self.entries.range(self.acknowledged..);
        waiting.any(|entry| entry.packet_id == packet_id)
    }

    /// A message that gets this sequence.
    pub fn push(&mut self, sequence: u64, packet_id: NonZeroU16, digest: u64) {
        self.entries.push_back(Entry {
            sequence,
            digest,
            packet_id,
            reason: Reason::SUCCESS,
            is_message: true,
        });
    }

    /// An answer in its turn: once all up to this sequence is durable.
    pub fn push_answer(&mut self, sequence: u64, packet_id: NonZeroU16, reason: Reason) {
        self.entries.push_back(Entry {
            sequence,
            digest: 0,
            packet_id,
            reason,
            is_message: false,
        });
    }

    /// All up to this sequence is durable: answers what waited for it.
    pub fn acknowledge(&mut self, sequence: u64, mut answer: impl FnMut(NonZeroU16, Reason)) {
        while let Some(entry) = self.entries.get(self.acknowledged)
            && entry.sequence <= sequence
        {
            answer(entry.packet_id, entry.reason);
            self.acknowledged += 1;
        }
        self.trim();
    }

    fn trim(&mut self) {
        let surplus = self.acknowledged.saturating_sub(self.known_max);
        self.entries.drain(..surplus);
        self.acknowledged -= surplus;
        // An idle session holds little.
        if self.entries.is_empty() && self.entries.capacity() > 64 {
            self.entries = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch(3);

    fn id(id: u16) -> NonZeroU16 {
        NonZeroU16::new(id).unwrap()
    }

    fn acknowledged(window: &mut Window, sequence: u64) -> Vec<(u16, Reason)> {
        let mut answers = Vec::new();
        window.acknowledge(sequence, |id, reason| answers.push((id.get(), reason)));
        answers
    }

    #[test]
    fn answers_come_in_the_order_of_messages_once_those_are_durable() {
        let mut window = Window::new(EPOCH, true);
        window.push(1, id(10), 0);
        window.push_answer(1, id(11), Reason::QUOTA_EXCEEDED);
        window.push(2, id(12), 0);
        assert_eq!((window.waiting(), acknowledged(&mut window, 0)), (3, vec![]));
        assert_eq!(
            acknowledged(&mut window, 1),
            [(10, Reason::SUCCESS), (11, Reason::QUOTA_EXCEEDED)]
        );
        assert!(window.is_waiting(id(12)) && !window.is_waiting(id(10)));
        assert_eq!(acknowledged(&mut window, 9), [(12, Reason::SUCCESS)]);
        assert_eq!(window.waiting(), 0);
    }

    #[test]
    fn a_duplicate_is_known_by_its_id_and_content() {
        let mut window = Window::new(EPOCH, true);
        window.push(1, id(1), 100);
        assert!(window.knows(id(1), 100) && !window.knows(id(1), 101) && !window.knows(id(2), 100));
        acknowledged(&mut window, 1);
        assert!(window.knows(id(1), 100));
        // The id was given to another message: the client has the acknowledgement of the first.
        window.push(2, id(1), 200);
        assert!(window.knows(id(1), 200) && !window.knows(id(1), 100));
    }

    #[test]
    fn the_next_connection_knows_what_was_stored_and_nothing_else() {
        let mut window = Window::new(EPOCH, true);
        window.push(1, id(1), 100);
        window.push_answer(1, id(9), Reason::SUCCESS);
        window.push(2, id(2), 200);
        window.push(3, id(3), 300);
        acknowledged(&mut window, 1);
        // The hub stored one that it could not acknowledge any more.
        let mut window = window.resumed(2, true);
        assert_eq!((window.epoch(), window.waiting()), (EPOCH, 0));
        assert!(window.knows(id(1), 100) && window.knows(id(2), 200));
        assert!(!window.knows(id(3), 300), "what was not stored has to be stored");
        window.push(3, id(3), 300);
        assert_eq!(acknowledged(&mut window, 3), [(3, Reason::SUCCESS)]);
    }

    #[test]
    fn what_is_known_is_bounded() {
        let mut window = Window::new(EPOCH, true);
        for n in 1..=1000 {
            window.push(n, id(n as u16), n);
        }
        assert_eq!(window.waiting(), 1000);
        acknowledged(&mut window, 1000);
        assert_eq!(window.entries.len(), KNOWN_MAX);
        assert!(window.knows(id(1000), 1000) && !window.knows(id(744), 744));
        let mut window = window.resumed(1000, false);
        assert!(!window.knows(id(1000), 1000));
        window.push(1001, id(1), 1);
        acknowledged(&mut window, 1001);
        assert!(window.entries.is_empty());
    }
}
