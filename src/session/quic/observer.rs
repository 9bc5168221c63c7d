//! Facts the native door states.

use crate::wire::close::CloseCode;

/// How a handshake came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Handshake {
    Full,
    /// The client's first flight carried data under a resumed session, and was accepted.
    Resumed0Rtt,
    /// TLS or transport failed, or the client went away.
    Failed,
    /// No hello in time.
    TimedOut,
    /// Answered with a Retry, because too many began at once; it comes again.
    Retried,
    /// Refused, because the hub holds as many sessions as it may.
    Refused,
}

impl Handshake {
    pub const ALL: [Self; 6] = [
        Self::Full,
        Self::Resumed0Rtt,
        Self::Failed,
        Self::TimedOut,
        Self::Retried,
        Self::Refused,
    ];

    /// A label for metrics, from this closed set.
    pub fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Resumed0Rtt => "resumed_0rtt",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Retried => "retried",
            Self::Refused => "refused",
        }
    }
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    Device,
    Service,
}

/// Implemented by `metrics`. All events are rare against messages.
pub trait Observer: Send + Sync {
    fn handshake(&self, _outcome: Handshake) {}
    fn session_opened(&self, _peer: Peer) {}
    fn session_closed(&self, _peer: Peer) {}
    /// The hub closed a connection, or refused it, for this reason.
    fn closed(&self, _code: CloseCode) {}
    /// A credential was refused; the label is from a closed set.
    fn auth_refused(&self, _label: &'static str) {}
    /// Log bytes, and the messages in them, handed to a consumer.
    fn delivered(&self, _bytes: u64, _messages: u64) {}
    fn checkpoint_stored(&self) {}
}

impl Observer for () {}
