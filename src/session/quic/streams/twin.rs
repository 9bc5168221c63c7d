//! A device's twin as frames. What the device is told, and what it may ask, is [`crate::session::twin`]'s.

use super::{Fault, PENDING_MAX, Stream, read, refused, replaced, unexpected};
use crate::hub::ErrorCode;
use crate::session::twin::{self, Observed, OwnTwin, TwinRefused};
use crate::wire::device::{Desired, Ready, Report, Reported, TwinDocument, TwinGet, TwinOpen};
use crate::wire::frame::Kind;

pub(super) async fn run(stream: &mut Stream, open: TwinOpen) -> Result<(), Fault> {
    let target = stream.target.clone();
    let door = &target.door;
    let observed = Observed::open(&door.lines, &door.twins, &target.name, open.desired_seen);
    stream.write(&Ready { window: 1 }).await?;
    let (mut observed, missed) = observed.map_err(|error| refused(error.code(), error))?;
    if let Some(missed) = missed {
        stream.write(&desired(&missed)).await?;
    }
    let (throttles, clock) = (door.throttles.clone(), door.clock.clone());
    let mut own = OwnTwin::new(
        door.twins.clone(),
        throttles,
        clock,
        target.name.clone(),
        target.generation,
    );
    loop {
        tokio::select! {
            told = observed.next() => {
                let told = told.map_err(|_| replaced())?;
                stream.write(&desired(&told)).await?;
            }
            (id, version) = own.outcome() => {
                let reported = match version {
                    Ok(version) => Reported { id, code: 0, version, reason: String::new() },
                    Err(error) => refusal(id, error.code(), &error),
                };
                stream.write(&reported).await?;
            }
            frame = stream.next_frame(), if own.pending() < PENDING_MAX => {
                let Some(frame) = frame? else { return Ok(()) };
                match frame.kind {
                    Kind::TwinGet => {
                        let TwinGet { id } = read(&frame)?;
                        stream.write(&document(id, own.read().await)?).await?;
                    }
                    Kind::Report => {
                        let Report { id, if_version, json } = read(&frame)?;
                        let version = (if_version > 0).then_some(if_version);
                        if let Err(error) = own.report(id, json.as_bytes(), version).await {
                            stream.write(&refusal(id, error.code(), &error)).await?;
                        }
                    }
                    kind => return Err(unexpected(kind)),
                }
            }
        }
    }
}

/// A twin that cannot be read ends the stream.
fn document(id: u32, twin: Result<String, TwinRefused>) -> Result<TwinDocument, Fault> {
    match twin {
        Ok(json) => Ok(TwinDocument { id, code: 0, json }),
        Err(TwinRefused::Throttled(throttled)) => Ok(TwinDocument {
            id,
            code: throttled.code().number,
            json: throttled.to_string(),
        }),
        Err(error @ (TwinRefused::Twin(_) | TwinRefused::Malformed(_))) => Err(refused(error.code(), error)),
    }
}

fn desired(told: &twin::Desired) -> Desired {
    Desired {
        version: told.version,
        is_complete: told.is_complete,
        json: told.json(),
    }
}

fn refusal(id: u32, code: ErrorCode, reason: &impl std::fmt::Display) -> Reported {
    Reported {
        id,
        code: code.number,
        version: 0,
        reason: reason.to_string(),
    }
}
