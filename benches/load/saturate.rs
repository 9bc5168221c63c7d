//! Closed loop: each device keeps a set number of messages unacknowledged.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use forebay::client::device::Device;
use hdrhistogram::Histogram;
use tokio::task::JoinHandle;

use crate::measure::{latencies, record};

const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// How each device sends.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Messages handed over at a time.
    pub batch: usize,
    /// Messages unacknowledged at most; at least `batch`.
    pub in_flight: usize,
}

/// Running senders, one task a device.
pub struct Saturation {
    stop: Arc<AtomicBool>,
    senders: Vec<JoinHandle<anyhow::Result<Histogram<u64>>>>,
}

impl Saturation {
    /// Latencies count for what is handed over at `measured_from` or later.
    pub fn start(devices: &[Device], load: Load, body: &[u8], measured_from: Instant) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let body: Arc<[u8]> = body.into();
        let sender =
            |device: &Device| tokio::spawn(send(device.clone(), load, body.clone(), measured_from, stop.clone()));
        Self {
            senders: devices.iter().map(sender).collect(),
            stop: stop.clone(),
        }
    }

    /// Nothing is handed over from now on; returns the latencies, in microseconds.
    ///
    /// # Errors
    /// A device was refused, or its acknowledgements stopped.
    pub async fn stop(self) -> anyhow::Result<Histogram<u64>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = latencies();
        for sender in self.senders {
            let latencies = tokio::time::timeout(STOP_TIMEOUT, sender)
                .await
                .with_context(|| format!("no acknowledgement for {STOP_TIMEOUT:?}"))??;
            all.add(latencies?)?;
        }
        Ok(all)
    }
}

async fn send(
    device: Device,
    load: Load,
    body: Arc<[u8]>,
    measured_from: Instant,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<Histogram<u64>> {
    let mut latencies = latencies();
    // Handed over together: last sequence, when, how many.
    let mut groups: VecDeque<(u64, Instant, u64)> = VecDeque::new();
    let mut pushed = device.last_acknowledged().0;
    loop {
        let acknowledged = device.last_acknowledged().0;
        let now = Instant::now();
        while let Some(&(last, at, count)) = groups.front()
            && last <= acknowledged
        {
            if at >= measured_from {
                record(&mut latencies, now - at, count)?;
            }
            groups.pop_front();
        }
        if stop.load(Ordering::Relaxed) && groups.is_empty() {
            return Ok(latencies);
        }
        let room = load.in_flight.saturating_sub((pushed - acknowledged) as usize);
        let wanted = room / load.batch * load.batch;
        if wanted > 0 && !stop.load(Ordering::Relaxed) {
            let (last, count) = device.try_send_bodies(std::iter::repeat_n(&*body, wanted))?;
            if let Some(last) = last {
                pushed = last.0;
                groups.push_back((pushed, now, count as u64));
            }
        }
        if let Some((code, reason)) = device.failure() {
            bail!("the hub refused {}: {reason}", code.label());
        }
        device.moved().await;
    }
}
