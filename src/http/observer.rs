//! Facts the HTTPS server states.

use super::route::Route;
use super::websocket::{Protocol, UpgradeRefused};

/// Implemented by `metrics`.
pub trait Observer: Send + Sync {
    /// A request was answered.
    fn answered(&self, _route: Route, _status: u16) {}
    /// A WebSocket was opened.
    fn upgraded(&self, _protocol: Protocol) {}
    /// A request on the path of WebSockets opened none.
    fn upgrade_refused(&self, _reason: UpgradeRefused) {}
    /// A credential was refused; the label is from a closed set.
    fn auth_refused(&self, _label: &'static str) {}
}

impl Observer for () {}
