//! What a data directory says about itself: format, identity of the hub, what was fixed when it was created.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::config::HubConfig;
use super::decide::{decode, encode};
use super::entropy::Entropy;
use super::json;
use crate::model::UtcMillis;
use crate::state::{Expected, State, StateError, Table, WriteBatch};

/// The format this program writes. A data directory of another one is refused.
pub const FORMAT: u32 = 1;
const KEY: &[u8] = b"hub";

/// Written once, when the data directory is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HubMeta {
    pub format: u32,
    /// 32 hexadecimal digits.
    pub hub_id: String,
    #[serde(with = "json::date")]
    pub created: Option<UtcMillis>,
    pub partition_count: u16,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    #[error("the data has format {found}, this program reads {FORMAT}")]
    Format { found: u32 },
    /// Devices would be looked for where they are not.
    #[error("the data was created with {found} partitions, the configuration says {wanted}; this cannot be changed")]
    PartitionCount { found: u16, wanted: u16 },
    #[error(transparent)]
    State(#[from] StateError),
}

impl HubMeta {
    /// Reads what the store says of itself, or writes it into an empty one. Blocks; for the start of the program.
    ///
    /// # Errors
    /// `Format` and `PartitionCount` when the store was made by or for something else.
    pub fn open(
        state: &Arc<dyn State>,
        config: &HubConfig,
        entropy: &dyn Entropy,
        now: UtcMillis,
    ) -> Result<Self, MetaError> {
        if let Some(bytes) = state.get(Table::Meta, KEY)? {
            // The format first: of another one nothing else may be assumed.
            #[derive(Deserialize)]
            struct Format {
                format: u32,
            }
            let Format { format } = decode(&bytes)?;
            if format != FORMAT {
                return Err(MetaError::Format { found: format });
            }
            let meta: Self = decode(&bytes)?;
            if meta.partition_count != config.partition_count {
                return Err(MetaError::PartitionCount {
                    found: meta.partition_count,
                    wanted: config.partition_count,
                });
            }
            return Ok(meta);
        }
        let mut id = [0; 16];
        entropy.fill(&mut id);
        let meta = Self {
            format: FORMAT,
            hub_id: id.iter().map(|byte| format!("{byte:02x}")).collect(),
            created: Some(now),
            partition_count: config.partition_count,
        };
        let batch = WriteBatch::new()
            .expect(Table::Meta, KEY, Expected::Absent)
            .put(Table::Meta, KEY, encode(&meta));
        state.commit_blocking(batch)?;
        Ok(meta)
    }
}

#[cfg(test)]
mod tests {
    use super::super::entropy::testing::Counting;
    use super::*;
    use crate::state::MemoryState;

    #[test]
    fn a_hub_keeps_its_id_and_its_partition_count() {
        let state: Arc<dyn State> = MemoryState::new();
        let open = |partition_count| {
            let config = HubConfig {
                partition_count,
                ..HubConfig::default()
            };
            HubMeta::open(&state, &config, &Counting::default(), UtcMillis(1_700_000_000_000))
        };
        let made = open(4).unwrap();
        assert_eq!(made.hub_id.len(), 32);
        assert_eq!(open(4).unwrap(), made);
        assert!(matches!(
            open(8),
            Err(MetaError::PartitionCount { found: 4, wanted: 8 })
        ));
        let newer = encode(&HubMeta { format: 2, ..made });
        state
            .commit_blocking(WriteBatch::new().put(Table::Meta, KEY, newer))
            .unwrap();
        assert!(matches!(open(4), Err(MetaError::Format { found: 2 })));
    }
}
