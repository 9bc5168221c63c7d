//! A request's body: read within a size and a time, and held where it was not.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::body::{BodySize, BodyStream, BoxBody, MessageBody};
use actix_web::http::header::{CONTENT_LENGTH, HeaderMap};
use actix_web::web::{Bytes, BytesMut, Payload};

/// A request's body until it is read. Whoever answers keeps what is left: actix ends a connection whose request has a
/// body that is held and unread, but waits without limit for the end of a chunked one that was dropped.
#[derive(Clone)]
pub struct Incoming(Rc<Cell<Option<Unread>>>);

/// What was not read of a body.
pub(super) type Unread = Pin<Box<BodyStream<Payload>>>;

/// Why there is no body. The connection must end with the answer: what else comes on it cannot be told from the rest of
/// the body.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the body exceeds {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
    #[error("the body did not come in time")]
    TimedOut,
    /// The client broke off.
    #[error("{0}")]
    Broken(String),
}

impl Incoming {
    pub fn new(payload: Payload) -> Self {
        Self(Rc::new(Cell::new(Some(Box::pin(BodyStream::new(payload))))))
    }

    /// The whole body; empty when it was read before.
    ///
    /// # Errors
    /// `BodyError`; hold what is left until the answer is sent.
    pub async fn read(&self, headers: &HeaderMap, bytes_max: usize, timeout: Duration) -> Result<Bytes, BodyError> {
        let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        if announced
            .and_then(|length| length.parse().ok())
            .is_some_and(|length: usize| length > bytes_max)
        {
            return Err(BodyError::TooLarge { bytes_max });
        }
        let Some(mut stream) = self.0.take() else {
            return Ok(Bytes::new());
        };
        let read = async {
            let mut body = BytesMut::new();
            while let Some(chunk) = poll_fn(|context| stream.as_mut().poll_next(context)).await {
                let chunk = chunk.map_err(|error| BodyError::Broken(error.to_string()))?;
                if body.len() + chunk.len() > bytes_max {
                    return Err(BodyError::TooLarge { bytes_max });
                }
                body.extend_from_slice(&chunk);
            }
            Ok(body.freeze())
        };
        let read = tokio::time::timeout(timeout, read).await;
        if !matches!(read, Ok(Ok(_))) {
            self.0.set(Some(stream));
        }
        read.unwrap_or(Err(BodyError::TimedOut))
    }

    /// Keeps what was not read of a request until its answer is sent.
    pub fn hold(&self, response: HttpResponse) -> HttpResponse {
        match self.0.take() {
            Some(unread) => response.map_body(|_, body| Holding { body, _unread: unread }.boxed()),
            None => response,
        }
    }

    /// What was not read, for whoever reads on in another protocol.
    pub(super) fn take(&self) -> Option<Unread> {
        self.0.take()
    }
}

/// An answer's body that keeps what was not read of the request until it is sent; see [`Incoming`].
struct Holding {
    body: BoxBody,
    _unread: Unread,
}

impl MessageBody for Holding {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_next(context)
    }
}
