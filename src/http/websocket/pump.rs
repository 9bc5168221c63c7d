//! The way from a client's frames to a tunnel, and the tunnel's end.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use actix_web::body::{BodyStream, MessageBody};
use actix_web::web::{BytesMut, Payload};
use tokio::io::{AsyncWriteExt, DuplexStream, WriteHalf};
use tokio::sync::oneshot;

use super::frame::{Decoder, Event};
use super::outlet::Words;
use super::tunnel::{Stopping, Tunneling};

/// What a tunnel whose stream has ended may still take to put its things in order.
const FAREWELL_MAX: Duration = Duration::from_secs(5);

/// What feeds one tunnel.
pub(super) struct Supply {
    pub payload: Pin<Box<BodyStream<Payload>>>,
    pub inlet: WriteHalf<DuplexStream>,
    pub words: Rc<Words>,
    /// Nobody sends here: the other end goes when the connection does.
    pub is_over: oneshot::Receiver<Infallible>,
    pub stopping: Stopping,
    pub drain_timeout: Duration,
}

impl Supply {
    /// Runs a tunnel to its end, which comes soon after the client's or the server's.
    pub async fn run(self, mut tunnel: Tunneling) {
        let Self {
            mut payload,
            mut inlet,
            words,
            is_over,
            mut stopping,
            drain_timeout,
        } = self;
        // The server waits `drain_timeout` in all: half of it for tunnels that end by themselves, a quarter for those that
        // have to be shown the end, the rest for the last bytes of both.
        let stopped = async {
            stopping.told().await;
            tokio::time::sleep(drain_timeout / 2).await;
        };
        tokio::select! {
            () = &mut tunnel => return,
            () = feed(&mut payload, &mut inlet, &words) => {}
            _ = is_over => {}
            () = stopped => {}
        }
        // Cannot fail in memory, and if the tunnel has dropped its end there is nothing to tell it.
        let _ = inlet.shutdown().await;
        let farewell = FAREWELL_MAX.min(drain_timeout / 4);
        if tokio::time::timeout(farewell, tunnel).await.is_err() {
            tracing::debug!("a tunnel did not end with its stream");
        }
    }
}

/// Passes on what the client sends, until it sends no more or what it may not.
async fn feed(payload: &mut Pin<Box<BodyStream<Payload>>>, inlet: &mut WriteHalf<DuplexStream>, words: &Words) {
    let mut decoder = Decoder::default();
    while let Some(Ok(chunk)) = poll_fn(|context| payload.as_mut().poll_next(context)).await {
        let mut chunk = BytesMut::from(chunk);
        loop {
            match decoder.next(&mut chunk) {
                Ok(None) => break,
                Ok(Some(Event::Data(data))) => {
                    if inlet.write_all(&data).await.is_err() {
                        return;
                    }
                }
                Ok(Some(Event::Ping(payload))) => words.pong(payload),
                Ok(Some(Event::Close(code))) => return words.close(code),
                Err(violation) => {
                    tracing::debug!(%violation, "closes a WebSocket");
                    return words.close(Some(violation.code()));
                }
            }
        }
    }
}
