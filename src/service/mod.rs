//! Doors for services. Each protocol has its own room.

pub mod rest;
