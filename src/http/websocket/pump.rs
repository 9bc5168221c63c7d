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
            // What came before the connection's end is passed on before the end is: an MQTT client says goodbye and closes.
            biased;
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

#[cfg(test)]
mod tests {
    use actix_web::FromRequest;
    use actix_web::test::TestRequest;
    use tokio::io::AsyncReadExt;
    use tokio::sync::watch;

    use super::super::tunnel::Stop;
    use super::*;

    #[actix_web::test]
    async fn what_came_before_the_end_of_the_connection_is_passed_on() {
        // A masked binary frame of RFC 6455 with the mask 0.
        let frame = [&[0x82, 0x83, 0, 0, 0, 0], b"bye".as_slice()].concat();
        for _ in 0..64 {
            let (request, mut payload) = TestRequest::default().set_payload(frame.clone()).to_http_parts();
            let payload = actix_web::web::Payload::from_request(&request, &mut payload)
                .await
                .unwrap();
            let (ours, mut theirs) = tokio::io::duplex(1024);
            let (_outgoing, inlet) = tokio::io::split(ours);
            let (connected, is_over) = oneshot::channel();
            drop(connected);
            let supply = Supply {
                payload: Box::pin(BodyStream::new(payload)),
                inlet,
                words: Words::new(),
                is_over,
                stopping: Stop::new().listen(),
                drain_timeout: Duration::from_secs(1),
            };
            let (said, heard) = watch::channel(Vec::new());
            let tunnel = Box::pin(async move {
                let mut read = Vec::new();
                theirs.read_to_end(&mut read).await.unwrap();
                said.send_replace(read);
            });
            supply.run(tunnel).await;
            assert_eq!(*heard.borrow(), b"bye");
        }
    }
}
