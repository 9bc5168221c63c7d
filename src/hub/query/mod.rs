//! The query language over devices and modules (IoT Hub, twin and job query language), from text to pages of answers.
//!
//! ```text
//!   text ── lexer ── expression, statement ──> Query ── search ──> pages of JSON, each from behind the last key
//!                                                          ^
//!                                 record: what an attribute of a device or module is
//! ```
//!
//! Invariants:
//! - Parsing is bounded in bytes and depth, and an error says where it is.
//! - A search goes on in slices of bounded work and holds one page, whatever the number of devices.
//! - What a query finds of an identity is what its twin shows at that moment; there is no lag.
//! - A query that names its devices reads only those.

mod expression;
mod lexer;
mod record;
mod search;
mod statement;

pub use expression::{Attributes, Comparison, Datum, Expression, Literal, Operator, Parser, Path};
pub use search::{Page, Progress, Search, SearchError};
pub use statement::{Aggregate, Output, Query, Select, Selected, Source};

/// A query's text is at most this long: room for an `IN` of a hundred ids.
pub const QUERY_BYTES_MAX: usize = 32 * 1024;

/// What cannot be understood, and where: the byte of the text, from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (at position {at})")]
pub struct ParseError {
    pub at: usize,
    pub reason: String,
}

impl ParseError {
    fn new(at: usize, reason: impl Into<String>) -> Self {
        Self {
            at,
            reason: reason.into(),
        }
    }
}

#[cfg(test)]
mod tests;
