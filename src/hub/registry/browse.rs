//! Looking through devices as a person does: by id over all partitions, a page at a time, with a filter.

use std::collections::VecDeque;

use super::{Registry, RegistryError, decode, device_key};
use crate::hub::identity::DeviceIdentity;
use crate::model::{DeviceId, PartitionId};
use crate::state::{Scan, Table};

/// Entries read from a partition at a time.
const CHUNK: usize = 64;

/// Which devices a page may have.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The id has this text, whatever its case; empty: any.
    pub contains: String,
    /// Results of a page.
    pub limit: usize,
    /// Devices looked at for one page: bounds the work, and with it the time, where few are wanted among many.
    pub visits_max: usize,
}

/// A page of devices.
#[derive(Clone, Debug, Default)]
pub struct Browsed {
    /// By id.
    pub devices: Vec<DeviceIdentity>,
    /// Devices looked at.
    pub visited: usize,
    /// Where the next page begins: behind this id. `None`: this was the last one.
    pub next: Option<DeviceId>,
}

/// One partition's devices, in the order of their ids.
struct Lane {
    prefix: Vec<u8>,
    /// The last key that was read.
    after: Vec<u8>,
    /// Keys with their stored devices.
    waiting: VecDeque<(Vec<u8>, Vec<u8>)>,
    is_read: bool,
}

impl Registry {
    /// Devices behind `after` in the order of their ids that `is_wanted` takes. Blocks for as long as reading
    /// `visits_max` entries takes; also with few results it reads a chunk of each partition.
    ///
    /// # Errors
    /// The store's, or whatever `is_wanted` says.
    pub fn browse<E: From<RegistryError>>(
        &self,
        after: Option<&DeviceId>,
        wanted: &Wanted,
        mut is_wanted: impl FnMut(&DeviceIdentity) -> Result<bool, E>,
    ) -> Result<Browsed, E> {
        let contains = wanted.contains.to_ascii_lowercase();
        let mut lanes: Vec<Lane> = (0..self.partition_count)
            .map(|partition| {
                let prefix = PartitionId(partition).0.to_be_bytes().to_vec();
                Lane {
                    after: after.map_or_else(|| prefix.clone(), |device| device_key(PartitionId(partition), device)),
                    prefix,
                    waiting: VecDeque::new(),
                    is_read: false,
                }
            })
            .collect();
        let mut page = Browsed::default();
        loop {
            for lane in &mut lanes {
                self.fill(lane)?;
            }
            let first = lanes
                .iter_mut()
                .filter(|lane| !lane.waiting.is_empty())
                .min_by(|a, b| a.waiting[0].0[2..].cmp(&b.waiting[0].0[2..]));
            let Some(lane) = first else {
                page.next = None;
                return Ok(page);
            };
            if page.devices.len() >= wanted.limit || page.visited >= wanted.visits_max {
                return Ok(page);
            }
            let (key, value) = lane.waiting.pop_front().expect("it is not empty");
            page.visited += 1;
            let id = String::from_utf8_lossy(&key[2..]);
            page.next = DeviceId::new(&id).ok();
            if contains.is_empty() || id.to_ascii_lowercase().contains(&contains) {
                let device: DeviceIdentity = decode(&value).map_err(RegistryError::State)?;
                if is_wanted(&device)? {
                    page.devices.push(device);
                }
            }
        }
    }

    fn fill(&self, lane: &mut Lane) -> Result<(), RegistryError> {
        if !lane.waiting.is_empty() || lane.is_read {
            return Ok(());
        }
        let scan = Scan {
            prefix: &lane.prefix,
            after: Some(&lane.after),
            limit: CHUNK,
        };
        lane.waiting = self.state.scan(Table::Devices, scan)?.into();
        lane.is_read = lane.waiting.len() < CHUNK;
        if let Some((key, _)) = lane.waiting.back() {
            lane.after.clone_from(key);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::hub::entropy::testing::Counting;
    use crate::model::UtcMillis;
    use crate::state::MemoryState;

    fn registry(count: usize) -> Registry {
        let registry = Registry::open(Arc::new(MemoryState::default()), Arc::new(Counting::default()), 3).unwrap();
        for n in 0..count {
            let id = DeviceId::new(&format!("{}-{n:04}", if n % 10 == 0 { "Pump" } else { "lamp" })).unwrap();
            registry
                .create_device_blocking(DeviceIdentity::new(id), UtcMillis(1))
                .unwrap();
        }
        registry
    }

    fn pages(registry: &Registry, wanted: &Wanted) -> Vec<Vec<String>> {
        let mut pages = Vec::new();
        let mut after = None;
        loop {
            let page = registry
                .browse(after.as_ref(), wanted, |_| Ok::<_, RegistryError>(true))
                .unwrap();
            assert!(page.visited <= wanted.visits_max && page.devices.len() <= wanted.limit);
            pages.push(
                page.devices
                    .iter()
                    .map(|device| device.device_id.as_str().to_owned())
                    .collect(),
            );
            after = page.next;
            if after.is_none() {
                return pages;
            }
        }
    }

    #[test]
    fn pages_follow_the_ids_over_all_partitions() {
        let registry = registry(500);
        let wanted = Wanted {
            limit: 90,
            visits_max: 1000,
            ..Wanted::default()
        };
        let pages = pages(&registry, &wanted);
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [90, 90, 90, 90, 90, 50]);
        let all: Vec<_> = pages.concat();
        assert!(all.is_sorted(), "{all:?}");
        assert_eq!(all[0], "Pump-0000");
    }

    #[test]
    fn a_filter_looks_at_so_many_and_goes_on_from_there() {
        let registry = registry(500);
        let wanted = Wanted {
            contains: "PUMP-00".into(),
            limit: 90,
            visits_max: 200,
        };
        let pages = pages(&registry, &wanted);
        assert_eq!(pages.len(), 3, "500 devices, 200 a page");
        assert_eq!(pages.concat().len(), 10);
    }

    #[test]
    fn an_empty_registry_is_one_empty_page() {
        let wanted = Wanted {
            limit: 1,
            visits_max: 1,
            ..Wanted::default()
        };
        assert_eq!(pages(&registry(0), &wanted), [Vec::<String>::new()]);
        assert_eq!(pages(&registry(1), &wanted).concat().len(), 1);
    }
}
