//! Consumer groups and their checkpoints.
//!
//! ```text
//!   claim(level) ──> Claim{epoch}        a later claim of equal or higher level takes over: epoch + 1
//!   commit(claim, n)                     refused when a newer claim exists; never backwards
//!   rewind(claim, n)                     backwards on purpose
//!   release(claim)                       the next claim may be of any level
//! ```
//!
//! Invariants: `$Default` always exists. At most one claim per (group, partition) is current, decided by the store's
//! order. A checkpoint is the next sequence number to read; it is durable when answered.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::code::ErrorCode;
use super::decide::{Answer, decide, decode, encode};
use crate::model::{ConsumerGroup, PartitionId, SequenceNumber, limits};
use crate::state::{Expected, State, StateError, Table, WriteBatch, blocking};

/// All group names stand in one record, so that their number is exact.
const NAMES_KEY: &[u8] = b"names";
/// Bounds what a client may store as its name.
pub const OWNER_BYTES_MAX: usize = 256;

/// The right to move one checkpoint, until a newer claim is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub group: ConsumerGroup,
    pub partition: PartitionId,
    epoch: u64,
    /// The checkpoint when the claim was made; `None` if the group never had one here.
    pub checkpoint: Option<SequenceNumber>,
    /// Who held the partition until this claim.
    pub displaced: Option<Owner>,
}

/// Who reads a partition for a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub id: String,
    pub level: i64,
}

/// Why a group or checkpoint was not changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GroupError {
    #[error("no such consumer group")]
    NotFound,
    #[error("the consumer group exists")]
    Exists,
    #[error("there are {} consumer groups", limits::CONSUMER_GROUPS_MAX)]
    TooMany,
    #[error("$Default cannot be deleted")]
    IsDefault,
    #[error("an owner's name has at most {OWNER_BYTES_MAX} bytes")]
    OwnerTooLong,
    /// Stop reading; claim again if that is wanted. `None`: the claim was released, or the group deleted.
    #[error("the partition has another owner")]
    LostOwnership { owner: Option<Owner> },
    #[error("the checkpoint already stands at {stored}")]
    Backwards { stored: SequenceNumber },
    #[error(transparent)]
    State(#[from] StateError),
}

impl GroupError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound => ErrorCode::GROUP_NOT_FOUND,
            Self::Exists | Self::LostOwnership { .. } => ErrorCode::CONFLICT,
            Self::TooMany => ErrorCode::TOO_LARGE,
            Self::IsDefault | Self::OwnerTooLong | Self::Backwards { .. } => ErrorCode::ARGUMENT_INVALID,
            Self::State(StateError::Busy) => ErrorCode::SERVER_BUSY,
            Self::State(StateError::Conflict { .. } | StateError::Failed(_) | StateError::Closed) => {
                ErrorCode::SERVER_ERROR
            }
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Record {
    epoch: u64,
    owner: Option<Owner>,
    next: Option<u64>,
}

impl Record {
    fn owned_by(self, claim: &Claim) -> Result<Self, GroupError> {
        if self.epoch == claim.epoch && self.owner.is_some() {
            return Ok(self);
        }
        Err(GroupError::LostOwnership { owner: self.owner })
    }
}

/// Groups and checkpoints. Cloning shares them.
#[derive(Clone)]
pub struct Groups {
    state: Arc<dyn State>,
}

impl Groups {
    pub fn new(state: Arc<dyn State>) -> Self {
        Self { state }
    }

    /// All groups, `$Default` first, then by name.
    ///
    /// # Errors
    /// The store's.
    pub fn list(&self) -> Result<Vec<ConsumerGroup>, GroupError> {
        let names = Names::load(&*self.state)?;
        let others = names.stored.groups.iter().map(|(name, _)| name.as_str());
        let names = std::iter::once(limits::DEFAULT_CONSUMER_GROUP).chain(others);
        Ok(names.filter_map(|name| ConsumerGroup::new(name).ok()).collect())
    }

    /// Whether a group exists.
    ///
    /// # Errors
    /// The store's.
    pub fn exists(&self, group: &ConsumerGroup) -> Result<bool, GroupError> {
        Ok(Names::load(&*self.state)?.incarnation(group).is_some())
    }

    pub fn create(&self, group: &ConsumerGroup, done: impl FnOnce(Result<(), GroupError>) + Send + 'static) {
        let group = group.clone();
        let attempt = move |state: &dyn State| {
            let mut names = Names::load(state)?;
            if names.incarnation(&group).is_some() {
                return Err(GroupError::Exists);
            }
            if names.stored.groups.len() + 1 >= limits::CONSUMER_GROUPS_MAX {
                return Err(GroupError::TooMany);
            }
            names.stored.created += 1;
            names
                .stored
                .groups
                .push((group.as_str().to_owned(), names.stored.created));
            names.stored.groups.sort();
            Ok((names.replace(), ()))
        };
        decide(&self.state, Box::new(attempt), Box::new(done));
    }

    /// Removes a group and its checkpoints.
    pub fn delete(&self, group: &ConsumerGroup, done: impl FnOnce(Result<(), GroupError>) + Send + 'static) {
        let group = group.clone();
        let attempt = move |state: &dyn State| {
            if is_default(&group) {
                return Err(GroupError::IsDefault);
            }
            let mut names = Names::load(state)?;
            if names.incarnation(&group).is_none() {
                return Err(GroupError::NotFound);
            }
            names
                .stored
                .groups
                .retain(|(name, _)| !name.eq_ignore_ascii_case(group.as_str()));
            let batch = names
                .replace()
                .delete_prefix(Table::Checkpoints, checkpoints_prefix(&group));
            Ok((batch, ()))
        };
        decide(&self.state, Box::new(attempt), Box::new(done));
    }

    /// Where a group goes on in a partition; `None` if it never said.
    ///
    /// # Errors
    /// The store's.
    pub fn checkpoint(
        &self,
        group: &ConsumerGroup,
        partition: PartitionId,
    ) -> Result<Option<SequenceNumber>, GroupError> {
        let (_, record) = load(&*self.state, &checkpoint_key(group, partition))?;
        Ok(record.next.map(SequenceNumber))
    }

    /// Who holds a partition for a group, and where it goes on, as far as either was ever said.
    ///
    /// # Errors
    /// The store's.
    pub fn standing(
        &self,
        group: &ConsumerGroup,
        partition: PartitionId,
    ) -> Result<(Option<Owner>, Option<SequenceNumber>), GroupError> {
        let (_, record) = load(&*self.state, &checkpoint_key(group, partition))?;
        Ok((record.owner, record.next.map(SequenceNumber)))
    }

    /// Takes the partition over from an owner of equal or lower level.
    // Event Hubs, owner level: equal levels displace too; partition processors claim everything at level 0.
    pub fn claim(
        &self,
        group: &ConsumerGroup,
        partition: PartitionId,
        owner_id: &str,
        owner_level: i64,
        done: impl FnOnce(Result<Claim, GroupError>) + Send + 'static,
    ) {
        if owner_id.len() > OWNER_BYTES_MAX {
            return done(Err(GroupError::OwnerTooLong));
        }
        let owner = Owner {
            id: owner_id.to_owned(),
            level: owner_level,
        };
        let group = group.clone();
        let attempt = move |state: &dyn State| {
            let names = Names::load(state)?;
            let incarnation = names.incarnation(&group).ok_or(GroupError::NotFound)?;
            let key = checkpoint_key(&group, partition);
            let (raw, mut record) = load(state, &key)?;
            // A claim from before the group was deleted and created again must not be current again.
            record.epoch = record.epoch.max(u64::from(incarnation) << 32);
            if record.owner.as_ref().is_some_and(|held| held.level > owner.level) {
                return Err(GroupError::LostOwnership { owner: record.owner });
            }
            record.epoch += 1;
            let displaced = record.owner.replace(owner.clone());
            let claim = Claim {
                group: group.clone(),
                partition,
                epoch: record.epoch,
                checkpoint: record.next.map(SequenceNumber),
                displaced,
            };
            // Also that the group still is: a claim must not leave a checkpoint to a later group of the same name.
            let batch =
                write(&key, raw, &record).expect(Table::Groups, NAMES_KEY, Expected::unchanged(names.raw.as_deref()));
            Ok((batch, claim))
        };
        decide(&self.state, Box::new(attempt), Box::new(done));
    }

    /// Moves the checkpoint forward: everything below `next` is done with.
    pub fn commit(
        &self,
        claim: &Claim,
        next: SequenceNumber,
        done: impl FnOnce(Result<(), GroupError>) + Send + 'static,
    ) {
        self.change(claim, Box::new(done), move |record| {
            if let Some(stored) = record.next.filter(|&stored| stored > next.0) {
                return Err(GroupError::Backwards {
                    stored: SequenceNumber(stored),
                });
            }
            record.next = Some(next.0);
            Ok(())
        });
    }

    /// Sets the checkpoint, backwards too.
    pub fn rewind(
        &self,
        claim: &Claim,
        next: SequenceNumber,
        done: impl FnOnce(Result<(), GroupError>) + Send + 'static,
    ) {
        self.change(claim, Box::new(done), move |record| {
            record.next = Some(next.0);
            Ok(())
        });
    }

    /// Gives the partition back: the next owner may be of any level. The checkpoint stays.
    pub fn release(&self, claim: &Claim, done: impl FnOnce(Result<(), GroupError>) + Send + 'static) {
        self.change(claim, Box::new(done), |record| {
            record.owner = None;
            Ok(())
        });
    }

    /// Waits for the answer of one of the calls above, as in `groups.wait(|done| groups.create(&group, done))`. For the
    /// command line and tests.
    ///
    /// # Errors
    /// As told to `done`.
    pub fn wait<R: Send + 'static>(&self, start: impl FnOnce(Answer<R, GroupError>)) -> Result<R, GroupError> {
        blocking(start).unwrap_or(Err(GroupError::State(StateError::Closed)))
    }

    fn change(
        &self,
        claim: &Claim,
        done: Answer<(), GroupError>,
        change: impl Fn(&mut Record) -> Result<(), GroupError> + Send + 'static,
    ) {
        let claim = claim.clone();
        let key = checkpoint_key(&claim.group, claim.partition);
        let attempt = move |state: &dyn State| {
            let (raw, record) = load(state, &key)?;
            let mut record = record.owned_by(&claim)?;
            change(&mut record)?;
            Ok((write(&key, raw, &record), ()))
        };
        decide(&self.state, Box::new(attempt), done);
    }
}

/// All groups but `$Default`, with the bytes they were read from.
struct Names {
    stored: StoredNames,
    raw: Option<Vec<u8>>,
}

#[derive(Default, Serialize, Deserialize)]
struct StoredNames {
    /// Groups ever created; the next one's incarnation is one more.
    created: u32,
    /// Name and incarnation, by name.
    groups: Vec<(String, u32)>,
}

impl Names {
    fn load(state: &dyn State) -> Result<Self, StateError> {
        let raw = state.get(Table::Groups, NAMES_KEY)?;
        let stored = raw.as_deref().map(decode).transpose()?.unwrap_or_default();
        Ok(Self { stored, raw })
    }

    /// Which life of a group's name this is; `None` if there is no such group.
    fn incarnation(&self, group: &ConsumerGroup) -> Option<u32> {
        if is_default(group) {
            return Some(0);
        }
        let found = self
            .stored
            .groups
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(group.as_str()));
        found.map(|(_, incarnation)| *incarnation)
    }

    fn replace(&self) -> WriteBatch {
        WriteBatch::new()
            .expect(Table::Groups, NAMES_KEY, Expected::unchanged(self.raw.as_deref()))
            .put(Table::Groups, NAMES_KEY, encode(&self.stored))
    }
}

// Event Hubs clients send `$default` as well as `$Default`: group names compare without case.
fn is_default(group: &ConsumerGroup) -> bool {
    group.as_str().eq_ignore_ascii_case(limits::DEFAULT_CONSUMER_GROUP)
}

fn checkpoints_prefix(group: &ConsumerGroup) -> Vec<u8> {
    let mut key = group.as_str().to_ascii_lowercase().into_bytes();
    key.push(0);
    key
}

fn checkpoint_key(group: &ConsumerGroup, partition: PartitionId) -> Vec<u8> {
    let mut key = checkpoints_prefix(group);
    key.extend_from_slice(&partition.0.to_be_bytes());
    key
}

fn load(state: &dyn State, key: &[u8]) -> Result<(Option<Vec<u8>>, Record), StateError> {
    let raw = state.get(Table::Checkpoints, key)?;
    let record = raw.as_deref().map(decode).transpose()?.unwrap_or_default();
    Ok((raw, record))
}

fn write(key: &[u8], raw: Option<Vec<u8>>, record: &Record) -> WriteBatch {
    WriteBatch::new()
        .expect(Table::Checkpoints, key, Expected::unchanged(raw.as_deref()))
        .put(Table::Checkpoints, key, encode(record))
}

#[cfg(test)]
#[path = "groups_tests.rs"]
mod tests;
