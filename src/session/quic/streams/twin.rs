//! A device's twin: read, reported, and told of changes to the desired properties.

use std::time::Instant;

use tokio::sync::mpsc;

use super::{Fault, PENDING_MAX, Stream, Target, read, refused, replaced, unexpected};
use crate::hub::throttle::Class;
use crate::hub::twin::{DeviceSide, Members, TwinChange, TwinChanged, TwinError, parse_members};
use crate::hub::{ErrorCode, Throttled, Twin};
use crate::shard::lines::News;
use crate::shard::timing::pass;
use crate::wire::device::{Desired, Ready, Report, Reported, TwinDocument, TwinGet, TwinOpen};
use crate::wire::frame::Kind;

type Outcome = (u32, Result<TwinChanged, TwinError>);

pub(super) async fn run(stream: &mut Stream, open: TwinOpen) -> Result<(), Fault> {
    let target = stream.target.clone();
    // Before the twin is read, so that no change falls in between.
    let changes = target.door.lines.observe_desired(&target.name);
    stream.write(&Ready { window: 1 }).await?;
    let twin = twin(&target)?;
    if let Some(section) = twin.desired_since(open.desired_seen) {
        stream.write(&complete(twin.desired.version, &section)).await?;
    }
    let mut told = twin.desired.version;
    let (outcomes, mut outcome) = mpsc::unbounded_channel::<Outcome>();
    let mut pending = 0;
    loop {
        tokio::select! {
            news = changes.next() => tell(stream, news, &mut told).await?,
            Some((id, result)) = outcome.recv() => {
                pending -= 1;
                let reported = match result {
                    Ok(changed) => Reported { id, code: 0, version: changed.twin.reported.version, reason: String::new() },
                    Err(error) => refusal(id, error.code(), &error),
                };
                stream.write(&reported).await?;
            }
            frame = stream.next_frame(), if pending < PENDING_MAX => {
                let Some(frame) = frame? else { return Ok(()) };
                match frame.kind {
                    Kind::TwinGet => {
                        let TwinGet { id } = read(&frame)?;
                        let document = match turn(&target, Class::TwinReads).await {
                            Ok(()) => TwinDocument { id, code: 0, json: json(&DeviceSide::of(&self::twin(&target)?)) },
                            Err(throttled) => TwinDocument { id, code: throttled.code().number, json: throttled.to_string() },
                        };
                        stream.write(&document).await?;
                    }
                    Kind::Report => {
                        let Report { id, if_version, json } = read(&frame)?;
                        if let Err(throttled) = turn(&target, Class::TwinUpdates).await {
                            stream.write(&refusal(id, throttled.code(), &throttled)).await?;
                            continue;
                        }
                        match parse_members(json.as_bytes()) {
                            Err(error) => stream.write(&refusal(id, ErrorCode::FORMAT_ERROR, &error)).await?,
                            Ok(patch) => {
                                pending += 1;
                                let outcomes = outcomes.clone();
                                let version = (if_version > 0).then_some(if_version);
                                let (name, now) = (target.name.clone(), target.door.clock.now());
                                target.door.twins.patch_reported(name, target.generation, patch, version, now, move |result| {
                                    drop(outcomes.send((id, result)));
                                });
                            }
                        }
                    }
                    kind => return Err(unexpected(kind)),
                }
            }
        }
    }
}

/// Versions only grow for the device: what it has is passed over, and after a gap it gets the whole section.
async fn tell(stream: &mut Stream, news: News, told: &mut u64) -> Result<(), Fault> {
    if news.is_replaced {
        return Err(replaced());
    }
    for changed in news.changes {
        let version = changed.twin.desired.version;
        if version <= *told {
            continue;
        }
        let is_patch = matches!(&*changed.change, TwinChange::Patched(_)) && version == *told + 1;
        *told = version;
        let desired = match changed.desired_notification() {
            Some(patch) if is_patch => Desired {
                version,
                is_complete: false,
                json: json(&patch),
            },
            Some(_) | None => complete(version, &section(&changed.twin)),
        };
        stream.write(&desired).await?;
    }
    Ok(())
}

/// Waits until the device may use one of the hub's; the stream is not read meanwhile.
async fn turn(target: &Target, class: Class) -> Result<(), Throttled> {
    pass(target.door.throttles.admit(class, 1, Instant::now())).await
}

fn twin(target: &Target) -> Result<Twin, Fault> {
    target
        .door
        .twins
        .get(&target.name)
        .map_err(|error| refused(error.code(), error))
}

/// The whole section: no version is 0.
fn section(twin: &Twin) -> Members {
    twin.desired_since(0).unwrap_or_default()
}

fn complete(version: u64, section: &Members) -> Desired {
    Desired {
        version,
        is_complete: true,
        json: json(section),
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

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("twins have text keys and no failing serializers")
}
