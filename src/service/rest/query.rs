//! Queries over devices and modules, page by page.

use serde::Deserialize;
use tokio::sync::Semaphore;

use super::{Rest, walk};
use crate::http::{Answer, Call, Refused};
use crate::hub::query::{Progress, Query, Search, SearchError};

/// IoT Hub, quotas: results on a page, also where the request does not say how many.
const ITEMS_MAX: usize = 100;
/// Identities that a slice of a search looks at: some milliseconds of a processor.
const SLICE_VISITS: usize = 512;
/// Slices at work at a time in this process. Searches take turns slice by slice, so that one through a million devices
/// neither keeps a short one waiting nor takes the processors from telemetry.
static SLICES: Semaphore = Semaphore::const_new(2);

#[derive(Deserialize)]
struct Specification {
    query: String,
}

impl Rest {
    // IoT Hub, HTTPS section 6.
    pub(super) async fn query(&self, call: Call) -> Result<Answer, Refused> {
        let items_max = items_max(call.header("x-ms-max-item-count"))?;
        let continuation = call.header("x-ms-continuation").filter(|token| !token.is_empty());
        let continuation = continuation.map(str::to_owned);
        let Specification { query: text } = call.json().await?;
        let query = Query::parse(&text).map_err(Refused::invalid)?;
        let mut search = Search::new(self.registry.clone(), &text, query, items_max, continuation.as_deref())?;
        loop {
            let turn = SLICES.acquire().await.expect("the semaphore is never closed");
            let progress;
            (search, progress) = walk(move || {
                let progress = search.advance(SLICE_VISITS);
                (search, progress)
            })
            .await?;
            drop(turn);
            let Progress::Page(page) = progress? else { continue };
            let answer = Answer::json(200, &page.items).header("x-ms-item-type", page.item_type);
            return Ok(match page.continuation {
                Some(token) => answer.header("x-ms-continuation", &token),
                None => answer,
            });
        }
    }
}

fn items_max(header: Option<&str>) -> Result<usize, Refused> {
    match header.filter(|count| !count.is_empty()).map(str::parse::<usize>) {
        None => Ok(ITEMS_MAX),
        Some(Ok(count)) if count > 0 => Ok(count.min(ITEMS_MAX)),
        Some(Ok(_) | Err(_)) => Err(Refused::invalid("x-ms-max-item-count is no number from 1")),
    }
}

impl From<SearchError> for Refused {
    fn from(error: SearchError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
