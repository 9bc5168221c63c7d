//! Open loop: what each device sends at which moment is settled before the first message leaves.
//!
//! A device sends in bursts, every `burst` milliseconds all that came due; devices take turns over the milliseconds of a
//! burst. A thread of its own keeps the clock, since the runtime's timers are too coarse for latencies below a millisecond.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use forebay::client::device::Device;
use hdrhistogram::Histogram;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::measure::{latencies, record};

const TICK: Duration = Duration::from_millis(1);
/// After the last message; then what is missing is an error.
pub const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(30);

/// The schedule of one device.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Messages that come due in one burst; may be a fraction.
    per_burst: f64,
    /// Ticks between two bursts.
    burst_ticks: u64,
    bursts: u64,
}

impl Pace {
    /// `rate`: messages a second of one device.
    pub fn new(rate: f64, burst_ms: u64, time: Duration) -> Self {
        let burst_ticks = burst_ms.max(1);
        Self {
            per_burst: rate * burst_ticks as f64 / 1000.0,
            burst_ticks,
            bursts: time.as_millis() as u64 / burst_ticks,
        }
    }

    fn ticks(&self) -> u64 {
        self.bursts * self.burst_ticks
    }

    /// Messages of the first `bursts` bursts.
    pub fn messages(&self, bursts: u64) -> u64 {
        (bursts as f64 * self.per_burst).round() as u64
    }

    /// When a device's burst is due, in a schedule that begins at `start`.
    pub fn due(&self, start: Instant, device: usize, burst: u64) -> Instant {
        start + TICK * self.tick(device, burst) as u32
    }

    /// The tick of a device's burst.
    fn tick(&self, device: usize, burst: u64) -> u64 {
        burst * self.burst_ticks + device as u64 % self.burst_ticks
    }
}

/// Running senders.
pub struct Paced {
    sender: JoinHandle<anyhow::Result<()>>,
    receivers: Vec<JoinHandle<anyhow::Result<Histogram<u64>>>>,
}

impl Paced {
    /// Latencies count for what is due at `measured_from` or later.
    pub fn start(devices: &[Device], pace: Pace, body: &[u8], measured_from: Instant) -> Self {
        let (clock, ticks) = watch::channel(0);
        let start = Instant::now() + Duration::from_millis(10);
        std::thread::spawn(move || keep_time(start, pace.ticks(), &clock));
        let receiver = |(index, device): (usize, &Device)| {
            let due = move |burst| pace.due(start, index, burst);
            tokio::spawn(receive(device.clone(), pace, due, measured_from))
        };
        let receivers = devices.iter().enumerate().map(receiver).collect();
        let sender = tokio::spawn(send(devices.to_vec(), pace, body.into(), ticks));
        Self { sender, receivers }
    }

    /// Waits for the end of the schedule and the last acknowledgement; returns the latencies, in microseconds.
    ///
    /// # Errors
    /// A device was refused, or its acknowledgements stopped.
    pub async fn finish(self) -> anyhow::Result<Histogram<u64>> {
        self.sender.await??;
        let mut all = latencies();
        for receiver in self.receivers {
            let latencies = tokio::time::timeout(ACKNOWLEDGE_TIMEOUT, receiver)
                .await
                .with_context(|| format!("acknowledgements are missing after {ACKNOWLEDGE_TIMEOUT:?}"))??;
            all.add(latencies?)?;
        }
        Ok(all)
    }
}

/// Tells each of so many devices when its bursts are due, by their numbers, until the schedule ends.
pub fn bursts(devices: usize, pace: Pace, start: Instant) -> Vec<mpsc::UnboundedReceiver<u64>> {
    let (clock, mut ticks) = watch::channel(0);
    std::thread::spawn(move || keep_time(start, pace.ticks(), &clock));
    let (turns, told): (Vec<_>, Vec<_>) = (0..devices).map(|_| mpsc::unbounded_channel()).unzip();
    tokio::spawn(async move {
        let mut done = 0;
        while done < pace.ticks() {
            let begun = *ticks.borrow_and_update();
            for tick in done..begun {
                let (burst, turn) = (tick / pace.burst_ticks, (tick % pace.burst_ticks) as usize);
                for device in turns.iter().skip(turn).step_by(pace.burst_ticks as usize) {
                    // One that has failed says so itself.
                    let _ = device.send(burst);
                }
            }
            done = begun;
            if done < pace.ticks() && ticks.changed().await.is_err() {
                return;
            }
        }
    });
    told
}

/// Tells how many ticks have begun, until all have or nobody listens.
fn keep_time(start: Instant, ticks: u64, clock: &watch::Sender<u64>) {
    fine_timers();
    for tick in 0..ticks {
        let due = start + TICK * tick as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if clock.send(tick + 1).is_err() {
            return;
        }
    }
}

/// The kernel may wake a thread 50 us late to save energy, which would count as the hub's latency. For this thread only:
/// a hub started later inherits from the main one.
fn fine_timers() {
    // `PID/task/TID`
    let thread = std::fs::read_link("/proc/thread-self").ok();
    if let Some(id) = thread.as_deref().and_then(|path| path.file_name()) {
        let file = std::path::Path::new("/proc").join(id).join("timerslack_ns");
        // Not allowed everywhere; latencies are then a little worse than they are.
        let _ = std::fs::write(file, "1");
    }
}

async fn send(
    devices: Vec<Device>,
    pace: Pace,
    body: Arc<[u8]>,
    mut ticks: watch::Receiver<u64>,
) -> anyhow::Result<()> {
    let mut sent = vec![0_u64; devices.len()];
    let mut done = 0;
    while done < pace.ticks() {
        let begun = *ticks.borrow_and_update();
        for tick in done..begun {
            let burst = tick / pace.burst_ticks;
            let turn = (tick % pace.burst_ticks) as usize;
            let step = pace.burst_ticks as usize;
            for index in (turn..devices.len()).step_by(step) {
                let due = pace.messages(burst + 1) - sent[index];
                if due > 0 {
                    let bodies = std::iter::repeat_n(&*body, due as usize);
                    // What a full buffer does not take stays due; its latency goes on counting.
                    sent[index] += devices[index].try_send_bodies(bodies)?.1 as u64;
                }
            }
        }
        done = begun;
        if done < pace.ticks() {
            ticks.changed().await.context("the clock has stopped")?;
        }
    }
    // What a full buffer held back goes out last.
    for (device, sent) in devices.iter().zip(sent) {
        for _ in sent..pace.messages(pace.bursts) {
            let mut rest = std::iter::once(&*body);
            while device.try_send_bodies(rest)?.1 == 0 {
                device.moved().await;
                rest = std::iter::once(&*body);
            }
        }
    }
    Ok(())
}

async fn receive(
    device: Device,
    pace: Pace,
    due: impl Fn(u64) -> Instant,
    measured_from: Instant,
) -> anyhow::Result<Histogram<u64>> {
    let mut latencies = latencies();
    let before = device.last_acknowledged().0;
    let total = pace.messages(pace.bursts);
    let (mut counted, mut burst) = (0, 0);
    while counted < total {
        let acknowledged = device.last_acknowledged().0 - before;
        let now = Instant::now();
        while counted < acknowledged {
            if pace.messages(burst + 1) <= counted {
                burst += 1;
                continue;
            }
            let of_burst = pace.messages(burst + 1).min(acknowledged) - counted;
            let due = due(burst);
            if due >= measured_from {
                record(&mut latencies, now.saturating_duration_since(due), of_burst)?;
            }
            counted += of_burst;
        }
        if let Some((code, reason)) = device.failure() {
            bail!("the hub refused {}: {reason}", code.label());
        }
        if counted < total {
            device.moved().await;
        }
    }
    Ok(latencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_holds_the_rate() {
        for (rate, burst_ms) in [(2500.0, 1), (12_500.0, 1), (128.0, 500), (0.5, 10), (333.3, 7)] {
            let pace = Pace::new(rate, burst_ms, Duration::from_secs(70));
            let expected = rate * pace.ticks() as f64 / 1000.0;
            let total = pace.messages(pace.bursts) as f64;
            assert!((total - expected).abs() <= 1.0, "{rate}/s: {total} of {expected}");
        }
    }

    #[test]
    fn devices_take_turns_over_a_burst() {
        let pace = Pace::new(128.0, 500, Duration::from_secs(5));
        assert_eq!(pace.tick(0, 0), 0);
        assert_eq!(pace.tick(499, 0), 499);
        assert_eq!(pace.tick(500, 3), 1500);
    }

    #[tokio::test]
    async fn every_burst_is_told_once_and_not_before_it_is_due() {
        let (pace, start) = (Pace::new(100.0, 4, Duration::from_millis(20)), Instant::now());
        for (device, mut told) in bursts(6, pace, start).into_iter().enumerate() {
            for burst in 0..5 {
                assert_eq!(told.recv().await, Some(burst));
                assert!(Instant::now() >= pace.due(start, device, burst));
            }
            assert_eq!(told.recv().await, None);
        }
    }
}
