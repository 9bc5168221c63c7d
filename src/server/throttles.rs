//! The throttles in the hub's terms, and the day's count on disk.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::config::Config;
use crate::hub::Throttles;
use crate::hub::throttle::{self, DeviceRates, Rate};

/// How much counting a kill may cost.
const STORE_EVERY: Duration = Duration::from_secs(10);
/// A stop waits no longer for the store than this.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) fn settings(config: &Config) -> throttle::Config {
    let throttles = &config.throttles;
    let rate = |per_second, burst| Rate { per_second, burst };
    throttle::Config {
        // In the order of `throttle::Class::ALL`.
        hub: [
            rate(throttles.registry_per_second, throttles.registry_burst),
            rate(throttles.connections_per_second, throttles.connections_burst),
            rate(throttles.d2c_messages_per_second, throttles.d2c_messages_burst),
            rate(throttles.queries_per_second, throttles.queries_burst),
            rate(throttles.c2d_sends_per_second, throttles.c2d_sends_burst),
            rate(throttles.c2d_receives_per_second, throttles.c2d_receives_burst),
            rate(throttles.method_bytes_per_second, throttles.method_bytes_burst),
            rate(throttles.twin_reads_per_second, throttles.twin_reads_burst),
            rate(throttles.twin_updates_per_second, throttles.twin_updates_burst),
        ],
        device: DeviceRates {
            messages: rate(throttles.device_messages_per_second, throttles.device_messages_burst),
            bytes: rate(throttles.device_bytes_per_second, throttles.device_bytes_burst),
        },
        wait_max: throttles.wait_max,
        waiters_max: throttles.waiters_max as usize,
        daily_messages_max: u64::from(throttles.daily_messages_max),
    }
}

/// Writes the day's count down every now and then, until the task is dropped.
pub(super) async fn keep_count(throttles: Arc<Throttles>) {
    loop {
        tokio::time::sleep(STORE_EVERY).await;
        store_count(&throttles).await;
    }
}

/// Writes the day's count down; whether that is done.
pub(super) async fn store_count(throttles: &Throttles) -> bool {
    let (sender, stored) = oneshot::channel();
    throttles.store_count(move |result| drop(sender.send(result)));
    match tokio::time::timeout(STORE_TIMEOUT, stored).await {
        // The sender is gone: there was nothing to write.
        Ok(Ok(Ok(())) | Err(_)) => true,
        Ok(Ok(Err(error))) => {
            tracing::warn!(%error, "the day's count of messages was not stored");
            false
        }
        Err(_) => false,
    }
}
