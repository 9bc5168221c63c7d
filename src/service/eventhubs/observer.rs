//! Facts the built-in endpoint states.

/// Implemented by `metrics`.
pub trait Observer: Send + Sync {
    /// Bytes of AMQP messages, and events, handed to a consumer's connection; called for many events together.
    fn delivered(&self, _bytes: u64, _events: u64) {}
    /// A reader took a partition from another.
    fn displaced(&self) {}
}

impl Observer for () {}
