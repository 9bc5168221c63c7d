//! The device's twin: read, reported, and followed.

use std::collections::VecDeque;

use super::{Ended, Stream, read, refused, unexpected};
use crate::client::ClientError;
use crate::client::device::Device;
use crate::wire::control::Control;
use crate::wire::device::{Desired, Report, Reported, TwinDocument, TwinGet, TwinOpen};
use crate::wire::frame::Kind;

/// The desired properties changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredChange {
    /// `$version`; grows from change to change.
    pub version: u64,
    /// The whole section; otherwise a merge patch, in which null deletes.
    pub is_complete: bool,
    /// JSON, with `$version`.
    pub json: String,
}

/// See [`Device::twin`].
pub struct Twin {
    device: Device,
    desired_seen: u64,
    stream: Option<Stream>,
    changes: VecDeque<DesiredChange>,
    next_id: u32,
}

/// What a request came to.
enum Answer {
    Document(TwinDocument),
    Reported(Reported),
}

impl Twin {
    pub(super) fn new(device: Device, desired_seen: u64) -> Self {
        Self {
            device,
            desired_seen,
            stream: None,
            changes: VecDeque::new(),
            next_id: 0,
        }
    }

    /// Begins to follow the desired properties; the other calls do it too.
    ///
    /// # Errors
    /// As `changed`.
    pub async fn listen(&mut self) -> Result<(), ClientError> {
        if self.stream.is_none() {
            let desired_seen = self.desired_seen;
            self.stream = Some(Stream::open(&self.device, &TwinOpen { desired_seen }).await?);
        }
        Ok(())
    }

    /// The next change of the desired properties, in the order of versions; after a lost connection what was missed, as
    /// one complete section.
    ///
    /// # Errors
    /// The device has ended, or another stream took this one's place (`Refused`, 409003).
    pub async fn changed(&mut self) -> Result<DesiredChange, ClientError> {
        loop {
            if let Some(change) = self.changes.pop_front() {
                return Ok(change);
            }
            self.listen().await?;
            match self.hear().await {
                // Of a request that nobody waits for any more.
                Ok(_) => {}
                Err(Ended::Lost(_)) => self.stream = None,
                Err(Ended::Failed(error)) => return Err(error),
            }
        }
    }

    /// Both sections as JSON: `{"desired": {.., "$version"}, "reported": {.., "$version"}}`.
    ///
    /// # Errors
    /// As `changed`, or the contract's refusal. Lost connections are waited over.
    pub async fn get(&mut self) -> Result<String, ClientError> {
        loop {
            self.listen().await?;
            match self.ask_twin().await {
                Ok(TwinDocument { code: 0, json, .. }) => return Ok(json),
                Ok(TwinDocument { code, json, .. }) => return Err(refused(code, json)),
                Err(Ended::Lost(_)) => self.stream = None,
                Err(Ended::Failed(error)) => return Err(error),
            }
        }
    }

    /// Merges JSON into the reported properties (null deletes) and waits until that is durable; the `$version` after it.
    /// `if_version`: only if they have this version.
    ///
    /// # Errors
    /// `Refused` with the contract's code (412001: another version; 400004: what twins cannot hold). `Unreachable`: the
    /// connection ended first, whether it is stored is unknown; repeating it does no harm, but with `if_version` it is
    /// refused (412001) if the first one took effect.
    pub async fn report(&mut self, json: &str, if_version: Option<u64>) -> Result<u64, ClientError> {
        self.listen().await?;
        match self.ask_report(json, if_version.unwrap_or(0)).await {
            Ok(Reported { code: 0, version, .. }) => Ok(version),
            Ok(Reported { code, reason, .. }) => Err(refused(code, reason)),
            Err(ended) => {
                self.stream = None;
                Err(ended.into())
            }
        }
    }

    async fn ask_twin(&mut self) -> Result<TwinDocument, Ended> {
        let id = self.id();
        self.ask(&TwinGet { id }).await?;
        loop {
            if let Some(Answer::Document(document)) = self.hear().await?
                && document.id == id
            {
                return Ok(document);
            }
        }
    }

    async fn ask_report(&mut self, json: &str, if_version: u64) -> Result<Reported, Ended> {
        let id = self.id();
        let json = json.to_owned();
        self.ask(&Report { id, if_version, json }).await?;
        loop {
            if let Some(Answer::Reported(reported)) = self.hear().await?
                && reported.id == id
            {
                return Ok(reported);
            }
        }
    }

    fn id(&mut self) -> u32 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    async fn ask(&mut self, request: &impl Control) -> Result<(), Ended> {
        // Taken out: a write that is cancelled half-way must be the stream's last.
        let mut stream = self.stream.take().ok_or_else(closed)?;
        stream.write(request).await?;
        self.stream = Some(stream);
        Ok(())
    }

    /// One frame: a change, which is kept, or an answer.
    async fn hear(&mut self) -> Result<Option<Answer>, Ended> {
        let frame = self.stream.as_mut().ok_or_else(closed)?.next().await?;
        match frame.kind {
            Kind::TwinDocument => Ok(Some(Answer::Document(read(&frame)?))),
            Kind::Reported => Ok(Some(Answer::Reported(read(&frame)?))),
            Kind::Desired => {
                let Desired {
                    version,
                    is_complete,
                    json,
                } = read(&frame)?;
                self.desired_seen = version;
                self.changes.push_back(DesiredChange {
                    version,
                    is_complete,
                    json,
                });
                Ok(None)
            }
            kind => Err(unexpected(kind)),
        }
    }
}

fn closed() -> Ended {
    Ended::Lost("no stream is open".into())
}
