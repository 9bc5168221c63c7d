//! Direct methods as frames. Which calls are under way, and for how long, is [`crate::session::methods`]'s.

use super::{Fault, Stream, read, replaced, unexpected};
use crate::hub::method::CALLS_PER_TARGET_MAX;
use crate::session::methods::Methods;
use crate::wire::device::{Answer, Invoke, MethodsOpen, Ready};
use crate::wire::frame::Kind;

pub(super) async fn run(stream: &mut Stream, open: MethodsOpen) -> Result<(), Fault> {
    let window = open.window.clamp(1, CALLS_PER_TARGET_MAX as u32);
    let target = stream.target.clone();
    let mut methods = Methods::listen(&target.door.lines, &target.name, window as usize);
    stream.write(&Ready { window }).await?;
    loop {
        tokio::select! {
            invocation = methods.next() => {
                let invocation = invocation.map_err(|_| replaced())?;
                let invoke = Invoke {
                    id: invocation.id,
                    name: invocation.name,
                    payload: invocation.payload,
                    timeout_ms: u32::try_from(invocation.time_left.as_millis()).unwrap_or(u32::MAX),
                };
                stream.write(&invoke).await?;
            }
            frame = stream.next_frame() => match frame? {
                None => return Ok(()),
                Some(frame) if frame.kind == Kind::Answer => {
                    let Answer { id, status, payload } = read(&frame)?;
                    methods.answer(id, status, &payload);
                }
                Some(frame) => return Err(unexpected(frame.kind)),
            },
        }
    }
}
