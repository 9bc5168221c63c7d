//! Doors for services. Each protocol has its own room.

pub mod amqp;
pub mod console;
pub mod eventhubs;
pub mod rest;
