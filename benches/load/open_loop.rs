//! Numbered messages at a rate that changes in phases, whatever the hub does: latency counts from when a message was due.
//!
//! Devices send in bursts and take turns over a burst's time. A message carries its device and its number, so that what is
//! read back can be told from what was lost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use forebay::client::device::Device;
use tokio::task::JoinSet;

use crate::fleet;
use crate::mqtt;
use crate::timeline::Timeline;

/// After the last message; then what is missing is an error.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(60);
/// A client of MQTT 3.1.1 that keeps more unacknowledged is read no further by the hub anyway.
const MQTT_INFLIGHT_MAX: usize = 1000;
/// Device and number stand at the beginning of a body.
pub const BODY_BYTES_MIN: usize = 12;

/// A rate for a time.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    pub time: Duration,
    /// Messages a second, of all devices together.
    pub rate: f64,
}

/// What each device sends, and when.
#[derive(Clone, Debug)]
pub struct Plan {
    pub phases: Vec<Phase>,
    pub devices: usize,
    /// Between two bursts of a device.
    pub burst: Duration,
    pub body_bytes: usize,
}

/// Messages of one device that are due together.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Burst {
    /// Since the start.
    due: Duration,
    /// The device's messages up to its end.
    until: u64,
}

impl Plan {
    pub fn time(&self) -> Duration {
        self.phases.iter().map(|phase| phase.time).sum()
    }

    /// Messages of one device that are due at this moment.
    fn messages(&self, at: Duration) -> u64 {
        let mut rest = at;
        let mut messages = 0.0;
        for phase in &self.phases {
            let here = rest.min(phase.time);
            messages += here.as_secs_f64() * phase.rate / self.devices as f64;
            rest -= here;
        }
        messages.round() as u64
    }

    fn bursts(&self, device: usize) -> impl Iterator<Item = Burst> {
        let first = self.burst.mul_f64(device as f64 / self.devices as f64);
        let times = (0..).map(move |n| first + self.burst * n);
        let times = times.take_while(|due| *due < self.time());
        let mut before = 0;
        times.filter_map(move |due| {
            // What comes due until the next one leaves now.
            let until = self.messages(due + self.burst);
            let is_some = until > before;
            before = until;
            is_some.then_some(Burst { due, until })
        })
    }

    fn body(&self, filler: &[u8], device: usize, number: u64) -> Vec<u8> {
        let mut body = filler.to_vec();
        body[..4].copy_from_slice(&(device as u32).to_le_bytes());
        body[4..BODY_BYTES_MIN].copy_from_slice(&number.to_le_bytes());
        body
    }
}

/// Device and number of a body.
pub fn read_body(body: &[u8]) -> Option<(usize, u64)> {
    let (device, rest) = body.split_first_chunk()?;
    Some((
        u32::from_le_bytes(*device) as usize,
        u64::from_le_bytes(*rest.first_chunk()?),
    ))
}

/// Senders that run.
pub struct OpenLoop {
    senders: JoinSet<anyhow::Result<(usize, u64, Timeline)>>,
    /// No further bursts.
    is_over: Arc<AtomicBool>,
}

/// What they sent.
pub struct Sent {
    /// Acknowledged messages of each device.
    pub acknowledged: Vec<u64>,
    pub timeline: Timeline,
}

impl OpenLoop {
    /// `start`: when time begins.
    pub fn over_quic(devices: &[Device], plan: &Plan, start: Instant) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut senders = JoinSet::new();
        for (index, device) in devices.iter().enumerate() {
            let schedule = Schedule::new(plan, index, start, &is_over);
            senders.spawn(over_quic(device.clone(), schedule));
        }
        Self { senders, is_over }
    }

    pub fn over_mqtt(devices: Vec<mqtt::sender::Device>, plan: &Plan, start: Instant) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut senders = JoinSet::new();
        for (index, device) in devices.into_iter().enumerate() {
            let schedule = Schedule::new(plan, index, start, &is_over);
            senders.spawn(over_mqtt(device, schedule));
        }
        Self { senders, is_over }
    }

    /// Ends the plan here, and waits for the last acknowledgement.
    ///
    /// # Errors
    /// As `finish`.
    pub async fn stop(self) -> anyhow::Result<Sent> {
        self.is_over.store(true, Relaxed);
        self.finish().await
    }

    /// Waits for the end of the plan and the last acknowledgement.
    ///
    /// # Errors
    /// A device was refused or lost its connection, or acknowledgements stopped.
    pub async fn finish(mut self) -> anyhow::Result<Sent> {
        let mut acknowledged = vec![0; self.senders.len()];
        let mut timeline = Timeline::default();
        while let Some(ended) = self.senders.join_next().await {
            let (device, count, times) = ended??;
            acknowledged[device] = count;
            timeline.extend(times);
        }
        Ok(Sent { acknowledged, timeline })
    }
}

/// Bursts that are not all acknowledged, oldest first.
#[derive(Default)]
struct Waiting {
    bursts: VecDeque<Burst>,
    acknowledged: u64,
    timeline: Timeline,
}

impl Waiting {
    fn acknowledge(&mut self, acknowledged: u64, since_start: Duration) {
        while self.acknowledged < acknowledged
            && let Some(burst) = self.bursts.front()
        {
            let messages = acknowledged.min(burst.until) - self.acknowledged;
            self.timeline
                .add(burst.due, since_start.saturating_sub(burst.due), messages);
            self.acknowledged += messages;
            self.bursts.pop_front_if(|burst| burst.until <= self.acknowledged);
        }
    }
}

/// What one device has to send yet.
struct Schedule {
    index: usize,
    plan: Plan,
    bursts: VecDeque<Burst>,
    start: Instant,
    is_over: Arc<AtomicBool>,
    filler: Vec<u8>,
    /// Messages that have come due.
    due: u64,
    sent: u64,
    waiting: Waiting,
}

impl Schedule {
    fn new(plan: &Plan, index: usize, start: Instant, is_over: &Arc<AtomicBool>) -> Self {
        Self {
            index,
            bursts: plan.bursts(index).collect(),
            filler: fleet::body(plan.body_bytes),
            plan: plan.clone(),
            start,
            is_over: is_over.clone(),
            due: 0,
            sent: 0,
            waiting: Waiting::default(),
        }
    }

    /// Takes note of what has come due.
    fn come_due(&mut self) {
        if self.is_over.load(Relaxed) {
            self.bursts.clear();
        }
        let start = self.start;
        while let Some(burst) = self.bursts.pop_front_if(|burst| start + burst.due <= Instant::now()) {
            self.due = burst.until;
            self.waiting.bursts.push_back(burst);
        }
    }

    /// The body of the message that is due next.
    fn next(&self) -> Option<Vec<u8>> {
        (self.sent < self.due).then(|| self.plan.body(&self.filler, self.index, self.sent))
    }

    fn acknowledge(&mut self, acknowledged: u64) {
        self.waiting.acknowledge(acknowledged, self.start.elapsed());
    }

    fn is_done(&self) -> bool {
        self.bursts.is_empty() && self.waiting.bursts.is_empty()
    }

    /// When something is to be done without an acknowledgement.
    ///
    /// # Errors
    /// Acknowledgements are missing.
    fn wake_up(&self) -> anyhow::Result<tokio::time::Instant> {
        let oldest = self.waiting.bursts.front().map(|burst| self.start + burst.due);
        let patience_ends = oldest.map(|due| due + ACKNOWLEDGE_TIMEOUT);
        ensure!(
            patience_ends.is_none_or(|at| Instant::now() < at),
            "acknowledgements are missing after {ACKNOWLEDGE_TIMEOUT:?}"
        );
        let next = self.bursts.front().map(|burst| self.start + burst.due);
        let at = [next, patience_ends].into_iter().flatten().min();
        Ok(at.unwrap_or_else(Instant::now).into())
    }

    fn ended(self) -> (usize, u64, Timeline) {
        (self.index, self.sent, self.waiting.timeline)
    }
}

async fn over_quic(device: Device, mut schedule: Schedule) -> anyhow::Result<(usize, u64, Timeline)> {
    let before = device.last_acknowledged().0;
    loop {
        schedule.come_due();
        // What a full buffer does not take stays due.
        while let Some(body) = schedule.next()
            && device.try_send_bodies(std::iter::once(&*body))?.1 == 1
        {
            schedule.sent += 1;
        }
        schedule.acknowledge(device.last_acknowledged().0 - before);
        if schedule.is_done() {
            return Ok(schedule.ended());
        }
        if let Some((code, reason)) = device.failure() {
            bail!("the hub refused {}: {reason}", code.label());
        }
        let wake_up = schedule.wake_up()?;
        tokio::select! {
            () = device.moved() => {}
            () = tokio::time::sleep_until(wake_up) => {}
        }
    }
}

async fn over_mqtt(mut device: mqtt::sender::Device, mut schedule: Schedule) -> anyhow::Result<(usize, u64, Timeline)> {
    let mut acknowledged = 0;
    loop {
        schedule.come_due();
        while device.unacknowledged() < MQTT_INFLIGHT_MAX
            && let Some(body) = schedule.next()
        {
            device.put(&body, schedule.start)?;
            schedule.sent += 1;
        }
        tokio::time::timeout(ACKNOWLEDGE_TIMEOUT, device.flush())
            .await
            .context("the hub reads nothing")??;
        schedule.acknowledge(acknowledged);
        if schedule.is_done() {
            return Ok(schedule.ended());
        }
        let wake_up = schedule.wake_up()?;
        tokio::select! {
            waited = device.wait(|_| acknowledged += 1) => waited?,
            () = tokio::time::sleep_until(wake_up) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let phase = |seconds, rate| Phase {
            time: Duration::from_secs(seconds),
            rate,
        };
        Plan {
            phases: vec![phase(10, 100.0), phase(5, 1_000.0), phase(10, 100.0)],
            devices: 10,
            burst: Duration::from_millis(200),
            body_bytes: 32,
        }
    }

    #[test]
    fn all_that_is_due_leaves_in_its_phase() {
        let plan = plan();
        for device in [0, 3, 9] {
            let bursts: Vec<Burst> = plan.bursts(device).collect();
            let until = |at| {
                bursts
                    .iter()
                    .rfind(|burst| burst.due < at)
                    .map_or(0, |burst| burst.until)
            };
            // Within one burst of the phase's own.
            assert!(until(Duration::from_secs(10)).abs_diff(100) <= 20, "{device}");
            assert!(until(Duration::from_secs(15)).abs_diff(600) <= 20, "{device}");
            assert_eq!(bursts.last().unwrap().until, 700, "{device}");
            assert!(bursts.is_sorted_by_key(|burst| burst.until));
        }
    }

    #[test]
    fn a_body_says_whose_and_which_it_is() {
        let plan = plan();
        let body = plan.body(&fleet::body(32), 7, 1 << 40);
        assert_eq!(body.len(), 32);
        assert_eq!(read_body(&body), Some((7, 1 << 40)));
        assert_eq!(read_body(&body[..11]), None);
    }

    #[test]
    fn an_acknowledgement_covers_bursts_in_order() {
        let mut waiting = Waiting::default();
        for (due, until) in [(1, 10), (2, 20)] {
            let due = Duration::from_secs(due);
            waiting.bursts.push_back(Burst { due, until });
        }
        waiting.acknowledge(15, Duration::from_secs(3));
        assert_eq!((waiting.acknowledged, waiting.bursts.len()), (15, 1));
        let early = waiting.timeline.window(Duration::ZERO, Duration::from_secs(2)).unwrap();
        assert_eq!(early.len(), 10);
        waiting.acknowledge(20, Duration::from_secs(4));
        assert!(waiting.bursts.is_empty());
    }
}
