//! Direct methods: calls out, answers back.
//!
//! Dropping a call tells its caller that the device is gone, so the end of the stream needs no bookkeeping.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Fault, Stream, read, replaced, unexpected};
use crate::hub::method::{CALLS_PER_TARGET_MAX, MethodAnswer, MethodError};
use crate::shard::lines::Call;
use crate::shard::timing::sleep_until;
use crate::wire::device::{Answer, Invoke, MethodsOpen, Ready};
use crate::wire::frame::Kind;

pub(super) async fn run(stream: &mut Stream, open: MethodsOpen) -> Result<(), Fault> {
    let window = open.window.clamp(1, CALLS_PER_TARGET_MAX as u32);
    let target = stream.target.clone();
    let mut calls = target.door.lines.listen_for_calls(&target.name);
    stream.write(&Ready { window }).await?;
    let mut under_way: HashMap<u64, Call> = HashMap::new();
    let mut next_id = 1;
    loop {
        let next_timeout = under_way.values().map(|call| call.deadline).min();
        tokio::select! {
            call = calls.next(), if under_way.len() < window as usize => {
                let call = call.ok_or_else(replaced)?;
                let left = call.deadline.saturating_duration_since(Instant::now());
                if left == Duration::ZERO {
                    continue;
                }
                let invoke = Invoke {
                    id: next_id,
                    name: call.name.clone(),
                    payload: call.payload.clone(),
                    timeout_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
                };
                under_way.insert(next_id, call);
                next_id += 1;
                stream.write(&invoke).await?;
            }
            frame = stream.next_frame() => match frame? {
                None => return Ok(()),
                Some(frame) if frame.kind == Kind::Answer => {
                    let Answer { id, status, payload } = read(&frame)?;
                    // An answer that came too late is nobody's any more.
                    if let Some(call) = under_way.remove(&id) {
                        call.answer(MethodAnswer::check(status, &payload));
                    }
                }
                Some(frame) => return Err(unexpected(frame.kind)),
            },
            () = sleep_until(next_timeout.map(Instant::into_std)) => {
                let now = Instant::now();
                for (_, call) in under_way.extract_if(|_, call| call.deadline <= now) {
                    call.answer(Err(MethodError::TimedOut));
                }
            }
        }
    }
}
