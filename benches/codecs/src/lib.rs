//! The hub's MQTT codec by itself, to be held against others: `cargo bench` says what each costs, `cargo test` whether they
//! agree.

#[path = "../../../src/proto/mqtt/mod.rs"]
pub mod mqtt;
