//! Facts the MQTT door states.

/// How a connection began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Began {
    Tls,
    WebSocket,
}

impl Began {
    pub const ALL: [Self; 2] = [Self::Tls, Self::WebSocket];

    /// A label for metrics, from this closed set.
    pub fn label(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::WebSocket => "websocket",
        }
    }
}

/// Implemented by `metrics`. All events are rare against messages.
pub trait Observer: Send + Sync {
    fn connection_opened(&self, _began: Began) {}
    fn connection_closed(&self, _began: Began) {}
    /// TLS failed, or no CONNECT came in time, or the hub holds as many connections as it may.
    fn handshake_failed(&self) {}
    /// A credential was refused; the label is from a closed set.
    fn auth_refused(&self, _label: &'static str) {}
    /// A CONNECT was refused; the label is from a closed set.
    fn connect_refused(&self, _label: &'static str) {}
    fn session_opened(&self) {}
    fn session_closed(&self) {}
    /// The hub ended a connection; the label is from a closed set.
    fn ended(&self, _label: &'static str) {}
    /// A message was refused with a reason and the connection went on; the label is from a closed set.
    fn message_refused(&self, _label: &'static str) {}
    /// A message that came again was acknowledged and not stored again.
    fn duplicate(&self) {}
    fn will_published(&self) {}
}

impl Observer for () {}
