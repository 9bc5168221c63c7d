//! The way from a tunnel to its client: the body of the answer that opened it.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use actix_web::body::{BodySize, MessageBody};
use actix_web::web::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, DuplexStream, ReadHalf};
use tokio::sync::oneshot;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::frame;
use super::tunnel::Stopping;

/// Most bytes of a frame.
const FRAME_BYTES_MAX: usize = 16 << 10;
const _: () = assert!(FRAME_BYTES_MAX <= u16::MAX as usize);

// RFC 6455 s7.4.1.
const CLOSE_NORMAL: u16 = 1000;
const CLOSE_GOING_AWAY: u16 = 1001;

/// What has to be said to the client besides what the tunnel says.
#[derive(Default)]
pub(super) struct Words {
    /// RFC 6455 s5.5.3: of several pings only the latest has to be answered; so no flood of them piles up.
    pong: RefCell<Option<Bytes>>,
    /// Inside: the code, if there is one.
    close: Cell<Option<Option<u16>>>,
    reader: RefCell<Option<Waker>>,
}

impl Words {
    pub fn new() -> Rc<Self> {
        Rc::default()
    }

    pub fn pong(&self, payload: Bytes) {
        self.pong.replace(Some(payload));
        self.wake();
    }

    /// Ends the connection; what the tunnel has still to say is not said.
    pub fn close(&self, code: Option<u16>) {
        self.close.set(Some(code));
        self.wake();
    }

    fn wake(&self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// The next frame. A pong that cannot be sent any more is forgotten.
    fn poll(&self, context: &Context<'_>) -> Option<Word> {
        if let Some(code) = self.close.take() {
            return Some(Word::Close(code));
        }
        if let Some(payload) = self.pong.take() {
            return Some(Word::Pong(payload));
        }
        self.reader.replace(Some(context.waker().clone()));
        None
    }
}

enum Word {
    Pong(Bytes),
    Close(Option<u16>),
}

/// Frames for the client, made when the connection has room for them.
pub(super) struct Outlet {
    stream: ReadHalf<DuplexStream>,
    words: Rc<Words>,
    stopping: Stopping,
    /// Goes with the connection, whatever ends it.
    _connected: oneshot::Sender<Infallible>,
    pulse: Interval,
    /// Nothing was said since the last beat.
    is_quiet: bool,
    is_closed: bool,
}

impl Outlet {
    /// `pulse` is how long a connection may be without a byte sent, which shows whether it is still there: nothing else
    /// would, while neither side has anything to say or the tunnel does not read.
    pub fn new(
        stream: ReadHalf<DuplexStream>,
        words: Rc<Words>,
        stopping: Stopping,
        connected: oneshot::Sender<Infallible>,
        pulse: Duration,
    ) -> Self {
        let mut pulse = interval_at(Instant::now() + pulse, pulse);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            stream,
            words,
            stopping,
            _connected: connected,
            pulse,
            is_quiet: true,
            is_closed: false,
        }
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Bytes> {
        match self.words.poll(context) {
            Some(Word::Close(code)) => return Poll::Ready(self.close(code)),
            Some(Word::Pong(payload)) => return Poll::Ready(frame::pong(&payload)),
            None => {}
        }
        let mut bytes = BytesMut::with_capacity(frame::BINARY_HEADER_BYTES + FRAME_BYTES_MAX);
        bytes.put_bytes(0, frame::BINARY_HEADER_BYTES);
        match pin!(self.stream.read_buf(&mut bytes)).poll(context) {
            Poll::Ready(Ok(1..)) => return Poll::Ready(frame::binary(bytes)),
            Poll::Ready(Ok(0) | Err(_)) => {
                let code = if self.stopping.is_told() {
                    CLOSE_GOING_AWAY
                } else {
                    CLOSE_NORMAL
                };
                return Poll::Ready(self.close(Some(code)));
            }
            Poll::Pending => {}
        }
        while self.pulse.poll_tick(context).is_ready() {
            if std::mem::replace(&mut self.is_quiet, true) {
                return Poll::Ready(frame::ping());
            }
        }
        Poll::Pending
    }

    fn close(&mut self, code: Option<u16>) -> Bytes {
        self.is_closed = true;
        frame::close(code)
    }
}

impl MessageBody for Outlet {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        let outlet = self.get_mut();
        if outlet.is_closed {
            return Poll::Ready(None);
        }
        let frame = outlet.poll_frame(context);
        if frame.is_ready() {
            outlet.is_quiet = false;
        }
        frame.map(|frame| Some(Ok(frame)))
    }
}
