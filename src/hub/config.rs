//! What an operator says about the hub as a whole.

/// Identity of the hub. `partition_count` is fixed when the data directory is created, the names may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubConfig {
    /// Names under which clients reach the hub, compared without case. At least one.
    pub host_names: Vec<String>,
    /// 2 to 128, default 4. More spreads a hub over more shards and costs a log each.
    pub partition_count: u16,
}

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("host_names: at least one name is needed")]
    NoHostName,
    #[error("host_names: {0:?} is not a host name")]
    HostName(String),
    #[error("partition_count: {0} is outside 2 to 128")]
    PartitionCount(u16),
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            host_names: vec!["localhost".into()],
            partition_count: 4,
        }
    }
}

impl HubConfig {
    /// # Errors
    /// The first value that is out of range.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.host_names.is_empty() {
            return Err(ConfigError::NoHostName);
        }
        let is_host = |name: &String| {
            !name.is_empty()
                && name.len() <= 253
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:[]".contains(&b))
        };
        if let Some(name) = self.host_names.iter().find(|name| !is_host(name)) {
            return Err(ConfigError::HostName(name.clone()));
        }
        if !(2..=128).contains(&self.partition_count) {
            return Err(ConfigError::PartitionCount(self.partition_count));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_named() {
        assert_eq!(HubConfig::default().check(), Ok(()));
        let with = |names: &[&str], partition_count| {
            let host_names = names.iter().map(ToString::to_string).collect();
            HubConfig {
                host_names,
                partition_count,
            }
            .check()
        };
        assert_eq!(with(&[], 4), Err(ConfigError::NoHostName));
        assert_eq!(with(&["a b"], 4), Err(ConfigError::HostName("a b".into())));
        assert_eq!(with(&["a"], 1), Err(ConfigError::PartitionCount(1)));
        assert_eq!(with(&["a"], 129), Err(ConfigError::PartitionCount(129)));
    }
}
