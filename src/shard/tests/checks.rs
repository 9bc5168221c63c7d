//! What must hold after each step.

use super::world::{Seen, Session, World};
use super::*;

impl World {
    /// Everything that became durable enters the history; everything that was said to a device is compared with it.
    pub(super) fn check(&mut self) {
        for partition in 0..PARTITIONS {
            let next = self.history[usize::from(partition)].last().map_or(0, Seen::next);
            for seen in self.read(partition, next) {
                self.check_next(partition, &seen);
                self.history[usize::from(partition)].push(seen);
            }
        }
        let mut sessions = std::mem::take(&mut self.process().sessions);
        for session in &mut sessions {
            self.check_answer(session);
            self.check_acknowledged(session);
            self.check_end(session);
        }
        self.process().sessions = sessions;
    }

    pub(super) fn read(&mut self, partition: u16, from: u64) -> Vec<Seen> {
        let view = self.view(partition);
        if view.durable().0 <= from {
            return Vec::new();
        }
        let mut cursor = view.cursor(Start::Sequence(SequenceNumber(from))).expect("retained");
        let mut all = Vec::new();
        while let Some(chunk) = cursor.read(2000).expect("readable") {
            for record in records(&chunk.bytes) {
                let record = record.expect("well formed");
                assert!(record.is_intact());
                let stamp = Stamp::read(record.stamp).expect("a stamp");
                let payload = Payload::new(record.payload, record.header.count).expect("a batch");
                let device = stamp.origin.device_id.strip_prefix("device-").expect("one of ours");
                all.push(Seen {
                    first: record.header.first.0,
                    count: record.header.count,
                    device: device.parse().expect("one of ours"),
                    epoch: stamp.origin.epoch,
                    first_sequence: stamp.first_sequence,
                    bodies: payload
                        .messages()
                        .map(|message| message.expect("valid").body().to_vec())
                        .collect(),
                    enqueued_time: record.header.enqueued_time,
                });
            }
        }
        all
    }

    /// The order of a partition and of each device in it, and that nothing comes twice.
    pub(super) fn check_next(&self, partition: u16, seen: &Seen) {
        let history = &self.history[usize::from(partition)];
        assert_eq!(
            seen.first,
            history.last().map_or(0, Seen::next),
            "sequence numbers are dense"
        );
        assert!(
            history
                .last()
                .is_none_or(|last| last.enqueued_time <= seen.enqueued_time),
            "time goes on"
        );
        assert_eq!(seen.bodies.len(), seen.count as usize);
        assert_eq!(self.devices[seen.device].partition.0, partition);
        let before = history.iter().rfind(|earlier| earlier.device == seen.device);
        let (epoch, last) = before.map_or((0, 0), |before| {
            (before.epoch, before.first_sequence + u64::from(before.count) - 1)
        });
        assert!(
            seen.epoch >= epoch,
            "an older epoch was stored: {seen:?} after {before:?}"
        );
        let last = if seen.epoch == epoch { last } else { 0 };
        assert!(seen.first_sequence > last, "stored twice: {seen:?} after {before:?}");
        for missing in last + 1..seen.first_sequence {
            let key = (seen.device, seen.epoch, missing);
            assert!(self.given_up.contains(&key), "{missing} is missing before {seen:?}");
        }
        let text = |body: &[u8]| {
            let end = body.iter().position(|byte| *byte == b'#').expect("our body");
            let text = std::str::from_utf8(&body[..end]).expect("our body").to_owned();
            text.split('/')
                .map(|part| part.parse::<u64>().expect("our body"))
                .collect::<Vec<_>>()
        };
        let life = text(&seen.bodies[0])[1];
        for (sequence, body) in (seen.first_sequence..).zip(&seen.bodies) {
            assert_eq!(
                text(body),
                [seen.device as u64, life, sequence],
                "the device's bytes, unchanged"
            );
        }
        if let Some(before) = before.filter(|before| before.epoch == seen.epoch) {
            assert_eq!(text(&before.bodies[0])[1], life, "an epoch holds one life of a buffer");
        }
    }

    pub(super) fn check_after_restart(&mut self, partition: u16, may_lose: bool) {
        let view = self.view(partition);
        let (first, end) = (view.first_retained().0, view.durable().0);
        let read = self.read(partition, first);
        let index = usize::from(partition);
        let known = self.history[index].last().map_or(0, Seen::next);
        if end < known {
            assert!(may_lose, "{end} of {known} durable records are left");
            // What is lost was promised at a level that does not survive a power cut: also under epochs of before.
            let lost = self.history[index].extract_if(.., |seen| seen.first >= end);
            self.given_up.extend(lost.flat_map(|seen| {
                let sequences = seen.first_sequence..seen.first_sequence + u64::from(seen.count);
                sequences.map(move |sequence| (seen.device, seen.epoch, sequence))
            }));
            let stored = self.stored();
            for (n, device) in self
                .devices
                .iter_mut()
                .enumerate()
                .filter(|(_, device)| device.partition.0 == partition)
            {
                let last = device
                    .epoch
                    .and_then(|epoch| stored.get(&(n, epoch.0)).and_then(BTreeSet::last));
                let last = last.copied().unwrap_or(0);
                let epoch = device.epoch.unwrap_or_default().0;
                self.given_up
                    .extend((last + 1..=device.promised).map(|sequence| (n, epoch, sequence)));
            }
        }
        let kept = self.history[index].iter().filter(|seen| seen.first >= first);
        assert!(
            read.iter().zip(kept.clone()).all(|(read, kept)| read == kept),
            "the history is rewritten"
        );
        assert!(read.len() >= kept.count());
    }

    /// The sequences in the history, by device and epoch.
    pub(super) fn stored(&self) -> BTreeMap<(usize, u64), BTreeSet<u64>> {
        let mut stored: BTreeMap<_, BTreeSet<u64>> = BTreeMap::new();
        for seen in self.history.iter().flatten() {
            let sequences = seen.first_sequence..seen.first_sequence + u64::from(seen.count);
            stored.entry((seen.device, seen.epoch)).or_default().extend(sequences);
        }
        stored
    }

    pub(super) fn assert_stored(&self, device: usize, epoch: Epoch, up_to: u64, why: &str) {
        let stored = self.stored();
        let sequences = stored.get(&(device, epoch.0));
        for sequence in 1..=up_to {
            let is_there = sequences.is_some_and(|sequences| sequences.contains(&sequence));
            assert!(
                is_there || self.given_up.contains(&(device, epoch.0, sequence)),
                "{why}: message {sequence} of device {device}, epoch {} is not durable",
                epoch.0
            );
        }
    }

    pub(super) fn check_answer(&mut self, session: &mut Session) {
        let Some(reply) = &mut session.reply else { return };
        let Ok(answer) = reply.try_recv() else { return };
        session.reply = None;
        let partition = usize::from(self.devices[session.device].partition.0);
        let opened = match answer {
            Ok(opened) => opened,
            Err(OpenError::EarlyData) => return assert_eq!(session.how, Connect::Early),
            Err(OpenError::StaleEpoch { asked, current }) => {
                assert!(asked == session.asked.0 && asked < current);
                // A device that lost its buffer twice may ask for what was given to its earlier life.
                return session.is_closed = true;
            }
            Err(OpenError::Poisoned(_)) => {
                session.is_closed = true;
                return assert!(self.process().partitions[partition].view.is_poisoned());
            }
            Err(error @ (OpenError::Busy | OpenError::State(_) | OpenError::Stopping)) => panic!("{error}"),
        };
        self.assert_stored(
            session.device,
            opened.epoch,
            opened.last_sequence,
            "an opened session promises",
        );
        if session.how == Connect::OldEpoch {
            let stored = self.stored();
            let is_newer_stored = stored
                .keys()
                .any(|(device, epoch)| *device == session.device && *epoch > opened.epoch.0);
            assert!(
                !is_newer_stored,
                "epoch {} was opened after a newer one",
                opened.epoch.0
            );
            session.opened = Some(opened);
            return;
        }
        let device = &mut self.devices[session.device];
        match device.epoch {
            Some(epoch) if session.asked == epoch => assert_eq!(opened.epoch, epoch),
            // The answer to a hello of an earlier life or of a session that was taken over.
            Some(_) => return session.is_closed = true,
            None if session.asked == Epoch(0) => {
                assert_eq!(opened.last_sequence, 0, "a new epoch is empty");
                device.epoch = Some(opened.epoch);
            }
            None => return session.is_closed = true,
        }
        let acknowledged = device.promised;
        if self.durability == Durability::Sync {
            assert!(
                opened.last_sequence >= acknowledged,
                "what was acknowledged is forgotten"
            );
        }
        device.promised = device.promised.max(opened.last_sequence);
        session.next = match session.how {
            Connect::ResendUnacknowledged => acknowledged + 1,
            Connect::Resume | Connect::LostBuffer | Connect::Early | Connect::OldEpoch => device.promised + 1,
        };
        session.has_to_skip = session.next > opened.last_sequence + 1;
        session.opened = Some(opened);
    }

    pub(super) fn check_acknowledged(&mut self, session: &mut Session) {
        let acknowledged = session.link.acknowledged();
        if acknowledged <= session.acknowledged {
            return assert_eq!(acknowledged, session.acknowledged, "acknowledgements only grow");
        }
        let opened = session.opened.expect("only what was sent is acknowledged");
        self.assert_stored(session.device, opened.epoch, acknowledged, "acknowledged");
        session.acknowledged = acknowledged;
        let device = &mut self.devices[session.device];
        if device.epoch == Some(opened.epoch) {
            device.promised = device.promised.max(acknowledged);
        }
    }

    pub(super) fn check_end(&mut self, session: &Session) {
        let Some(end) = session.link.end() else { return };
        let partition = usize::from(self.devices[session.device].partition.0);
        match end.code {
            CloseCode::TakenOver => {
                let later = self.next_session;
                assert!(
                    session.id.0 + 1 < later,
                    "a session takes over only from an earlier one"
                );
            }
            CloseCode::Internal => assert!(self.process().partitions[partition].view.is_poisoned(), "{end:?}"),
            CloseCode::Draining => {}
            code => assert!(session.faults.contains(&code), "{end:?}"),
        }
    }

    pub(super) fn check_rest(&mut self) {
        let process = self.process.as_ref().expect("a hub runs between steps");
        assert_eq!(process.inbox.budgets.inflight_bytes(), 0, "the whole budget is back");
        for session in &process.sessions {
            let partition = usize::from(self.devices[session.device].partition.0);
            let is_running = session.link.end().is_none() && !session.is_closed && session.faults.is_empty();
            if is_running && !process.partitions[partition].view.is_poisoned() {
                assert_eq!(session.acknowledged, session.sent, "a running session gets its answer");
            }
        }
        assert!(process.shard.is_idle(), "nothing is pending");
    }
}
