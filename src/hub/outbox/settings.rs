//! What an operator may choose of the queues (IoT Hub, C2D configuration options).

use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
/// IoT Hub, C2D: no message and no feedback lives longer.
pub const TTL_MAX: Duration = Duration::from_secs(2 * 24 * 60 * 60);
const DELIVERY_COUNT_MAX: u8 = 100;
const FEEDBACK_LOCK: std::ops::RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(300);

/// The names of the contract are in brackets. A larger value costs disk, not memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// How long a message waits whose sender set no expiry (`defaultTtlAsIso8601`): 1 minute to 2 days.
    pub default_ttl: Duration,
    /// Abandons that end a message (`maxDeliveryCount`): 1 to 100.
    pub delivery_count_max: u8,
    /// How long feedback waits for a service (`feedback.ttlAsIso8601`): 1 minute to 2 days.
    pub feedback_ttl: Duration,
    /// Abandons that end a batch of feedback (`feedback.maxDeliveryCount`): 1 to 100.
    pub feedback_delivery_count_max: u8,
    /// How long a service holds a batch of feedback (`feedback.lockDurationAsIso8601`): 5 to 300 seconds.
    pub feedback_lock: Duration,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            default_ttl: Duration::from_secs(3600),
            delivery_count_max: 10,
            feedback_ttl: Duration::from_secs(3600),
            feedback_delivery_count_max: 10,
            feedback_lock: MINUTE,
        }
    }
}

/// The setting that is out of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidQueueSettings {
    #[error("default_ttl: allowed are 1 minute to 2 days")]
    DefaultTtl,
    #[error("delivery_count_max: allowed are 1 to {DELIVERY_COUNT_MAX}")]
    DeliveryCount,
    #[error("feedback_ttl: allowed are 1 minute to 2 days")]
    FeedbackTtl,
    #[error("feedback_delivery_count_max: allowed are 1 to {DELIVERY_COUNT_MAX}")]
    FeedbackDeliveryCount,
    #[error("feedback_lock: allowed are 5 to 300 seconds")]
    FeedbackLock,
}

impl QueueSettings {
    /// # Errors
    /// The first setting that is out of its range.
    pub fn check(&self) -> Result<(), InvalidQueueSettings> {
        let ttl = MINUTE..=TTL_MAX;
        let count = 1..=DELIVERY_COUNT_MAX;
        let checks = [
            (ttl.contains(&self.default_ttl), InvalidQueueSettings::DefaultTtl),
            (
                count.contains(&self.delivery_count_max),
                InvalidQueueSettings::DeliveryCount,
            ),
            (ttl.contains(&self.feedback_ttl), InvalidQueueSettings::FeedbackTtl),
            (
                count.contains(&self.feedback_delivery_count_max),
                InvalidQueueSettings::FeedbackDeliveryCount,
            ),
            (
                FEEDBACK_LOCK.contains(&self.feedback_lock),
                InvalidQueueSettings::FeedbackLock,
            ),
        ];
        let broken = checks.into_iter().find(|(is_valid, _)| !is_valid);
        broken.map_or(Ok(()), |(_, error)| Err(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl Fn(&mut QueueSettings), expected: Result<(), InvalidQueueSettings>) {
        let mut settings = QueueSettings::default();
        change(&mut settings);
        assert_eq!(settings.check(), expected, "{settings:?}");
    }

    #[test]
    fn ranges_are_those_of_the_contract() {
        let seconds = Duration::from_secs;
        check(|_| {}, Ok(()));
        for (value, is_valid) in [(59, false), (60, true), (172_800, true), (172_801, false)] {
            let expected = |error| if is_valid { Ok(()) } else { Err(error) };
            check(
                |s| s.default_ttl = seconds(value),
                expected(InvalidQueueSettings::DefaultTtl),
            );
            check(
                |s| s.feedback_ttl = seconds(value),
                expected(InvalidQueueSettings::FeedbackTtl),
            );
        }
        for (value, is_valid) in [(0, false), (1, true), (100, true), (101, false)] {
            let expected = |error| if is_valid { Ok(()) } else { Err(error) };
            check(
                |s| s.delivery_count_max = value,
                expected(InvalidQueueSettings::DeliveryCount),
            );
            check(
                |s| s.feedback_delivery_count_max = value,
                expected(InvalidQueueSettings::FeedbackDeliveryCount),
            );
        }
        for (value, is_valid) in [(4, false), (5, true), (300, true), (301, false)] {
            let expected = if is_valid {
                Ok(())
            } else {
                Err(InvalidQueueSettings::FeedbackLock)
            };
            check(|s| s.feedback_lock = seconds(value), expected);
        }
    }
}
