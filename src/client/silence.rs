//! Notices a hub that is gone before QUIC does.
//!
//! A hub that was killed answers with a stateless reset once it is back, but only when it is asked: QUIC doubles the time
//! between its probes, so a client whose probes fell into the time without a hub would hold on to the dead connection for
//! many seconds, at worst for its whole idle timeout.

use std::time::{Duration, Instant};

use quinn::{Connection, ConnectionStats};

/// A hub that lives acknowledges packets within a fraction of it, even while it withholds the acknowledgements of
/// messages.
const SILENCE: Duration = Duration::from_secs(4);
const CHECKED_EVERY: Duration = Duration::from_secs(1);

/// Completes when the hub was asked for an answer and none came for `SILENCE`.
pub(super) async fn falls(connection: &Connection) {
    let mut silence = Silence::new(&connection.stats());
    loop {
        tokio::time::sleep(CHECKED_EVERY).await;
        if silence.is_too_long(&connection.stats(), Instant::now()) {
            return;
        }
    }
}

struct Silence {
    received: u64,
    asked: u64,
    unanswered_since: Option<Instant>,
}

impl Silence {
    fn new(stats: &ConnectionStats) -> Self {
        Self {
            received: stats.udp_rx.datagrams,
            asked: asked(stats),
            unanswered_since: None,
        }
    }

    fn is_too_long(&mut self, stats: &ConnectionStats, now: Instant) -> bool {
        if stats.udp_rx.datagrams != self.received {
            *self = Self::new(stats);
            return false;
        }
        if asked(stats) == self.asked {
            return false;
        }
        // What went out in the interval may have gone at its end.
        let since = *self.unanswered_since.get_or_insert(now);
        now.duration_since(since) >= SILENCE
    }
}

/// Counts what a peer has to acknowledge. An acknowledgement of ours asks for nothing (RFC 9000 s13.2.1), and a probe for
/// a larger packet size may vanish on a path that is well.
fn asked(stats: &ConnectionStats) -> u64 {
    let frames = &stats.frame_tx;
    let pings = frames.ping.saturating_sub(stats.path.sent_plpmtud_probes);
    [
        pings,
        frames.ack_frequency,
        frames.crypto,
        frames.data_blocked,
        frames.max_data,
        frames.max_stream_data,
        frames.max_streams_bidi,
        frames.new_connection_id,
        frames.path_challenge,
        frames.path_response,
        frames.reset_stream,
        frames.retire_connection_id,
        frames.stop_sending,
        frames.stream,
        frames.stream_data_blocked,
        frames.streams_blocked_bidi,
    ]
    .iter()
    .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unanswered_questions_make_silence() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut stats = ConnectionStats::default();
        let mut silence = Silence::new(&stats);
        assert!(!silence.is_too_long(&stats, at(100)), "a quiet connection rests");

        // The acknowledgement of the hub's last packet, sent after the check that saw the packet.
        stats.frame_tx.acks += 1;
        stats.udp_tx.datagrams += 1;
        assert!(!silence.is_too_long(&stats, at(101)));
        assert!(
            !silence.is_too_long(&stats, at(110)),
            "nobody answers an acknowledgement"
        );

        stats.frame_tx.ping += 1;
        stats.path.sent_plpmtud_probes += 1;
        assert!(!silence.is_too_long(&stats, at(111)));
        assert!(!silence.is_too_long(&stats, at(120)), "a size probe may be lost");

        stats.frame_tx.stream += 1;
        assert!(!silence.is_too_long(&stats, at(121)));
        assert!(!silence.is_too_long(&stats, at(124)));
        stats.udp_rx.datagrams += 1;
        assert!(!silence.is_too_long(&stats, at(126)), "an answer came");

        stats.frame_tx.ping += 1;
        assert!(!silence.is_too_long(&stats, at(127)));
        assert!(!silence.is_too_long(&stats, at(130)));
        assert!(silence.is_too_long(&stats, at(131)));
    }
}
