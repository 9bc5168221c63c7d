//! Limits that a contract fixes. Limits an operator may choose are in the `Config` of the module that enforces them.

/// IoT Hub, identity registry: device and module ids have 1 to 128 characters (ASCII, so bytes).
pub const ID_BYTES_MAX: usize = 128;
/// IoT Hub, shared access policies: names have up to 64 characters.
pub const POLICY_NAME_BYTES_MAX: usize = 64;
/// DTDL: identifiers of models have up to 2,048 characters (ASCII, so bytes).
pub const MODEL_ID_BYTES_MAX: usize = 2048;
/// Event Hubs: a consumer group's name has 1 to 50 characters.
pub const CONSUMER_GROUP_BYTES_MAX: usize = 50;
/// IoT Hub, built-in endpoint: up to 20 consumer groups, `$Default` included.
pub const CONSUMER_GROUPS_MAX: usize = 20;
/// IoT Hub, shared access policies: up to 16.
pub const POLICIES_MAX: usize = 16;
/// IoT Hub, D2C: 256 KB a message, counted by `Message::counted_bytes`.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// IoT Hub, built-in endpoint: the consumer group that always exists.
pub const DEFAULT_CONSUMER_GROUP: &str = "$Default";
/// IoT Hub, SAS: an expired token is accepted until this much later (clock skew).
pub const TOKEN_CLOCK_SKEW_SECONDS: u64 = 300;
