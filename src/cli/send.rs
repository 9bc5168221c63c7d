//! `forebay send`: sends messages as a device.
//!
//! ```text
//! standard input ──thread──> blocks of lines ──> the device's buffer ──> hub
//!                 (channel: 4 blocks)        (8 MiB unacknowledged)
//! ```
//!
//! Each step waits for the next one, so a fast producer is slowed to what the hub stores. Once connected, the hub may go
//! and come back: what is not acknowledged is sent again and stored once.

use std::convert::Infallible;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;
use tokio::sync::mpsc;

use super::as_device::{CertificateArgs, connect_device};
use super::connect::{self, Target};
use super::endpoints::{EndpointsError, HubArgs};
use crate::client::device::{Device, Link, Receipt};
use crate::hub::connection_string::ConnectionString;
use crate::model::{DeviceId, Message, SystemKey, limits};

/// Each message is acknowledged when the hub has stored it; the command ends when all are.
#[derive(Args, Clone, Debug)]
pub struct SendArgs {
    /// Device to send as, or DEVICE/MODULE; leave it out when --connection-string names one
    #[arg(required_unless_present = "connection_string")]
    pub device: Option<String>,
    /// Body of the message
    #[arg(conflicts_with = "lines")]
    pub body: Option<String>,
    /// Send each line of standard input as a message
    #[arg(long)]
    pub lines: bool,
    /// Application property; repeatable
    #[arg(long = "property", short = 'p', value_name = "NAME=VALUE", value_parser = property)]
    pub properties: Vec<(String, String)>,
    /// Content type, for example application/json
    #[arg(long, value_name = "TYPE")]
    pub content_type: Option<String>,
    /// Content encoding, for example utf-8
    #[arg(long, value_name = "ENCODING")]
    pub content_encoding: Option<String>,
    /// Message id
    #[arg(long, value_name = "ID", conflicts_with = "lines")]
    pub message_id: Option<String>,
    /// Answer as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub certificate: CertificateArgs,
    #[command(flatten)]
    pub hub: HubArgs,
}

/// Lines travel from the reading thread in blocks of about this size, of which a few are under way.
const BLOCK_BYTES: usize = 64 << 10;
const BLOCKS_MAX: usize = 4;
/// A person is told when the hub stays away for longer.
const TELL_AFTER: Duration = Duration::from_secs(2);
const LINK_EVERY: Duration = Duration::from_millis(500);

pub(super) fn property(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a property has the form NAME=VALUE".to_owned()),
    }
}

impl SendArgs {
    /// # Errors
    /// The hub cannot be found or reached, refuses the device, or not everything was acknowledged before Ctrl-C.
    pub fn run(self) -> anyhow::Result<()> {
        connect::block_on(self.send())
    }

    async fn send(self) -> anyhow::Result<()> {
        let (device, body) = self.words()?;
        let (device, endpoint) = connect_device(&self.hub, device.as_ref(), &self.certificate).await?;
        let sender = Sender {
            template: self.template(),
            device_id: device.device_id().clone(),
            json: self.json,
        };
        let started = Instant::now();
        let sent = tokio::select! {
            sent = sender.send_all(&device, body) => sent.map(|()| Sent::All),
            never = tell_link(&device) => match never {},
            interrupted = tokio::signal::ctrl_c() => interrupted.map(|()| Sent::Interrupted).map_err(Into::into),
        };
        let elapsed = started.elapsed();
        // What is under way at an early end is still acknowledged by a polite one.
        device.clone().close().await;
        endpoint.wait_idle().await;
        sender.report(device.last_acknowledged(), elapsed)?;
        match (sent?, device.waiting()) {
            (Sent::All, _) => Ok(()),
            (Sent::Interrupted, 0) => bail!("interrupted"),
            (Sent::Interrupted, waiting) => {
                bail!("interrupted; of {waiting} messages nobody knows whether they are stored")
            }
        }
    }

    /// What the positional words mean: with a connection string that names the device, one word alone is the body.
    fn words(&self) -> anyhow::Result<(Option<Target>, Option<Vec<u8>>)> {
        let names_device = match &self.hub.connection_string {
            Some(text) => ConnectionString::parse(text)
                .map_err(EndpointsError::ConnectionString)?
                .device_id
                .is_some(),
            None => false,
        };
        let (device, body) = match (&self.device, &self.body) {
            (Some(body), None) if names_device && !self.lines => (None, Some(body)),
            (device, body) => (device.as_ref(), body.as_ref()),
        };
        if body.is_none() && !self.lines {
            bail!("nothing to send: give a body, or --lines to read standard input");
        }
        if device.is_none() && !names_device {
            bail!("which device? Name one, or give a --connection-string with DeviceId");
        }
        let device = device.map(|device| device.parse()).transpose();
        Ok((
            device.map_err(anyhow::Error::msg)?,
            body.map(|body| body.as_bytes().to_vec()),
        ))
    }

    /// Everything of a message but its body.
    fn template(&self) -> Message {
        let mut template = Message::default();
        let system = [
            (SystemKey::ContentType, &self.content_type),
            (SystemKey::ContentEncoding, &self.content_encoding),
            (SystemKey::MessageId, &self.message_id),
        ];
        for (key, value) in system {
            if let Some(value) = value {
                template = template.system(key, value);
            }
        }
        template.properties.clone_from(&self.properties);
        template
    }
}

/// How sending ended, if not by an error.
enum Sent {
    All,
    Interrupted,
}

struct Sender {
    template: Message,
    device_id: DeviceId,
    json: bool,
}

impl Sender {
    /// Sends the body, or else standard input, and waits until everything is acknowledged.
    async fn send_all(&self, device: &Device, body: Option<Vec<u8>>) -> anyhow::Result<()> {
        let mut message = self.template.clone();
        let last = match body {
            Some(body) => {
                message.body = body;
                Some(device.send(&message).await?)
            }
            None => {
                let mut last = None;
                let mut blocks = read_lines();
                while let Some(block) = blocks.recv().await {
                    for line in block.context("standard input")? {
                        message.body = line;
                        last = Some(device.send(&message).await?);
                    }
                }
                last
            }
        };
        if let Some(last) = last {
            device.acknowledged(last).await?;
        }
        Ok(())
    }

    fn report(&self, acknowledged: Receipt, elapsed: Duration) -> io::Result<()> {
        // The buffer is new and in memory: its first message is number 1, and none is dropped.
        let Receipt(count) = acknowledged;
        let seconds = elapsed.as_secs_f64();
        let rate = count as f64 / seconds.max(1e-9);
        let mut out = io::stdout().lock();
        if self.json {
            let report = json!({
                "deviceId": self.device_id.as_str(),
                "acknowledged": count,
                "elapsedMs": (seconds * 1e6).round() / 1e3,
                "messagesPerSecond": rate.round(),
            });
            writeln!(out, "{report}")
        } else if count == 1 {
            writeln!(out, "1 message acknowledged in {:.1} ms", seconds * 1e3)
        } else {
            writeln!(
                out,
                "{count} messages acknowledged in {:.1} ms ({rate:.0} a second)",
                seconds * 1e3
            )
        }
    }
}

/// Says on standard error when the hub stays away, and when it is back; meanwhile messages wait.
async fn tell_link(device: &Device) -> Infallible {
    let mut since = None;
    let mut is_told = false;
    let mut tick = tokio::time::interval(LINK_EVERY);
    loop {
        tick.tick().await;
        match device.link() {
            Link::Connected => {
                if std::mem::take(&mut is_told) {
                    eprintln!("forebay: connected again");
                }
                since = None;
            }
            Link::Connecting | Link::Waiting => {
                let since: &mut Instant = since.get_or_insert_with(Instant::now);
                if !is_told && since.elapsed() >= TELL_AFTER {
                    eprintln!("forebay: the connection is lost; trying again until Ctrl-C");
                    is_told = true;
                }
            }
            Link::Ended => {}
        }
    }
}

type Lines = Vec<Vec<u8>>;

/// Reads standard input on a thread of its own: a read there can neither be awaited nor cancelled.
fn read_lines() -> mpsc::Receiver<io::Result<Lines>> {
    let (sender, receiver) = mpsc::channel(BLOCKS_MAX);
    std::thread::spawn(move || {
        let mut input = BufReader::with_capacity(BLOCK_BYTES, io::stdin());
        loop {
            let mut block = Lines::new();
            let read = read_block(&mut input, &mut block);
            let is_last = block.is_empty() || read.is_err();
            if !block.is_empty() && sender.blocking_send(Ok(block)).is_err() {
                return;
            }
            if let Err(error) = read {
                let _ = sender.blocking_send(Err(error));
            }
            if is_last {
                return;
            }
        }
    });
    receiver
}

/// Adds the next line, and with it those that are there already: a line that was typed does not wait for another one.
/// Adds none at the end of input.
fn read_block(input: &mut BufReader<impl Read>, into: &mut Lines) -> io::Result<()> {
    let mut bytes = 0;
    while bytes < BLOCK_BYTES {
        let Some(line) = read_line(input)? else { break };
        bytes += line.len();
        into.push(line);
        if !input.buffer().contains(&b'\n') {
            break;
        }
    }
    Ok(())
}

/// The next line without its end.
fn read_line(input: &mut BufReader<impl Read>) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let bytes_max = limits::MESSAGE_BYTES_MAX as u64 + 2;
    if input.take(bytes_max).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.pop_if(|last| *last == b'\n').is_some() {
        line.pop_if(|last| *last == b'\r');
    }
    if line.len() > limits::MESSAGE_BYTES_MAX {
        let text = format!("a line is longer than {} bytes", limits::MESSAGE_BYTES_MAX);
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(Some(line))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn words(line: &str) -> Result<(Option<String>, Option<String>), String> {
        let Command::Send(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
            unreachable!("the line says send")
        };
        let (device, body) = args.words().map_err(|error| error.to_string())?;
        Ok((
            device.map(|device| device.to_string()),
            body.map(|body| String::from_utf8(body).unwrap()),
        ))
    }

    #[test]
    fn one_word_is_the_body_when_the_connection_string_names_the_device() {
        let check = |line: &str, device: Option<&str>, body: Option<&str>| {
            let expected = (device.map(str::to_owned), body.map(str::to_owned));
            assert_eq!(words(line), Ok(expected), "{line}");
        };
        let device = "--connection-string HostName=h;DeviceId=d;SharedAccessKey=YQ== --ca ca.pem";
        let policy = "--connection-string HostName=h;SharedAccessKeyName=p;SharedAccessKey=YQ== --ca ca.pem";
        check("forebay send dev-1 hello", Some("dev-1"), Some("hello"));
        check("forebay send dev-1 --lines", Some("dev-1"), None);
        check(&format!("forebay send hello {device}"), None, Some("hello"));
        check(&format!("forebay send d hello {device}"), Some("d"), Some("hello"));
        check(&format!("forebay send --lines {device}"), None, None);
        check(&format!("forebay send d hello {policy}"), Some("d"), Some("hello"));
        for line in [
            "forebay send dev-1",
            "forebay send a/b/c hello",
            &format!("forebay send {device}"),
            &format!("forebay send hello {policy}"),
            &format!("forebay send --lines {policy}"),
        ] {
            assert!(words(line).is_err(), "{line}");
        }
    }

    #[test]
    fn lines_lose_their_ends_and_nothing_else() {
        let check = |input: &[u8], expected: &[&[u8]]| {
            let mut reader = BufReader::new(input);
            let mut lines = Lines::new();
            while read_line(&mut reader).unwrap().map(|line| lines.push(line)).is_some() {}
            assert_eq!(lines, expected);
        };
        check(b"", &[]);
        check(b"a\n\nb\r\n c", &[b"a", b"", b"b", b" c"]);
        check(b"a\r\r\n\xff\n", &[b"a\r", b"\xff"]);
        let longest = vec![b'x'; limits::MESSAGE_BYTES_MAX];
        check(&[&longest[..], b"\r\n"].concat(), &[&longest]);
        let too_long = [&longest[..], b"x\n"].concat();
        assert!(read_line(&mut BufReader::new(&too_long[..])).is_err());
    }

    #[test]
    fn a_block_ends_where_input_would_be_waited_for() {
        /// Gives one piece a read.
        struct Pieces(Vec<&'static [u8]>);
        impl Read for Pieces {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                if self.0.is_empty() {
                    return Ok(0);
                }
                self.0.remove(0).read(into)
            }
        }
        let mut input = BufReader::new(Pieces(vec![b"a\nb\nc", b"d\n", b"e"]));
        let mut block = || {
            let mut lines = Lines::new();
            read_block(&mut input, &mut lines).unwrap();
            lines.concat()
        };
        assert_eq!(block(), b"ab");
        assert_eq!(block(), b"cd");
        assert_eq!(block(), b"e");
        assert_eq!(block(), b"");
    }
}
