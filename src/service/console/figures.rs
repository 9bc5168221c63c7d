//! What the hub did in the last minutes: a ring of samples that the server fills, so that charts have a past when a page
//! is opened, and costs nothing more for each page that is.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

/// Samples kept.
pub const SAMPLES_MAX: usize = 300;

/// Rates and sizes of one interval.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// Which it is, from 1; the history sets it.
    pub number: u64,
    /// When the interval ended, UTC milliseconds.
    pub time: i64,
    /// Of the interval, seconds.
    pub seconds: f64,
    /// Messages acknowledged to devices, in a second.
    pub messages_in: f64,
    pub bytes_in: f64,
    /// Messages handed to consumers, in a second.
    pub messages_out: f64,
    pub bytes_out: f64,
    /// Messages refused to devices, in a second.
    pub refused: f64,
    /// Requests and batches that a throttle delayed or refused, in a second.
    pub throttled: f64,
    /// From the door to the acknowledgement, milliseconds; absent where nothing was acknowledged.
    pub ack_p50: Option<f64>,
    pub ack_p99: Option<f64>,
    pub ack_max: Option<f64>,
    /// Part of the time, 0 to 1, for which sessions of a shard were not read, because of its or a partition's budget.
    pub held_by_shards: f64,
    /// The same, because the disk is full.
    pub held_by_disk: f64,
    /// Bytes received and not yet acknowledged.
    pub inflight_bytes: u64,
    /// Commands that wait for a shard.
    pub queued: u64,
    /// Messages not yet read, over all groups and partitions that are being read.
    pub lag: u64,
    pub sessions: Vec<Open>,
    pub log_bytes: u64,
    pub resident_bytes: u64,
    pub open_files: u64,
    /// Processors in use: 1 is one core.
    pub cpu: f64,
}

/// Open connections of one protocol.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Open {
    pub protocol: &'static str,
    pub count: u64,
}

/// The last samples.
#[derive(Debug, Default)]
pub struct History(Mutex<VecDeque<Sample>>);

impl History {
    pub fn push(&self, mut sample: Sample) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sample.number = samples.back().map_or(1, |last| last.number + 1);
        if samples.len() >= SAMPLES_MAX {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// Samples behind a number, oldest first; 0 for all there are.
    pub fn since(&self, number: u64) -> Vec<Sample> {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        samples
            .iter()
            .filter(|sample| sample.number > number)
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_samples_are_kept_and_numbered() {
        let history = History::default();
        assert!(history.since(0).is_empty());
        for _ in 0..SAMPLES_MAX + 5 {
            history.push(Sample::default());
        }
        let all = history.since(0);
        assert_eq!(all.len(), SAMPLES_MAX);
        assert_eq!(
            (all[0].number, all[SAMPLES_MAX - 1].number),
            (6, SAMPLES_MAX as u64 + 5)
        );
        assert_eq!(history.since(SAMPLES_MAX as u64 + 4).len(), 1);
        assert!(history.since(u64::MAX).is_empty());
    }
}
