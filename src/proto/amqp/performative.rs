//! The nine performatives of AMQP, and the three SASL frames the hub meets.
//!
//! Written at full length, nulls at the end included, because there are clients that index fields by position
//! (azure-eventhub, `_pyamqp`); read at any length.

use bytes::Bytes;

use super::error::{Condition, Error};
use super::value::{Compound, Fields, Reader, Value, ValueError, Writer};

// AMQP 1.0 s2.7, s2.8, s5.3.3.
const OPEN: u8 = 0x10;
const BEGIN: u8 = 0x11;
const ATTACH: u8 = 0x12;
const FLOW: u8 = 0x13;
pub(super) const TRANSFER: u8 = 0x14;
const DISPOSITION: u8 = 0x15;
const DETACH: u8 = 0x16;
const END: u8 = 0x17;
const CLOSE: u8 = 0x18;
const ERROR: u8 = 0x1d;
const RECEIVED: u8 = 0x23;
const ACCEPTED: u8 = 0x24;
const REJECTED: u8 = 0x25;
const RELEASED: u8 = 0x26;
const MODIFIED: u8 = 0x27;
const SOURCE: u8 = 0x28;
const TARGET: u8 = 0x29;
const SASL_MECHANISMS: u8 = 0x40;
const SASL_INIT: u8 = 0x41;
const SASL_OUTCOME: u8 = 0x44;
const NULL: u8 = 0x40;
const TRUE: u8 = 0x41;
const FALSE: u8 = 0x42;
/// Of outcomes, which have no fields to index; performatives never are this short.
const EMPTY_LIST: [u8; 1] = [0x45];

/// What a frame says.
#[derive(Clone, Debug, PartialEq)]
pub enum Performative {
    Open(Open),
    Begin(Begin),
    Attach(Box<Attach>),
    Flow(Flow),
    Transfer(Transfer),
    Disposition(Disposition),
    Detach(Detach),
    End(Option<Error>),
    Close(Option<Error>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Open {
    pub container_id: String,
    pub hostname: Option<String>,
    /// From 512.
    pub max_frame_size: u32,
    pub channel_max: u16,
    pub idle_timeout_ms: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    pub remote_channel: Option<u16>,
    pub next_outgoing_id: u32,
    pub incoming_window: u32,
    pub outgoing_window: u32,
    pub handle_max: u32,
}

/// Which end of a link the sender of a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Sender,
    Receiver,
}

/// Whether deliveries are sent settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SenderSettles {
    Unsettled,
    Settled,
    #[default]
    Mixed,
}

/// Whose word about a delivery is the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReceiverSettles {
    /// The receiver's.
    #[default]
    First,
    /// The sender's, in answer to the receiver's.
    Second,
}

/// What stands in the reply as it came.
pub type Raw = Bytes;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terminus {
    pub address: Option<String>,
    /// As it came: to echo what was accepted. Sources only.
    pub filter: Option<Raw>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    pub name: String,
    pub handle: u32,
    pub role: Role,
    pub sender_settles: SenderSettles,
    pub receiver_settles: ReceiverSettles,
    /// `None`: the link is refused, or asks for nothing.
    pub source: Option<Terminus>,
    pub target: Option<Terminus>,
    pub initial_delivery_count: Option<u32>,
    pub max_message_size: Option<u64>,
    pub offered_capabilities: Vec<String>,
    pub desired_capabilities: Vec<String>,
    /// As they came, a map.
    pub properties: Option<Raw>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    pub next_incoming_id: Option<u32>,
    pub incoming_window: u32,
    pub next_outgoing_id: u32,
    pub outgoing_window: u32,
    pub handle: Option<u32>,
    pub delivery_count: Option<u32>,
    pub link_credit: Option<u32>,
    pub available: Option<u32>,
    pub drain: bool,
    pub echo: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    pub handle: u32,
    pub delivery_id: Option<u32>,
    pub delivery_tag: Option<Bytes>,
    pub message_format: Option<u32>,
    pub settled: Option<bool>,
    pub more: bool,
    pub aborted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disposition {
    pub role: Role,
    pub first: u32,
    pub last: u32,
    pub settled: bool,
    pub state: Option<DeliveryState>,
}

/// How a delivery came out, or how far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryState {
    Received,
    Accepted,
    Rejected(Option<Error>),
    Released,
    Modified {
        failed: bool,
        undeliverable: bool,
    },
    /// Of an extension, such as transactions.
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detach {
    pub handle: u32,
    pub closed: bool,
    pub error: Option<Error>,
}

/// A frame's described list: which, and its fields.
fn described<'a>(reader: &mut Reader<'a>) -> Result<(u64, Fields<'a>), ValueError> {
    let Value::Described(described) = reader.value()? else {
        return Err(ValueError::Type("a described list"));
    };
    let code = code_of(described.descriptor()?)?;
    let Value::List(list) = described.value()? else {
        return Err(ValueError::Type("a described list"));
    };
    Ok((code, Fields::new(&list)))
}

/// A descriptor as number, also where it is written as a symbol.
fn code_of(descriptor: Value<'_>) -> Result<u64, ValueError> {
    const NAMES: [(&str, u8); 21] = [
        ("amqp:open:list", OPEN),
        ("amqp:begin:list", BEGIN),
        ("amqp:attach:list", ATTACH),
        ("amqp:flow:list", FLOW),
        ("amqp:transfer:list", TRANSFER),
        ("amqp:disposition:list", DISPOSITION),
        ("amqp:detach:list", DETACH),
        ("amqp:end:list", END),
        ("amqp:close:list", CLOSE),
        ("amqp:error:list", ERROR),
        ("amqp:received:list", RECEIVED),
        ("amqp:accepted:list", ACCEPTED),
        ("amqp:rejected:list", REJECTED),
        ("amqp:released:list", RELEASED),
        ("amqp:modified:list", MODIFIED),
        ("amqp:source:list", SOURCE),
        ("amqp:target:list", TARGET),
        ("amqp:sasl-mechanisms:list", SASL_MECHANISMS),
        ("amqp:sasl-init:list", SASL_INIT),
        ("amqp:sasl-outcome:list", SASL_OUTCOME),
        ("amqp:coordinator:list", 0x30),
    ];
    match descriptor {
        Value::Ulong(code) => Ok(code),
        Value::Symbol(name) => {
            let known = NAMES.iter().find(|(known, _)| *known == name);
            Ok(known.map_or(u64::MAX, |(_, code)| u64::from(*code)))
        }
        _ => Err(ValueError::Type("a descriptor")),
    }
}

impl Performative {
    /// Reads the performative at the start of a frame's body; what follows is a transfer's payload.
    ///
    /// # Errors
    /// `ValueError`.
    pub fn read(body: &[u8]) -> Result<(Self, &[u8]), ValueError> {
        let mut reader = Reader::new(body);
        let (code, mut fields) = described(&mut reader)?;
        let fields = &mut fields;
        let performative = match u8::try_from(code).unwrap_or(0) {
            OPEN => Self::Open(Open::read(fields)?),
            BEGIN => Self::Begin(Begin::read(fields)?),
            ATTACH => Self::Attach(Box::new(Attach::read(fields)?)),
            FLOW => Self::Flow(Flow::read(fields)?),
            TRANSFER => Self::Transfer(Transfer::read(fields)?),
            DISPOSITION => Self::Disposition(Disposition::read(fields)?),
            DETACH => Self::Detach(Detach::read(fields)?),
            END => Self::End(read_error(fields)?),
            CLOSE => Self::Close(read_error(fields)?),
            _ => return Err(ValueError::Type("a performative")),
        };
        Ok((performative, reader.rest()))
    }

    pub fn write(&self, into: &mut Vec<u8>) {
        let mut writer = Writer(into);
        match self {
            Self::Open(open) => open.write(&mut writer),
            Self::Begin(begin) => begin.write(&mut writer),
            Self::Attach(attach) => attach.write(&mut writer),
            Self::Flow(flow) => flow.write(&mut writer),
            Self::Transfer(transfer) => transfer.write(&mut writer),
            Self::Disposition(disposition) => disposition.write(&mut writer),
            Self::Detach(detach) => detach.write(&mut writer),
            Self::End(error) => {
                writer.descriptor(END);
                writer.list(1, |list| list.optional(error.as_ref(), write_error));
            }
            Self::Close(error) => {
                writer.descriptor(CLOSE);
                writer.list(1, |list| list.optional(error.as_ref(), write_error));
            }
        }
    }
}

impl Open {
    fn read(fields: &mut Fields<'_>) -> Result<Self, ValueError> {
        Ok(Self {
            container_id: fields.text()?.ok_or(ValueError::Missing("container-id"))?.to_owned(),
            hostname: fields.text()?.map(str::to_owned),
            max_frame_size: fields.uint()?.unwrap_or(u32::MAX),
            channel_max: fields.ushort()?.unwrap_or(u16::MAX),
            idle_timeout_ms: fields.uint()?,
        })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.descriptor(OPEN);
        writer.list(10, |list| {
            list.string(&self.container_id);
            list.optional(self.hostname.as_deref(), Writer::string);
            list.uint(self.max_frame_size);
            list.ushort(self.channel_max);
            list.optional(self.idle_timeout_ms, Writer::uint);
            // Locales, capabilities and properties.
            (0..5).for_each(|_| list.null());
        });
    }
}

impl Begin {
    fn read(fields: &mut Fields<'_>) -> Result<Self, ValueError> {
        Ok(Self {
            remote_channel: fields.ushort()?,
            next_outgoing_id: fields.uint()?.ok_or(ValueError::Missing("next-outgoing-id"))?,
            incoming_window: fields.uint()?.ok_or(ValueError::Missing("incoming-window"))?,
            outgoing_window: fields.uint()?.ok_or(ValueError::Missing("outgoing-window"))?,
            handle_max: fields.uint()?.unwrap_or(u32::MAX),
        })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.descriptor(BEGIN);
        writer.list(8, |list| {
            list.optional(self.remote_channel, Writer::ushort);
            list.uint(self.next_outgoing_id);
            list.uint(self.incoming_window);
            list.uint(self.outgoing_window);
            list.uint(self.handle_max);
            (0..3).for_each(|_| list.null());
        });
    }
}

fn read_role(fields: &mut Fields<'_>) -> Result<Role, ValueError> {
    // AMQP 1.0 s2.8.1: false is the sender.
    let is_receiver = fields.boolean()?.ok_or(ValueError::Missing("role"))?;
    Ok(if is_receiver { Role::Receiver } else { Role::Sender })
}

impl Attach {
    fn read(fields: &mut Fields<'_>) -> Result<Self, ValueError> {
        let name = fields.text()?.ok_or(ValueError::Missing("name"))?.to_owned();
        let handle = fields.uint()?.ok_or(ValueError::Missing("handle"))?;
        let role = read_role(fields)?;
        let sender_settles = match fields.ubyte()? {
            Some(0) => SenderSettles::Unsettled,
            Some(1) => SenderSettles::Settled,
            Some(2) | None => SenderSettles::Mixed,
            Some(_) => return Err(ValueError::Type("snd-settle-mode")),
        };
        let receiver_settles = match fields.ubyte()? {
            Some(0) | None => ReceiverSettles::First,
            Some(1) => ReceiverSettles::Second,
            Some(_) => return Err(ValueError::Type("rcv-settle-mode")),
        };
        let source = Terminus::read(fields.value()?)?;
        let target = Terminus::read(fields.value()?)?;
        // Unsettled and incomplete-unsettled: links are not resumed here.
        fields.skip(2)?;
        let initial_delivery_count = fields.uint()?;
        let max_message_size = fields.ulong()?;
        let texts = |value: Value<'_>| value.texts().into_iter().map(str::to_owned).collect();
        let offered_capabilities = texts(fields.value()?);
        let desired_capabilities = texts(fields.value()?);
        let properties = fields.raw()?.map(Bytes::copy_from_slice);
        Ok(Self {
            name,
            handle,
            role,
            sender_settles,
            receiver_settles,
            source,
            target,
            initial_delivery_count,
            max_message_size,
            offered_capabilities,
            desired_capabilities,
            properties,
        })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.descriptor(ATTACH);
        writer.list(14, |list| {
            list.string(&self.name);
            list.uint(self.handle);
            list.boolean(self.role == Role::Receiver);
            list.ubyte(self.sender_settles as u8);
            list.ubyte(self.receiver_settles as u8);
            list.optional(self.source.as_ref(), |list, source| source.write(SOURCE, 11, list));
            list.optional(self.target.as_ref(), |list, target| target.write(TARGET, 7, list));
            list.null();
            list.boolean(false);
            list.optional(self.initial_delivery_count, Writer::uint);
            list.optional(self.max_message_size, Writer::ulong);
            let texts = |list: &mut Writer<'_>, texts: &[String]| {
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                list.symbols(&texts);
            };
            texts(list, &self.offered_capabilities);
            texts(list, &self.desired_capabilities);
            list.optional(self.properties.as_deref(), Writer::raw);
        });
    }

    /// A link property.
    pub fn property(&self, key: &str) -> Option<Value<'_>> {
        let Ok(Value::Map(map)) = Reader::new(self.properties.as_deref()?).value() else {
            return None;
        };
        find(&map, key)
    }

    /// The end of the link that names what the peer wants from us.
    pub fn address(&self) -> Option<&str> {
        let terminus = match self.role {
            Role::Sender => &self.target,
            Role::Receiver => &self.source,
        };
        terminus.as_ref()?.address.as_deref()
    }
}

/// The value of a text key in a map.
pub fn find<'a>(map: &Compound<'a>, key: &str) -> Option<Value<'a>> {
    map.pairs()
        .map_while(Result::ok)
        .find_map(|(found, value)| (found.as_text() == Some(key)).then_some(value))
}

impl Terminus {
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            address: Some(address.into()),
            filter: None,
        }
    }

    fn read(value: Value<'_>) -> Result<Option<Self>, ValueError> {
        let described = match value {
            Value::Null => return Ok(None),
            Value::Described(described) => described,
            _ => return Err(ValueError::Type("a terminus")),
        };
        let code = code_of(described.descriptor()?)?;
        let Value::List(list) = described.value()? else {
            return Err(ValueError::Type("a terminus"));
        };
        let mut fields = Fields::new(&list);
        match u8::try_from(code) {
            Ok(SOURCE | TARGET) => {}
            // A coordinator, say: something that has no address here.
            _ => return Ok(Some(Self::default())),
        }
        let address = fields.value()?.as_text().map(str::to_owned);
        // Durable, expiry policy, timeout, dynamic, dynamic properties, distribution mode.
        let filter = if u8::try_from(code) == Ok(SOURCE) {
            fields.skip(6)?;
            fields.raw()?.map(Bytes::copy_from_slice)
        } else {
            None
        };
        Ok(Some(Self { address, filter }))
    }

    fn write(&self, code: u8, fields: usize, writer: &mut Writer<'_>) {
        writer.descriptor(code);
        writer.list(fields, |list| {
            list.optional(self.address.as_deref(), Writer::string);
            // Durable, expiry policy, timeout, dynamic.
            list.uint(0);
            list.symbol("session-end");
            list.uint(0);
            list.boolean(false);
            // Dynamic properties; then a target's capabilities, or a source's distribution mode.
            list.null();
            list.null();
            if code == SOURCE {
                list.optional(self.filter.as_deref(), Writer::raw);
                // Default outcome, outcomes, capabilities.
                (0..3).for_each(|_| list.null());
            }
        });
    }
}

impl Flow {
    fn read(fields: &mut Fields<'_>) -> Result<Self, ValueError> {
        Ok(Self {
            next_incoming_id: fields.uint()?,
            incoming_window: fields.uint()?.ok_or(ValueError::Missing("incoming-window"))?,
            next_outgoing_id: fields.uint()?.ok_or(ValueError::Missing("next-outgoing-id"))?,
            outgoing_window: fields.uint()?.ok_or(ValueError::Missing("outgoing-window"))?,
            handle: fields.uint()?,
            delivery_count: fields.uint()?,
            link_credit: fields.uint()?,
            available: fields.uint()?,
            drain: fields.boolean()?.unwrap_or(false),
            echo: fields.boolean()?.unwrap_or(false),
        })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.descriptor(FLOW);
        writer.list(11, |list| {
            list.optional(self.next_incoming_id, Writer::uint);
            list.uint(self.incoming_window);
            list.uint(self.next_outgoing_id);
            list.uint(self.outgoing_window);
            list.optional(self.handle, Writer::uint);
            list.optional(self.delivery_count, Writer::uint);
            list.optional(self.link_credit, Writer::uint);
            list.optional(self.available, Writer::uint);
            list.boolean(self.drain);
            list.boolean(self.echo);
            list.null();
        });
    }
}

impl Transfer {
    fn read(fields: &mut Fields<'_>) -> Result<Self, ValueError> {
        let transfer = Self {
            handle: fields.uint()?.ok_or(ValueError::Missing("handle"))?,
            delivery_id: fields.uint()?,
            delivery_tag: fields.binary()?.map(Bytes::copy_from_slice),
            message_format: fields.uint()?,
            settled: fields.boolean()?,
            more: fields.boolean()?.unwrap_or(false),
            aborted: {
                // Receiver's settle mode, state, resume: of links that are resumed.
                fields.skip(3)?;
                fields.boolean()?.unwrap_or(false)
            },
        };
        Ok(transfer)
    }

    fn write(&self, writer: &mut Writer<'_>) {
        let tag = self.delivery_tag.as_deref();
        write_transfer(self, tag, writer);
    }
}

/// Writes a transfer with a tag that stands elsewhere.
pub(super) fn write_transfer(transfer: &Transfer, tag: Option<&[u8]>, writer: &mut Writer<'_>) {
    writer.descriptor(TRANSFER);
    writer.list(11, |list| {
        list.uint(transfer.handle);
        list.optional(transfer.delivery_id, Writer::uint);
        list.optional(tag, Writer::binary);
        list.optional(transfer.message_format, Writer::uint);
        list.optional(transfer.settled, Writer::boolean);
        let boolean = |value| if value { TRUE } else { FALSE };
        // More; receiver's settle mode and state; resume, aborted, batchable.
        list.raw(&[
            boolean(transfer.more),
            NULL,
            NULL,
            FALSE,
            boolean(transfer.aborted),
            FALSE,
        ]);
    });
}

impl Disposition {
    fn read(fields: &mut Fields<'_>) -> Result<Self, ValueError> {
        let role = read_role(fields)?;
        let first = fields.uint()?.ok_or(ValueError::Missing("first"))?;
        Ok(Self {
            role,
            first,
            last: fields.uint()?.unwrap_or(first),
            settled: fields.boolean()?.unwrap_or(false),
            state: DeliveryState::read(fields.value()?)?,
        })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.descriptor(DISPOSITION);
        writer.list(6, |list| {
            list.boolean(self.role == Role::Receiver);
            list.uint(self.first);
            list.uint(self.last);
            list.boolean(self.settled);
            list.optional(self.state.as_ref(), |list, state| state.write(list));
            list.boolean(false);
        });
    }
}

impl DeliveryState {
    fn read(value: Value<'_>) -> Result<Option<Self>, ValueError> {
        let described = match value {
            Value::Null => return Ok(None),
            Value::Described(described) => described,
            _ => return Err(ValueError::Type("a delivery state")),
        };
        let code = code_of(described.descriptor()?)?;
        let Value::List(list) = described.value()? else {
            return Err(ValueError::Type("a delivery state"));
        };
        let mut fields = Fields::new(&list);
        Ok(Some(match u8::try_from(code) {
            Ok(RECEIVED) => Self::Received,
            Ok(ACCEPTED) => Self::Accepted,
            Ok(REJECTED) => Self::Rejected(read_error(&mut fields)?),
            Ok(RELEASED) => Self::Released,
            Ok(MODIFIED) => Self::Modified {
                failed: fields.boolean()?.unwrap_or(false),
                undeliverable: fields.boolean()?.unwrap_or(false),
            },
            _ => Self::Other,
        }))
    }

    fn write(&self, writer: &mut Writer<'_>) {
        match self {
            Self::Received => {
                writer.descriptor(RECEIVED);
                writer.list(2, |list| {
                    list.uint(0);
                    list.ulong(0);
                });
            }
            Self::Accepted => {
                writer.descriptor(ACCEPTED);
                writer.raw(&EMPTY_LIST);
            }
            Self::Rejected(error) => {
                writer.descriptor(REJECTED);
                writer.list(1, |list| list.optional(error.as_ref(), write_error));
            }
            Self::Released | Self::Other => {
                writer.descriptor(RELEASED);
                writer.raw(&EMPTY_LIST);
            }
            Self::Modified { failed, undeliverable } => {
                writer.descriptor(MODIFIED);
                writer.list(3, |list| {
                    list.boolean(*failed);
                    list.boolean(*undeliverable);
                    list.null();
                });
            }
        }
    }
}

impl Detach {
    fn read(fields: &mut Fields<'_>) -> Result<Self, ValueError> {
        Ok(Self {
            handle: fields.uint()?.ok_or(ValueError::Missing("handle"))?,
            closed: fields.boolean()?.unwrap_or(false),
            error: read_error(fields)?,
        })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.descriptor(DETACH);
        writer.list(3, |list| {
            list.uint(self.handle);
            list.boolean(self.closed);
            list.optional(self.error.as_ref(), write_error);
        });
    }
}

fn read_error(fields: &mut Fields<'_>) -> Result<Option<Error>, ValueError> {
    let described = match fields.value()? {
        Value::Null => return Ok(None),
        Value::Described(described) => described,
        _ => return Err(ValueError::Type("an error")),
    };
    let Value::List(list) = described.value()? else {
        return Err(ValueError::Type("an error"));
    };
    let mut fields = Fields::new(&list);
    let condition = fields.text()?.ok_or(ValueError::Missing("condition"))?;
    Ok(Some(Error {
        condition: Condition::new(condition),
        description: fields.text()?.unwrap_or_default().to_owned(),
        info: Vec::new(),
    }))
}

fn write_error(writer: &mut Writer<'_>, error: &Error) {
    writer.descriptor(ERROR);
    writer.list(3, |list| {
        list.symbol(error.condition.name());
        list.string(&error.description);
        if error.info.is_empty() {
            return list.null();
        }
        list.map(error.info.len(), |map| {
            for (key, value) in &error.info {
                map.symbol(key);
                value.write(map);
            }
        });
    });
}

/// A SASL frame from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaslInit {
    pub mechanism: String,
    pub response: Option<Bytes>,
}

impl SaslInit {
    /// # Errors
    /// `ValueError`: the frame is another one too.
    pub fn read(body: &[u8]) -> Result<Self, ValueError> {
        let (code, mut fields) = described(&mut Reader::new(body))?;
        if code != u64::from(SASL_INIT) {
            return Err(ValueError::Type("sasl-init"));
        }
        Ok(Self {
            mechanism: fields.text()?.ok_or(ValueError::Missing("mechanism"))?.to_owned(),
            response: fields.binary()?.map(Bytes::copy_from_slice),
        })
    }

    pub fn write(&self, into: &mut Vec<u8>) {
        let mut writer = Writer(into);
        writer.descriptor(SASL_INIT);
        writer.list(3, |list| {
            list.symbol(&self.mechanism);
            list.optional(self.response.as_deref(), Writer::binary);
            list.null();
        });
    }
}

pub(super) fn write_sasl_mechanisms(mechanisms: &[&str], into: &mut Vec<u8>) {
    let mut writer = Writer(into);
    writer.descriptor(SASL_MECHANISMS);
    writer.list(1, |list| list.symbols(mechanisms));
}

// AMQP 1.0 s5.3.3.6.
pub(super) fn write_sasl_outcome(is_ok: bool, into: &mut Vec<u8>) {
    let mut writer = Writer(into);
    writer.descriptor(SASL_OUTCOME);
    writer.list(2, |list| {
        list.ubyte(u8::from(!is_ok));
        list.null();
    });
}

/// What a server's SASL frame says: the mechanisms it offers, or its verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SaslFrame {
    Mechanisms(Vec<String>),
    Outcome { is_ok: bool },
}

impl SaslFrame {
    /// # Errors
    /// `ValueError`.
    pub fn read(body: &[u8]) -> Result<Self, ValueError> {
        let (code, mut fields) = described(&mut Reader::new(body))?;
        match u8::try_from(code) {
            Ok(SASL_MECHANISMS) => {
                let texts = fields.value()?.texts();
                Ok(Self::Mechanisms(texts.into_iter().map(str::to_owned).collect()))
            }
            Ok(SASL_OUTCOME) => Ok(Self::Outcome {
                is_ok: fields.ubyte()? == Some(0),
            }),
            _ => Err(ValueError::Type("a server's SASL frame")),
        }
    }
}
