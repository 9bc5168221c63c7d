//! Entry points for fuzzing: bytes of a stranger where the log expects its own.

use super::header::{HEADER_BLOCK_BYTES, SegmentHeader};
use super::{Config, Log, ReadError, Start, records};
use crate::model::{PartitionId, SequenceNumber, UtcMillis};
use crate::testing::Disk;

/// Opens a log whose active segment holds `data` as its records, and reads whatever that gives.
///
/// # Panics
/// If the log gives out records that are not intact or not in order: that is a bug.
pub fn fuzz_recover(data: &[u8]) {
    let config = Config {
        segment_bytes: (HEADER_BLOCK_BYTES + data.len())
            .next_multiple_of(4096)
            .clamp(16 << 10, 1 << 20) as u64,
        ..Config::default()
    };
    let disk = Disk::default();
    drop(Log::open(disk.boot(), 1, config.clone(), UtcMillis(0)).expect("an empty disk"));
    let header = SegmentHeader {
        partition: PartitionId(0),
        id: 1,
        previous_id: 0,
        base: SequenceNumber(0),
        base_time: UtcMillis(0),
        synced: SequenceNumber(0),
        incarnation: 0,
    };
    disk.corrupt("p0000/0000000000000001.seg", |bytes| {
        bytes[..HEADER_BLOCK_BYTES].fill(0);
        bytes[..header.encode().len()].copy_from_slice(&header.encode());
        let room = bytes.len() - HEADER_BLOCK_BYTES;
        let data = &data[..data.len().min(room)];
        bytes[HEADER_BLOCK_BYTES..][..data.len()].copy_from_slice(data);
    });
    let Ok((log, _appenders, _)) = Log::open(disk.boot(), 1, config, UtcMillis(0)) else {
        return;
    };
    let view = &log.views()[0];
    let mut cursor = view.cursor(Start::Earliest).expect("the first segment is there");
    loop {
        match cursor.read(4096) {
            Ok(None) => break,
            Ok(Some(chunk)) => {
                let mut next = None;
                for record in records(&chunk.bytes) {
                    let record = record.expect("only whole records are given out");
                    assert!(record.is_intact());
                    assert!(next.is_none_or(|next| next == record.header.first));
                    next = Some(record.header.next());
                }
            }
            Err(ReadError::Damaged(damage)) => {
                assert!(damage.next > cursor.position());
                cursor
                    .seek(Start::Sequence(damage.next))
                    .expect("damage ends inside the log");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Parses bytes as records, as a consumer does with what it is sent.
pub fn fuzz_records(data: &[u8]) {
    let mut bytes = 0;
    for record in records(data).flatten() {
        bytes += record.bytes.len();
        assert_eq!(record.is_intact(), record.check().is_ok());
    }
    assert!(bytes <= data.len());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::log::record::tests::encode;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_bytes_make_recovery_panic(data in prop::collection::vec(any::<u8>(), 0..9000)) {
            fuzz_recover(&data);
            fuzz_records(&data);
        }

        /// Nearly right bytes get further.
        #[test]
        fn no_changed_log_makes_recovery_panic(
            sizes in prop::collection::vec(0usize..600, 1..20),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let mut data = Vec::new();
            for (first, size) in sizes.iter().enumerate() {
                data.extend(encode(first as u64, 1, b"stamp", &vec![1; *size]));
            }
            for (at, with) in changes {
                let at = at.index(data.len());
                data[at] = with;
            }
            fuzz_recover(&data);
            fuzz_records(&data);
        }
    }
}
