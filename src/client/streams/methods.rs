//! Direct methods: answered by a function of the program.

use std::time::Duration;

use tokio::task::JoinSet;

use super::{Ended, Stream, read};
use crate::client::ClientError;
use crate::client::device::Device;
use crate::wire::control::Control as _;
use crate::wire::device::{Answer, Invoke, MethodsOpen};

// IoT Hub, direct methods: 128 KiB either way.
const PAYLOAD_BYTES_MAX: usize = 128 * 1024;

/// A method is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodCall {
    pub name: String,
    /// JSON; empty for none.
    pub payload: String,
    /// How long the caller waits, from the moment the hub sent the call.
    pub timeout: Duration,
}

/// What the method came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodAnswer {
    /// The device's own; by custom as in HTTP.
    pub status: i32,
    /// JSON, at most 128 KiB; empty for none. What is no JSON reaches the caller as an error.
    pub payload: String,
}

impl MethodAnswer {
    pub fn new(status: i32, payload: &str) -> Self {
        Self {
            status,
            payload: payload.to_owned(),
        }
    }
}

/// See [`Device::methods`].
pub struct Methods {
    device: Device,
    window: u32,
}

impl Methods {
    pub(super) fn new(device: Device, window: u32) -> Self {
        Self { device, window }
    }

    /// Answers calls with what `answer` makes of them, several at once, for as long as the device lives. What is not done
    /// when its caller gives up, or when the connection is lost, is dropped where it waits.
    ///
    /// # Errors
    /// The device has ended, or another stream took this one's place (`Refused`, 409003).
    pub async fn serve<F, A>(self, answer: F) -> Result<(), ClientError>
    where
        F: Fn(MethodCall) -> A,
        A: Future<Output = MethodAnswer> + Send + 'static,
    {
        let window = self.window;
        loop {
            let mut stream = Stream::open(&self.device, &MethodsOpen { window }).await?;
            match serve_stream(&mut stream, &answer).await {
                Ended::Lost(_) => {}
                Ended::Failed(error) => return Err(error),
            }
        }
    }
}

async fn serve_stream<F, A>(stream: &mut Stream, answer: &F) -> Ended
where
    F: Fn(MethodCall) -> A,
    A: Future<Output = MethodAnswer> + Send + 'static,
{
    // The hub sends no more calls than the window, and none that takes longer than its caller waits is kept. Dropped
    // with the stream: nobody waits for what is under way then.
    let mut under_way = JoinSet::new();
    loop {
        let heard = tokio::select! {
            frame = stream.next() => frame.and_then(|frame| read::<Invoke>(&frame)).map(Some),
            Some(answered) = under_way.join_next() => match answered {
                Ok(Some(answer)) => stream.write_bytes(&Answer::to_frame(&answer)).await.map(|()| None),
                // Too late, or the program's function panicked: the caller hears of it by its own time-out.
                Ok(None) | Err(_) => Ok(None),
            },
        };
        match heard {
            Ok(None) => {}
            Ok(Some(invoke)) => {
                let timeout = Duration::from_millis(invoke.timeout_ms.into());
                let call = MethodCall {
                    name: invoke.name,
                    payload: invoke.payload,
                    timeout,
                };
                let (id, answering) = (invoke.id, answer(call));
                under_way.spawn(async move {
                    let MethodAnswer { status, mut payload } = tokio::time::timeout(timeout, answering).await.ok()?;
                    // Enough for the hub to refuse it by name; all of it would be no frame and end the stream.
                    payload.truncate(payload.floor_char_boundary(PAYLOAD_BYTES_MAX + 4));
                    Some(Answer { id, status, payload })
                });
            }
            Err(ended) => return ended,
        }
    }
}
