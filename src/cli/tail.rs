//! `forebay tail`: prints messages as they arrive.
//!
//! ```text
//! hub ──cursor──> reader (a task a partition) ──lines──> output (a thread)
//! ```
//!
//! A reader's position moves when the output has taken its lines, so a new connection goes on exactly behind them: no
//! message is missing and none comes twice. Order is kept within a partition, not between them.

use std::convert::Infallible;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::bail;
use clap::Args;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::connect::{self, Lasting};
use super::endpoints::HubArgs;
use super::lines::Lines;
use crate::client::ClientError;
use crate::client::service::{Service, Subscription};
use crate::model::{ConsumerGroup, PartitionId, SequenceNumber, UtcMillis};

/// Prints messages as they become readable, one a line.
#[derive(Args, Clone, Debug)]
pub struct TailArgs {
    /// Only this partition; all without it
    #[arg(long, value_name = "N")]
    pub partition: Option<u16>,
    /// Where to start: earliest, latest, time:2026-01-31T12:00:00Z; with --partition also sequence:N or offset:TEXT
    #[arg(long, value_name = "WHERE", default_value = "latest", value_parser = start)]
    pub from: Start,
    /// Consumer group to read as; nothing is checkpointed
    #[arg(long, value_name = "NAME", default_value = "$Default", value_parser = group)]
    pub group: ConsumerGroup,
    /// End after this many messages
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// One JSON object a line, with properties
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub hub: HubArgs,
}

/// Where reading starts in each partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    Earliest,
    Latest,
    /// As a message showed it.
    Offset(String),
    Sequence(SequenceNumber),
    /// The first message that was enqueued then or later.
    Time(UtcMillis),
}

fn start(text: &str) -> Result<Start, String> {
    let wrong = || format!("{text:?} is not earliest, latest, offset:TEXT, sequence:N or time:RFC3339");
    match text.split_once(':') {
        None if text == "earliest" => Ok(Start::Earliest),
        None if text == "latest" => Ok(Start::Latest),
        Some(("offset", offset)) if !offset.is_empty() => Ok(Start::Offset(offset.to_owned())),
        Some(("sequence", number)) => number
            .parse()
            .map(|n| Start::Sequence(SequenceNumber(n)))
            .map_err(|_| wrong()),
        Some(("time", time)) => {
            let time: jiff::Timestamp = time.parse().map_err(|error| format!("{}: {error}", wrong()))?;
            Ok(Start::Time(UtcMillis(time.as_millisecond())))
        }
        _ => Err(wrong()),
    }
}

fn group(text: &str) -> Result<ConsumerGroup, String> {
    ConsumerGroup::new(text).map_err(|error| format!("the consumer group {error}"))
}

/// Bytes of messages that are under way for one partition: bounds memory, whatever the output does.
const CREDIT_BYTES: u64 = 1 << 20;
/// Blocks of lines that wait for the output, all partitions together.
const BLOCKS_MAX: usize = 4;
impl TailArgs {
    /// # Errors
    /// The hub cannot be found or reached at first, or refuses. Later losses of the connection are waited out.
    pub fn run(self) -> anyhow::Result<()> {
        connect::block_on(self.follow())
    }

    async fn follow(self) -> anyhow::Result<()> {
        let (blocks, output) = start_output(self.count);
        let followed = tokio::select! {
            followed = self.follow_hub(&blocks) => followed,
            // The output has all it takes, or nobody reads it any more.
            () = blocks.closed() => Ok(()),
        };
        drop(blocks);
        output.join().expect("writing does not panic")?;
        followed
    }

    /// Follows all partitions over as many connections as it takes.
    async fn follow_hub(&self, blocks: &Blocks) -> anyhow::Result<()> {
        let (mut hub, mut service) = Lasting::open(&self.hub).await?;
        let mut readers = self.readers(service.partition_count())?;
        loop {
            let error = follow_partitions(Arc::new(service), &mut readers, blocks).await;
            service = hub.again(error).await?;
        }
    }

    fn readers(&self, partition_count: u16) -> anyhow::Result<Vec<Reader>> {
        let partitions = match self.partition {
            Some(partition) if partition >= partition_count => {
                bail!(
                    "there is no partition {partition}: the hub has 0 to {}",
                    partition_count - 1
                )
            }
            Some(partition) => partition..partition + 1,
            None => 0..partition_count,
        };
        if self.partition.is_none() && matches!(self.from, Start::Sequence(_) | Start::Offset(_)) {
            bail!("sequence numbers and offsets are of one partition: say which with --partition");
        }
        let next = match &self.from {
            Start::Sequence(sequence) => Some(*sequence),
            Start::Offset(offset) => match offset.parse() {
                Ok(number) => Some(SequenceNumber(number)),
                Err(_) => bail!("{offset:?} is no offset of this hub"),
            },
            Start::Earliest | Start::Latest | Start::Time(_) => None,
        };
        let reader = |partition| Reader {
            partition: PartitionId(partition),
            start: self.from.clone(),
            group: self.group.clone(),
            lines: Lines { json: self.json },
            next,
        };
        Ok(partitions.map(reader).collect())
    }
}

/// Follows every partition in a task of its own until one of them fails, and with it the connection.
async fn follow_partitions(service: Arc<Service>, readers: &mut Vec<Reader>, blocks: &Blocks) -> ClientError {
    let mut tasks = JoinSet::new();
    for reader in readers.drain(..) {
        tasks.spawn(reader.follow(service.clone(), blocks.clone()));
    }
    let mut first = None;
    while let Some(ended) = tasks.join_next().await {
        let (reader, error) = ended.expect("a reader does not panic");
        readers.push(reader);
        first.get_or_insert(error);
        service.close();
    }
    first.expect("a hub has at least one partition")
}

/// One partition, read from where it was.
struct Reader {
    partition: PartitionId,
    start: Start,
    group: ConsumerGroup,
    lines: Lines,
    /// What to read next, once that is known: everything before it was handed to the output.
    next: Option<SequenceNumber>,
}

impl Reader {
    async fn follow(mut self, service: Arc<Service>, blocks: Blocks) -> (Self, ClientError) {
        loop {
            let Err(error) = self.read(&service, &blocks).await;
            // Retention was faster, or records are lost: the hub says where reading can go on.
            if let ClientError::Refused { reason, next, .. } = &error
                && self.next.is_some_and(|at| at.0 < *next)
            {
                eprintln!("forebay: partition {}: {reason}; going on at {next}", self.partition);
                self.next = Some(SequenceNumber(*next));
            } else {
                return (self, error);
            }
        }
    }

    /// Hands messages to the output until reading fails.
    async fn read(&mut self, service: &Service, blocks: &Blocks) -> Result<Infallible, ClientError> {
        let mut cursor = service.subscribe(&self.subscription()).await?;
        self.next = Some(cursor.position());
        loop {
            let block = cursor
                .next()
                .await?
                .events()
                .map(|event| Ok(self.lines.line(self.partition, &event?)))
                .collect::<Result<_, ClientError>>()?;
            if blocks.send(block).await.is_err() {
                // The output has ended, which ends the command from above.
                return std::future::pending().await;
            }
            self.next = Some(cursor.position());
        }
    }

    fn subscription(&self) -> Subscription {
        let partition = self.partition.0;
        let subscription = match (self.next, &self.start) {
            (Some(next), _) => Subscription::sequence(partition, next),
            (None, Start::Time(time)) => Subscription::time(partition, *time),
            (None, Start::Earliest) => Subscription::earliest(partition),
            // The other starts are a sequence number from the beginning.
            (None, Start::Latest | Start::Offset(_) | Start::Sequence(_)) => Subscription::latest(partition),
        };
        subscription.group(self.group.as_str()).credit_bytes(CREDIT_BYTES)
    }
}

type Block = Vec<String>;
type Blocks = mpsc::Sender<Block>;

/// Writes on a thread of its own, so that a slow reader of the output holds up neither keep-alives nor Ctrl-C: it fills
/// the channel, then the hub's credit, and from there costs nothing but time.
fn start_output(count: Option<u64>) -> (Blocks, JoinHandle<io::Result<()>>) {
    let (sender, receiver) = mpsc::channel(BLOCKS_MAX);
    let output = std::thread::spawn(move || match write_lines(receiver, count, io::stdout()) {
        // `tail | head`: who does not read on has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    });
    (sender, output)
}

/// Writes until `count` lines are out or nobody sends any more.
fn write_lines(mut blocks: mpsc::Receiver<Block>, count: Option<u64>, out: impl Write) -> io::Result<()> {
    let mut out = BufWriter::new(out);
    let mut left = count.unwrap_or(u64::MAX);
    while left > 0
        && let Some(block) = blocks.blocking_recv()
    {
        let wanted = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        for line in &block[..wanted] {
            out.write_all(line.as_bytes())?;
            out.write_all(b"\n")?;
        }
        left -= wanted as u64;
        if blocks.is_empty() {
            out.flush()?;
        }
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_read() {
        for (text, expected) in [
            ("earliest", Start::Earliest),
            ("latest", Start::Latest),
            ("offset:17:a", Start::Offset("17:a".into())),
            ("sequence:5", Start::Sequence(SequenceNumber(5))),
            ("time:1970-01-01T00:00:01.5Z", Start::Time(UtcMillis(1500))),
        ] {
            assert_eq!(start(text), Ok(expected), "{text}");
        }
        for text in ["", "offset:", "sequence:-1", "time:noon", "5"] {
            assert!(start(text).is_err(), "{text}");
        }
    }

    #[test]
    fn output_ends_with_its_count_and_at_a_closed_pipe() {
        let run = |count, out: &mut dyn Write| {
            let (sender, receiver) = mpsc::channel(2);
            sender.try_send(vec!["a".to_owned(), "b".to_owned()]).unwrap();
            sender.try_send(vec!["c".to_owned(), "d".to_owned()]).unwrap();
            drop(sender);
            write_lines(receiver, count, out)
        };
        let lines = |count| {
            let mut out = Vec::new();
            run(count, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(lines(None), "a\nb\nc\nd\n");
        assert_eq!(lines(Some(3)), "a\nb\nc\n");
        assert_eq!(lines(Some(0)), "");
        let (reader, mut writer) = io::pipe().unwrap();
        drop(reader);
        assert_eq!(run(None, &mut writer).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
