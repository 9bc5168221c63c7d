//! A connection's bytes: packets out of what TLS decrypted, and what is sent.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use super::ended::Ended;
use crate::net::Stream;
use crate::proto::mqtt::{Error, Header, Packet, Version};

/// A packet's beginning is kept in no more memory than this once it is read.
const CARRY_KEPT_BYTES: usize = 4 * 1024;

pub(super) struct Io<S> {
    stream: S,
    /// A packet whose end has not come; the others are read where they stand.
    carry: Vec<u8>,
    packet_bytes_max: usize,
    sending: Vec<u8>,
    sent: usize,
    needs_flush: bool,
    /// Since when the client takes nothing.
    pub stalled_since: Option<Instant>,
}

impl<S: Stream> Io<S> {
    pub fn new(stream: S, packet_bytes_max: usize) -> Self {
        Self {
            stream,
            carry: Vec::new(),
            packet_bytes_max,
            sending: Vec::new(),
            sent: 0,
            needs_flush: false,
            stalled_since: None,
        }
    }

    /// Hands over packets until there are no more, or `take` wants to stop. Pending only if none came.
    pub fn poll_packets(
        &mut self,
        context: &mut Context<'_>,
        version: Version,
        mut take: impl FnMut(Packet<'_>) -> Result<bool, Ended>,
    ) -> Poll<Result<(), Ended>> {
        let mut has_some = false;
        let mut take = |packet: Packet<'_>| {
            has_some = true;
            take(packet)
        };
        loop {
            let chunk = match Pin::new(&mut self.stream).poll_fill_buf(context) {
                Poll::Ready(Ok(chunk)) if !chunk.is_empty() => chunk,
                Poll::Ready(Ok(_) | Err(_)) => return Poll::Ready(Err(Ended::lost())),
                Poll::Pending => break,
            };
            let (used, goes_on) = cut(&mut self.carry, chunk, version, self.packet_bytes_max, &mut take)?;
            Pin::new(&mut self.stream).consume(used);
            if !goes_on {
                break;
            }
        }
        if has_some { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Sends what is in `out`, as far as the socket takes it.
    pub fn poll_send(&mut self, context: &mut Context<'_>, out: &mut Vec<u8>) -> Result<(), Ended> {
        loop {
            if self.sent == self.sending.len() {
                self.sending.clear();
                self.sent = 0;
                if out.is_empty() {
                    // A quiet connection holds little.
                    if self.sending.capacity() > 1024 {
                        self.sending = Vec::new();
                    }
                    break;
                }
                std::mem::swap(&mut self.sending, out);
            }
            match Pin::new(&mut self.stream).poll_write(context, &self.sending[self.sent..]) {
                Poll::Ready(Ok(0) | Err(_)) => return Err(Ended::lost()),
                Poll::Ready(Ok(written)) => {
                    self.sent += written;
                    self.needs_flush = true;
                    self.stalled_since = None;
                }
                Poll::Pending => {
                    self.stalled_since.get_or_insert_with(Instant::now);
                    return Ok(());
                }
            }
        }
        if self.needs_flush {
            match Pin::new(&mut self.stream).poll_flush(context) {
                Poll::Ready(Ok(())) => (self.needs_flush, self.stalled_since) = (false, None),
                Poll::Ready(Err(_)) => return Err(Ended::lost()),
                Poll::Pending => {
                    self.stalled_since.get_or_insert_with(Instant::now);
                }
            }
        }
        Ok(())
    }

    fn has_unsent(&self) -> bool {
        self.needs_flush || self.sent < self.sending.len()
    }

    /// Sends the last words, and closes.
    pub async fn finish(&mut self, mut out: Vec<u8>, timeout: Duration) {
        let sent = std::future::poll_fn(|context| match self.poll_send(context, &mut out) {
            Ok(()) if self.has_unsent() || !out.is_empty() => Poll::Pending,
            Ok(()) => {
                let _ = ready!(Pin::new(&mut self.stream).poll_shutdown(context));
                Poll::Ready(())
            }
            Err(_) => Poll::Ready(()),
        });
        let _ = tokio::time::timeout(timeout, sent).await;
    }
}

/// Cuts packets out of a chunk, after what is carried: how much of the chunk was used, and whether to go on.
fn cut(
    carry: &mut Vec<u8>,
    chunk: &[u8],
    version: Version,
    packet_bytes_max: usize,
    take: &mut impl FnMut(Packet<'_>) -> Result<bool, Ended>,
) -> Result<(usize, bool), Ended> {
    let mut used = 0;
    let mut goes_on = true;
    while goes_on && used < chunk.len() {
        let rest = &chunk[used..];
        if carry.is_empty() {
            match decode(rest, version, packet_bytes_max)? {
                Some((packet, bytes)) => {
                    used += bytes;
                    goes_on = take(packet)?;
                }
                None => {
                    carry.extend_from_slice(rest);
                    used = chunk.len();
                }
            }
            continue;
        }
        // As many bytes as are known to be missing: one by one until the length is known.
        let missing = match header(carry, packet_bytes_max)? {
            Some(header) => header.packet_bytes() - carry.len(),
            None => 1,
        };
        let more = missing.min(rest.len());
        carry.extend_from_slice(&rest[..more]);
        used += more;
        if let Some((packet, _)) = decode(carry, version, packet_bytes_max)? {
            goes_on = take(packet)?;
            carry.clear();
            if carry.capacity() > CARRY_KEPT_BYTES {
                *carry = Vec::new();
            }
        }
    }
    Ok((used, goes_on))
}

#[inline]
fn decode(bytes: &[u8], version: Version, packet_bytes_max: usize) -> Result<Option<(Packet<'_>, usize)>, Ended> {
    let decoded = Packet::decode(bytes, version).map_err(Ended::malformed)?;
    match decoded {
        Some((_, bytes)) if bytes > packet_bytes_max => Err(Ended::malformed(Error::TooLarge)),
        Some(decoded) => Ok(Some(decoded)),
        // Before it has come.
        None => header(bytes, packet_bytes_max).map(|_| None),
    }
}

fn header(bytes: &[u8], packet_bytes_max: usize) -> Result<Option<Header>, Ended> {
    let header = Header::read(bytes).map_err(Ended::malformed)?;
    match header {
        Some(header) if header.packet_bytes() > packet_bytes_max => Err(Ended::malformed(Error::TooLarge)),
        header => Ok(header),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::mqtt::{Properties, Publish, QoS};

    const MAX: usize = 1000;

    fn packets(payloads: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for payload in payloads {
            let publish = Publish {
                is_dup: false,
                qos: QoS::AtMostOnce,
                is_retain: false,
                topic: "t",
                packet_id: None,
                properties: Properties::NONE,
                payload,
            };
            Packet::Publish(publish).encode(Version::V3, &mut bytes).unwrap();
        }
        bytes
    }

    /// What is read of chunks, stopping after each so many packets.
    fn read(chunks: &[&[u8]], stop_every: usize) -> Result<Vec<Vec<u8>>, Ended> {
        let (mut carry, mut payloads) = (Vec::new(), Vec::new());
        for chunk in chunks {
            let mut unread = *chunk;
            while !unread.is_empty() {
                let mut taken = 0;
                let (used, _) = cut(&mut carry, unread, Version::V3, MAX, &mut |packet| {
                    let Packet::Publish(publish) = packet else {
                        panic!("{packet:?}")
                    };
                    payloads.push(publish.payload.to_vec());
                    taken += 1;
                    Ok(taken < stop_every)
                })?;
                unread = &unread[used..];
            }
        }
        Ok(payloads)
    }

    proptest! {
        #[test]
        fn packets_are_read_however_they_are_cut(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            stop_every in 1usize..4,
        ) {
            let bytes = packets(&payloads);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(read(&chunks, stop_every), Ok(payloads));
        }
    }

    #[test]
    fn a_packet_that_is_too_large_is_refused_by_its_header() {
        let bytes = packets(&[vec![0; MAX]]);
        for count in [3, 100, bytes.len()] {
            let refused = read(&[&bytes[..count]], 1).unwrap_err();
            assert_eq!(refused.label, "too_large");
        }
        assert!(read(&[&bytes[..1], &bytes[1..3]], 1).is_err());
        assert!(read(&[&packets(&[vec![0; MAX - 6]])], 1).is_ok());
    }
}
