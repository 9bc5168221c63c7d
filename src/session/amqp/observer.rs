//! Facts the devices' AMQP endpoint states.

/// Implemented by `metrics`.
pub trait Observer: Send + Sync {
    fn session_opened(&self) {}
    fn session_closed(&self) {}
}

impl Observer for () {}
