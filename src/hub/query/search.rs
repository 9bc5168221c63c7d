//! Answers a query page by page, in slices whose work is bounded.
//!
//! A page ends behind a key, and the next one begins there: what is created or deleted in between changes neither what
//! was answered nor the place. Groups go in the order of their hashes, so that the smallest behind the last page are all
//! that has to be kept while everything is read.

use std::collections::{BTreeMap, VecDeque};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::expression::{Attributes as _, Datum, Expression, Path};
use super::record::{Identity, Record};
use super::statement::{Aggregate, Output, Query, Select, Selected, Source};
use crate::hub::code::ErrorCode;
use crate::hub::decide::decode;
use crate::hub::registry::Registry;
use crate::hub::twin::Twin;
use crate::model::DeviceId;
use crate::state::{Scan, StateError, Table};

/// Identities read for one page that is not full yet. Then the page is answered as it is: a client must not wait
/// minutes for the first of few results among a million.
const VISITS_PER_PAGE_MAX: usize = 100_000;
/// Identities read from the store at a time.
const CHUNK: usize = 256;
/// Attributes that a twin record does not hold. All else reads it.
const OF_IDENTITY: [&str; 14] = [
    "deviceId",
    "moduleId",
    "status",
    "statusReason",
    "statusUpdateTime",
    "connectionState",
    "lastActivityTime",
    "cloudToDeviceMessageCount",
    "authenticationType",
    "x509Thumbprint",
    "capabilities",
    "deviceScope",
    "parentScopes",
    "deviceEtag",
];
const TOKEN_VERSION: u8 = 1;
const CHECK_BYTES: usize = 16;

/// Why there is no page.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SearchError {
    #[error("the continuation token is not one of this query")]
    Continuation,
    #[error(transparent)]
    State(#[from] StateError),
}

impl SearchError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Continuation => ErrorCode::ARGUMENT_INVALID,
            Self::State(_) => ErrorCode::SERVER_ERROR,
        }
    }
}

/// Results with what they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    pub items: Vec<Value>,
    /// `twin`, `deviceJob` or `raw`.
    pub item_type: &'static str,
    /// Where the next page begins; `None` behind the last.
    pub continuation: Option<String>,
}

/// What a slice of work led to.
#[derive(Debug)]
pub enum Progress {
    More,
    Page(Page),
}

/// Where identities are that can be found.
enum Range {
    Key(Vec<u8>),
    Prefix(Vec<u8>),
}

/// A page in the making.
pub struct Search {
    registry: Registry,
    query: Query,
    /// Of the text: what a token is bound to.
    query_hash: [u8; 32],
    ranges: VecDeque<Range>,
    /// The last key that was looked at.
    cursor: Option<Vec<u8>>,
    /// The last group that earlier pages answered. Groups have an order of their own, so each page of them reads all.
    after_group: Option<[u8; 32]>,
    /// Results on the pages before.
    returned: u32,
    items_max: usize,
    visits: usize,
    items: Vec<Value>,
    groups: BTreeMap<[u8; 32], Group>,
    condition_needs_twin: bool,
    output_needs_twin: bool,
}

impl Search {
    /// A page of at most `items_max`, behind what `continuation` tells of.
    ///
    /// # Errors
    /// `Continuation`: a token of another query, or none of ours.
    pub fn new(
        registry: Registry,
        text: &str,
        query: Query,
        items_max: usize,
        continuation: Option<&str>,
    ) -> Result<Self, SearchError> {
        let query_hash = Sha256::digest(text.as_bytes()).into();
        let (mut returned, mut cursor, mut after_group) = (0, None, None);
        if let Some(token) = continuation {
            let opened = open_token(token, &query_hash).ok_or(SearchError::Continuation)?;
            returned = opened.0;
            if query.is_aggregated() {
                after_group = Some(opened.1.try_into().map_err(|_| SearchError::Continuation)?);
            } else {
                cursor = Some(opened.1);
            }
        }
        let needs_twin = |path: &Path| {
            !path
                .0
                .first()
                .is_some_and(|first| OF_IDENTITY.contains(&first.as_str()))
        };
        let mut condition_needs_twin = false;
        if let Some(condition) = &query.condition {
            condition.walk(&mut |expression| {
                if let Expression::Attribute(path) | Expression::IsDefined(path) = expression {
                    condition_needs_twin |= needs_twin(path);
                }
            });
        }
        let output_needs_twin = match &query.select {
            Select::All => true,
            Select::Some(selected) => selected.iter().any(|one| match &one.output {
                Output::Attribute(path) | Output::Aggregate(_, path) => needs_twin(path),
                Output::Count => false,
            }),
        };
        let output_needs_twin = output_needs_twin || query.group_by.iter().any(needs_twin);
        let top_left = query
            .top
            .map_or(usize::MAX, |top| top.saturating_sub(returned) as usize);
        let items_max = items_max.min(top_left);
        let mut search = Self {
            ranges: ranges(&registry, &query),
            registry,
            query,
            query_hash,
            cursor,
            after_group,
            returned,
            items_max,
            visits: 0,
            items: Vec::new(),
            groups: BTreeMap::new(),
            condition_needs_twin,
            output_needs_twin,
        };
        // Aggregates of nothing are an answer too; groups of nothing are none.
        if search.query.is_aggregated() && search.query.group_by.is_empty() && search.after_group.is_none() {
            search
                .groups
                .insert(group_hash(&[]), Group::new(Vec::new(), &search.query));
        }
        search.skip_to_cursor();
        Ok(search)
    }

    fn skip_to_cursor(&mut self) {
        let Some(cursor) = &self.cursor else { return };
        while let Some(front) = self.ranges.front() {
            let is_behind = match front {
                Range::Key(key) => cursor >= key,
                Range::Prefix(prefix) => cursor >= prefix && !cursor.starts_with(prefix),
            };
            if !is_behind {
                return;
            }
            self.ranges.pop_front();
        }
    }

    /// Goes on, looking at no more than `visits` identities. Reads the store: not for a thread that others wait for.
    ///
    /// # Errors
    /// The store's. Then the search is over.
    pub fn advance(&mut self, visits: usize) -> Result<Progress, SearchError> {
        let end = self.visits + visits;
        while self.visits < end && !self.is_full() {
            let Some(range) = self.ranges.front() else {
                return Ok(Progress::Page(self.page(true)));
            };
            let limit = CHUNK.min(end - self.visits);
            let found = match range {
                Range::Key(key) => {
                    let value = self.registry.state().get(self.table(), key)?;
                    value.map(|value| (key.clone(), value)).into_iter().collect()
                }
                Range::Prefix(prefix) => {
                    let after = self.cursor.as_deref();
                    self.registry
                        .state()
                        .scan(self.table(), Scan { prefix, after, limit })?
                }
            };
            let is_read = match range {
                Range::Key(_) => true,
                Range::Prefix(_) => found.len() < limit,
            };
            // Looking where nothing is costs as well.
            self.visits += usize::from(found.is_empty());
            let mut found = found.into_iter();
            for (key, value) in found.by_ref() {
                self.visits += 1;
                self.visit(&key, &value)?;
                self.cursor = Some(key);
                if self.is_full() {
                    break;
                }
            }
            if is_read && found.next().is_none() {
                self.ranges.pop_front();
            }
        }
        let is_long = !self.query.is_aggregated() && self.visits >= VISITS_PER_PAGE_MAX;
        if self.is_full() || is_long {
            return Ok(Progress::Page(self.page(self.ranges.is_empty())));
        }
        Ok(Progress::More)
    }

    fn table(&self) -> Table {
        match self.query.source {
            Source::Devices => Table::Devices,
            Source::Modules => Table::Modules,
            Source::Jobs => unreachable!("there are no jobs, so they have no range"),
        }
    }

    fn is_full(&self) -> bool {
        !self.query.is_aggregated() && self.items.len() >= self.items_max
    }

    fn visit(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        let identity = match self.query.source {
            Source::Devices => Identity::Device(decode(value)?),
            Source::Modules | Source::Jobs => Identity::Module(decode(value)?),
        };
        let twin = |is_needed: bool| -> Result<Twin, StateError> {
            let stored = is_needed
                .then(|| self.registry.state().get(Table::Twins, key))
                .transpose()?;
            stored
                .flatten()
                .map_or_else(|| Ok(Twin::fresh()), |bytes| decode(&bytes))
        };
        let mut seen = twin(self.condition_needs_twin)?;
        if let Some(condition) = &self.query.condition
            && condition.truth(&Record::new(&identity, &seen)) != Some(true)
        {
            return Ok(());
        }
        if self.output_needs_twin && !self.condition_needs_twin {
            seen = twin(true)?;
        }
        let record = Record::new(&identity, &seen);
        if self.query.is_aggregated() {
            self.add_to_group(&record);
            return Ok(());
        }
        let item = match &self.query.select {
            Select::All => record.document().clone(),
            Select::Some(selected) => project(selected, |output| match output {
                Output::Attribute(path) => record.json(path).cloned(),
                Output::Count | Output::Aggregate(..) => None,
            }),
        };
        self.items.push(item);
        Ok(())
    }

    fn add_to_group(&mut self, record: &Record<'_>) {
        let value = |path: &Path| {
            record
                .json(path)
                .filter(|value| !value.is_array() && !value.is_object())
                .cloned()
        };
        let values: Vec<Option<Value>> = self.query.group_by.iter().map(value).collect();
        let hash = group_hash(&values);
        if self.after_group.is_some_and(|after| hash <= after) {
            return;
        }
        let query = &self.query;
        self.groups
            .entry(hash)
            .or_insert_with(|| Group::new(values, query))
            .add(query, record);
        // One more than the page: it tells whether there is a next one. A group that is dropped here is behind all that
        // are kept, and those only get smaller: it cannot come back incomplete.
        if self.groups.len() > self.items_max.saturating_add(1) {
            self.groups.pop_last();
        }
    }

    fn page(&mut self, is_over: bool) -> Page {
        let mut is_over = is_over;
        let mut behind = self.cursor.clone();
        if self.query.is_aggregated() {
            is_over = self.groups.len() <= self.items_max;
            for (hash, group) in std::mem::take(&mut self.groups).into_iter().take(self.items_max) {
                behind = Some(hash.to_vec());
                self.items.push(group.result(&self.query));
            }
        }
        let items = std::mem::take(&mut self.items);
        let returned = self.returned.saturating_add(items.len() as u32);
        let is_over = is_over || self.query.top.is_some_and(|top| returned >= top);
        let item_type = match (&self.query.select, self.query.source) {
            (Select::All, Source::Devices | Source::Modules) => "twin",
            (Select::All, Source::Jobs) => "deviceJob",
            (Select::Some(_), _) => "raw",
        };
        let behind = behind.filter(|_| !is_over);
        Page {
            items,
            item_type,
            continuation: behind.map(|behind| token(returned, &behind, &self.query_hash)),
        }
    }
}

/// Where to look: in everything, or only where the devices that the condition names are.
fn ranges(registry: &Registry, query: &Query) -> VecDeque<Range> {
    if query.source == Source::Jobs {
        // This hub runs no jobs, so there is none to find.
        return VecDeque::new();
    }
    let Some(ids) = query.device_ids() else {
        return VecDeque::from([Range::Prefix(Vec::new())]);
    };
    let ids = ids.iter().filter_map(|id| DeviceId::new(id).ok());
    let mut keys: Vec<_> = match query.source {
        Source::Devices => ids.map(|id| registry.device_key(&id)).collect(),
        Source::Modules | Source::Jobs => ids.map(|id| registry.modules_prefix(&id)).collect(),
    };
    keys.sort();
    let range = match query.source {
        Source::Devices => Range::Key,
        Source::Modules | Source::Jobs => Range::Prefix,
    };
    keys.into_iter().map(range).collect()
}

/// An object of the results that are defined.
fn project(selected: &[Selected], mut value: impl FnMut(&Output) -> Option<Value>) -> Value {
    let mut object = Map::new();
    for (index, one) in selected.iter().enumerate() {
        if let Some(value) = value(&one.output) {
            object.insert(one.name(index), value);
        }
    }
    Value::Object(object)
}

/// Identities that agree in the attributes of `GROUP BY`, in that order. An object or array counts as undefined.
struct Group {
    values: Vec<Option<Value>>,
    count: u64,
    /// One for each aggregate of the select list, in order.
    numbers: Vec<Numbers>,
}

#[derive(Clone, Copy, Default)]
struct Numbers {
    count: u64,
    sum: f64,
    minimum: f64,
    maximum: f64,
}

impl Numbers {
    fn add(&mut self, number: f64) {
        let is_first = self.count == 0;
        self.minimum = if is_first { number } else { self.minimum.min(number) };
        self.maximum = if is_first { number } else { self.maximum.max(number) };
        self.count += 1;
        self.sum += number;
    }

    fn result(&self, aggregate: Aggregate) -> Option<Value> {
        if self.count == 0 {
            return None;
        }
        Some(number(match aggregate {
            Aggregate::Average => self.sum / self.count as f64,
            Aggregate::Sum => self.sum,
            Aggregate::Minimum => self.minimum,
            Aggregate::Maximum => self.maximum,
        }))
    }
}

/// Whole numbers without a fraction, as they were stored.
fn number(value: f64) -> Value {
    const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= WHOLE_MAX {
        (value as i64).into()
    } else {
        value.into()
    }
}

impl Group {
    fn new(values: Vec<Option<Value>>, query: &Query) -> Self {
        let aggregates = aggregates(query).count();
        Self {
            values,
            count: 0,
            numbers: vec![Numbers::default(); aggregates],
        }
    }

    fn add(&mut self, query: &Query, record: &Record<'_>) {
        self.count += 1;
        for (numbers, path) in self.numbers.iter_mut().zip(aggregates(query)) {
            if let Some(Datum::Number(number)) = record.value(path) {
                numbers.add(number);
            }
        }
    }

    fn result(&self, query: &Query) -> Value {
        let Select::Some(selected) = &query.select else {
            unreachable!("a query for * with groups is refused")
        };
        let mut numbers = self.numbers.iter();
        project(selected, |output| match output {
            Output::Count => Some(self.count.into()),
            Output::Aggregate(aggregate, _) => numbers.next()?.result(*aggregate),
            Output::Attribute(path) => {
                let index = query.group_by.iter().position(|grouped| grouped == path)?;
                self.values[index].clone()
            }
        })
    }
}

/// What the aggregates of the select list are made of.
fn aggregates(query: &Query) -> impl Iterator<Item = &Path> {
    let selected = match &query.select {
        Select::All => &[],
        Select::Some(selected) => &selected[..],
    };
    selected.iter().filter_map(|one| match &one.output {
        Output::Aggregate(_, path) => Some(path),
        Output::Count | Output::Attribute(_) => None,
    })
}

fn group_hash(values: &[Option<Value>]) -> [u8; 32] {
    // A list in a list, because undefined is another group than null.
    let values: Vec<Vec<&Value>> = values.iter().map(|value| value.iter().collect()).collect();
    Sha256::digest(serde_json::to_vec(&values).expect("values are JSON")).into()
}

/// Opaque to clients. It carries no secret and gives no right, so a hash without a key is enough to refuse what was
/// damaged or belongs to another query.
fn token(returned: u32, behind: &[u8], query_hash: &[u8; 32]) -> String {
    let mut bytes = vec![TOKEN_VERSION];
    bytes.extend_from_slice(&returned.to_be_bytes());
    bytes.extend_from_slice(behind);
    bytes.extend_from_slice(&check(&bytes, query_hash));
    URL_SAFE_NO_PAD.encode(bytes)
}

fn open_token(token: &str, query_hash: &[u8; 32]) -> Option<(u32, Vec<u8>)> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (content, found) = bytes.split_last_chunk::<CHECK_BYTES>()?;
    if *found != check(content, query_hash) {
        return None;
    }
    let (&[version], rest) = content.split_first_chunk()?;
    let (returned, behind) = rest.split_first_chunk()?;
    (version == TOKEN_VERSION).then(|| (u32::from_be_bytes(*returned), behind.to_vec()))
}

fn check(content: &[u8], query_hash: &[u8; 32]) -> [u8; CHECK_BYTES] {
    let hash = Sha256::new().chain_update(query_hash).chain_update(content).finalize();
    *hash.first_chunk().expect("a hash has 32 bytes")
}
