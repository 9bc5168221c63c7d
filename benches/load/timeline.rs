//! What became of messages that left at set times: how late their acknowledgements came, by when they were due.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::measure::{latencies, record};

/// Messages that came due and were acknowledged together.
#[derive(Clone, Copy, Debug)]
struct Acknowledged {
    /// Since the start.
    due: Duration,
    latency: Duration,
    messages: u64,
}

#[derive(Debug, Default)]
pub struct Timeline(Vec<Acknowledged>);

impl Timeline {
    pub fn add(&mut self, due: Duration, latency: Duration, messages: u64) {
        self.0.push(Acknowledged { due, latency, messages });
    }

    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Latencies in microseconds of what was due from `from` on and before `to`.
    ///
    /// # Errors
    /// A latency is beyond ten minutes.
    pub fn window(&self, from: Duration, to: Duration) -> anyhow::Result<Histogram<u64>> {
        let mut window = latencies();
        let inside = self.0.iter().filter(|one| (from..to).contains(&one.due));
        inside
            .into_iter()
            .try_for_each(|one| record(&mut window, one.latency, one.messages))?;
        Ok(window)
    }

    /// One quantile of each `step`, in milliseconds, for a plot: when the step began, and the value.
    pub fn quantile_by_step(&self, quantile: f64, step: Duration) -> Vec<(f64, f64)> {
        let index = |one: &Acknowledged| (one.due.as_nanos() / step.as_nanos()) as usize;
        let mut steps: Vec<Vec<&Acknowledged>> = Vec::new();
        for one in &self.0 {
            let index = index(one);
            steps.resize_with(steps.len().max(index + 1), Vec::new);
            steps[index].push(one);
        }
        let value = |(index, mut step_of): (usize, Vec<&Acknowledged>)| {
            step_of.sort_by_key(|one| one.latency);
            let all: u64 = step_of.iter().map(|one| one.messages).sum();
            let wanted = (all as f64 * quantile).ceil() as u64;
            let mut counted = 0;
            let found = step_of.iter().find(|one| {
                counted += one.messages;
                counted >= wanted
            })?;
            Some((index as f64 * step.as_secs_f64(), found.latency.as_secs_f64() * 1e3))
        };
        steps.into_iter().enumerate().filter_map(value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_told_by_when_messages_were_due() {
        let (s, ms) = (Duration::from_secs, Duration::from_millis);
        let mut timeline = Timeline::default();
        timeline.add(s(1), ms(10), 99);
        timeline.add(s(1), ms(500), 1);
        timeline.add(s(3), ms(40), 5);
        let calm = timeline.window(s(0), s(2)).unwrap();
        assert_eq!(calm.len(), 100);
        assert!((9_900..10_100).contains(&calm.value_at_quantile(0.5)));
        assert_eq!(timeline.window(s(3), s(4)).unwrap().len(), 5);
        assert_eq!(timeline.quantile_by_step(0.99, s(1)), [(1.0, 10.0), (3.0, 40.0)]);
        assert_eq!(timeline.quantile_by_step(1.0, s(2)), [(0.0, 500.0), (2.0, 40.0)]);
    }
}
