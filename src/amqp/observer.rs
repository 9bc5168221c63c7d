//! Facts the AMQP server states.

/// How a connection began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Began {
    Tls,
    WebSocket,
    Plain,
}

impl Began {
    pub const ALL: [Self; 3] = [Self::Tls, Self::WebSocket, Self::Plain];

    /// A label for metrics, from this closed set.
    pub fn label(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::WebSocket => "websocket",
            Self::Plain => "plain",
        }
    }
}

/// Implemented by `metrics`. All events are rare against messages.
pub trait Observer: Send + Sync {
    fn connection_opened(&self, _began: Began) {}
    fn connection_closed(&self, _began: Began) {}
    /// TLS failed, or no open came in time, or the hub holds as many connections as it may.
    fn handshake_failed(&self) {}
    fn link_opened(&self) {}
    fn link_closed(&self) {}
    /// The hub refused a message, or refused or ended a link, a session or a connection; the label is a condition of a closed set.
    fn ended(&self, _condition: &'static str) {}
    /// A credential was refused; the label is from a closed set.
    fn auth_refused(&self, _label: &'static str) {}
}

impl Observer for () {}
