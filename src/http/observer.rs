//! Facts the HTTPS server states.

use super::route::Route;

/// Implemented by `metrics`.
pub trait Observer: Send + Sync {
    /// A request was answered.
    fn answered(&self, _route: Route, _status: u16) {}
    /// A credential was refused; the label is from a closed set.
    fn auth_refused(&self, _label: &'static str) {}
}

impl Observer for () {}
