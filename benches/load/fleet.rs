//! The devices of a measurement, connected.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use forebay::client::backoff::BackoffConfig;
use forebay::client::device::{Device, DeviceOptions};
use forebay::client::endpoint::ClientEndpoint;
use tokio::task::JoinSet;

use crate::hub::{Hub, Member};
use crate::progress::Progress;

/// A connection that takes longer fails the measurement.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// How the devices of a fleet behave.
#[derive(Clone, Copy, Debug)]
pub struct FleetOptions {
    /// Messages of one frame at most.
    pub batch: u32,
    /// What a device may hold unacknowledged.
    pub buffer_bytes: u64,
    /// Connections that are being made at a time.
    pub parallel: usize,
}

impl Default for FleetOptions {
    fn default() -> Self {
        Self {
            batch: 1024,
            buffer_bytes: 64 << 20,
            parallel: 64,
        }
    }
}

impl FleetOptions {
    fn device(self, hub: &Hub, member: &Member) -> DeviceOptions {
        let mut options = hub.device_options(member);
        options.batch_count_max = self.batch;
        options.buffer.bytes_max = self.buffer_bytes;
        // The client waits for the hub, not the other way round.
        options.backoff = BackoffConfig {
            wait_min: Duration::from_millis(5),
            wait_max: Duration::from_millis(50),
            ..BackoffConfig::default()
        };
        options
    }
}

/// Connects every member and waits until the hub has welcomed all; in the members' order. `endpoint` says which socket
/// a member uses.
///
/// # Errors
/// The hub refuses one, or one is not welcomed in time.
pub async fn connect(
    hub: &Hub,
    members: &[Member],
    options: FleetOptions,
    endpoint: impl Fn(usize) -> ClientEndpoint,
) -> anyhow::Result<Vec<Device>> {
    let mut progress = Progress::new("connect", members.len() as u64);
    let mut devices = vec![None; members.len()];
    let mut connecting = JoinSet::new();
    let mut next = members.iter().enumerate();
    loop {
        while connecting.len() < options.parallel.max(1)
            && let Some((index, member)) = next.next()
        {
            let device = Device::start(endpoint(index), options.device(hub, member))?;
            connecting.spawn(async move {
                match tokio::time::timeout(CONNECT_TIMEOUT, device.connected()).await {
                    Ok(Ok(())) => Ok((index, device)),
                    Ok(Err(error)) => Err(anyhow::Error::from(error)),
                    Err(_) => bail!("not welcomed within {CONNECT_TIMEOUT:?}"),
                }
                .with_context(|| format!("device bench-{index}"))
            });
        }
        let Some(connected) = connecting.join_next().await else {
            return Ok(devices.into_iter().flatten().collect());
        };
        let (index, device) = connected??;
        devices[index] = Some(device);
        progress.add(1);
    }
}

/// Messages of all devices that are stored, by the hub's word.
pub fn acknowledged(devices: &[Device]) -> u64 {
    devices.iter().map(|device| device.last_acknowledged().0).sum()
}

/// Waits until nothing is unacknowledged.
///
/// # Errors
/// It takes longer than `timeout`.
pub async fn drained(devices: &[Device], timeout: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    while let Some(waiting) = devices.iter().map(Device::waiting).find(|waiting| *waiting > 0) {
        if Instant::now() > deadline {
            bail!("{waiting} messages of a device are unacknowledged after {timeout:?}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Bytes that neither a disk nor a codec can shorten, the same in every run.
pub fn body(bytes: usize) -> Vec<u8> {
    // Marsaglia's xorshift64.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let words = std::iter::repeat_with(next).take(bytes.div_ceil(8));
    let mut body: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    body.truncate(bytes);
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_their_size_and_all_byte_values() {
        assert_eq!(body(0).len(), 0);
        assert_eq!(body(13).len(), 13);
        let body = body(64 << 10);
        for value in 0..=u8::MAX {
            let count = body.iter().filter(|byte| **byte == value).count();
            assert!((128..=384).contains(&count), "{value}: {count} of about 256");
        }
    }
}
