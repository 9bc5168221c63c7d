//! What the console shows and does not know: handed in by the server.

use std::collections::BTreeMap;

use serde::Serialize;

/// Implemented by the server.
pub trait Facts: Send + Sync + 'static {
    fn about(&self) -> About;
    fn health(&self) -> Health;
    /// The configuration in force, secrets left out.
    fn configuration(&self) -> Vec<Section>;
}

/// What stays as it is while the hub runs.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct About {
    pub version: &'static str,
    pub host_names: Vec<String>,
    /// UTC milliseconds.
    pub started: i64,
    /// When an append is acknowledged, as in the configuration.
    pub durability: &'static str,
    pub partitions: u16,
    pub shards: usize,
    pub data_directory: String,
}

/// As `/readyz` tells it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    pub state: String,
    pub is_ready: bool,
    /// Part of the hub to what is wrong with it.
    pub reasons: BTreeMap<String, String>,
}

/// One section of the configuration.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Section {
    pub name: &'static str,
    pub doc: &'static str,
    pub keys: Vec<Key>,
}

/// One key, as it would stand in the file.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    pub name: &'static str,
    pub doc: &'static str,
    pub value: String,
    pub default: String,
}
