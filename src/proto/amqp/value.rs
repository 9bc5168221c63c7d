//! AMQP's type system: values read in place, values written.
//!
//! Reading never recurses into what it is given: a compound value is a slice with a count, and what is inside is read by
//! whoever wants it. Every length is checked against the bytes that are there before anything is taken.

use std::str;

/// Descriptors may be described themselves; nobody needs more of that than this.
const DESCRIPTORS_MAX: usize = 4;

/// Bytes that are no AMQP value, or not the one that belongs here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("the bytes end inside a value")]
    Truncated,
    #[error("no type has the constructor {0:#04x}")]
    Constructor(u8),
    #[error("text is not UTF-8")]
    Text,
    #[error("a compound value contradicts its own length")]
    Length,
    #[error("descriptors are nested too deeply")]
    Nested,
    #[error("a value has another type than {0}")]
    Type(&'static str),
    #[error("the mandatory field {0} is missing")]
    Missing(&'static str),
}

/// One value, borrowed from the bytes it was read from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Ubyte(u8),
    Ushort(u16),
    Uint(u32),
    Ulong(u64),
    Byte(i8),
    Short(i16),
    Int(i32),
    Long(i64),
    Float(f32),
    Double(f64),
    /// The three decimal types: nobody here computes with them.
    Decimal(&'a [u8]),
    Char(u32),
    /// UTC milliseconds.
    Timestamp(i64),
    Uuid([u8; 16]),
    Binary(&'a [u8]),
    String(&'a str),
    /// Symbols are ASCII by the standard; taken as UTF-8.
    Symbol(&'a str),
    List(Compound<'a>),
    /// Keys and values in turn.
    Map(Compound<'a>),
    Array(Array<'a>),
    Described(Described<'a>),
}

/// The values of a list or map, back to back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compound<'a> {
    pub count: u32,
    bytes: &'a [u8],
}

/// Values of one type, without their constructors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    pub count: u32,
    constructor: u8,
    bytes: &'a [u8],
}

/// A value with a descriptor in front.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Described<'a> {
    descriptor: &'a [u8],
    value: &'a [u8],
}

impl<'a> Described<'a> {
    /// # Errors
    /// The descriptor is no value.
    pub fn descriptor(&self) -> Result<Value<'a>, ValueError> {
        Reader::new(self.descriptor).value()
    }

    /// # Errors
    /// What is described is no value.
    pub fn value(&self) -> Result<Value<'a>, ValueError> {
        Reader::new(self.value).value()
    }
}

/// Reads values one after the other.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], ValueError> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(ValueError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ValueError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(ValueError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, ValueError> {
        Ok(self.array::<1>()?[0])
    }

    fn length8(&mut self) -> Result<usize, ValueError> {
        Ok(usize::from(self.byte()?))
    }

    fn length32(&mut self) -> Result<usize, ValueError> {
        Ok(u32::from_be_bytes(self.array()?) as usize)
    }

    /// # Errors
    /// `ValueError`.
    pub fn value(&mut self) -> Result<Value<'a>, ValueError> {
        let constructor = self.byte()?;
        if constructor == 0 {
            return self.described().map(Value::Described);
        }
        self.of(constructor)
    }

    /// The value as it stands, for those who hand it back unread.
    ///
    /// # Errors
    /// `ValueError`.
    pub fn raw(&mut self) -> Result<&'a [u8], ValueError> {
        let start = self.rest;
        self.skip(0)?;
        Ok(&start[..start.len() - self.rest.len()])
    }

    fn described(&mut self) -> Result<Described<'a>, ValueError> {
        let start = self.rest;
        self.skip(1)?;
        let descriptor = &start[..start.len() - self.rest.len()];
        let start = self.rest;
        self.skip(1)?;
        Ok(Described {
            descriptor,
            value: &start[..start.len() - self.rest.len()],
        })
    }

    fn skip(&mut self, depth: usize) -> Result<(), ValueError> {
        let constructor = self.byte()?;
        if constructor == 0 {
            if depth >= DESCRIPTORS_MAX {
                return Err(ValueError::Nested);
            }
            self.skip(depth + 1)?;
            return self.skip(depth + 1);
        }
        self.of(constructor).map(|_| ())
    }

    // AMQP 1.0 s1.6: the primitive types.
    fn of(&mut self, constructor: u8) -> Result<Value<'a>, ValueError> {
        Ok(match constructor {
            0x40 => Value::Null,
            0x41 => Value::Bool(true),
            0x42 => Value::Bool(false),
            0x43 => Value::Uint(0),
            0x44 => Value::Ulong(0),
            0x45 => Value::List(Compound { count: 0, bytes: &[] }),
            0x50 => Value::Ubyte(self.byte()?),
            0x51 => Value::Byte(self.byte()?.cast_signed()),
            0x52 => Value::Uint(u32::from(self.byte()?)),
            0x53 => Value::Ulong(u64::from(self.byte()?)),
            0x54 => Value::Int(i32::from(self.byte()?.cast_signed())),
            0x55 => Value::Long(i64::from(self.byte()?.cast_signed())),
            0x56 => Value::Bool(self.byte()? != 0),
            0x60 => Value::Ushort(u16::from_be_bytes(self.array()?)),
            0x61 => Value::Short(i16::from_be_bytes(self.array()?)),
            0x70 => Value::Uint(u32::from_be_bytes(self.array()?)),
            0x71 => Value::Int(i32::from_be_bytes(self.array()?)),
            0x72 => Value::Float(f32::from_be_bytes(self.array()?)),
            0x73 => Value::Char(u32::from_be_bytes(self.array()?)),
            0x74 => Value::Decimal(self.take(4)?),
            0x80 => Value::Ulong(u64::from_be_bytes(self.array()?)),
            0x81 => Value::Long(i64::from_be_bytes(self.array()?)),
            0x82 => Value::Double(f64::from_be_bytes(self.array()?)),
            0x83 => Value::Timestamp(i64::from_be_bytes(self.array()?)),
            0x84 => Value::Decimal(self.take(8)?),
            0x94 => Value::Decimal(self.take(16)?),
            0x98 => Value::Uuid(self.array()?),
            0xa0 => {
                let length = self.length8()?;
                Value::Binary(self.take(length)?)
            }
            0xb0 => {
                let length = self.length32()?;
                Value::Binary(self.take(length)?)
            }
            0xa1 => {
                let length = self.length8()?;
                Value::String(self.text(length)?)
            }
            0xb1 => {
                let length = self.length32()?;
                Value::String(self.text(length)?)
            }
            0xa3 => {
                let length = self.length8()?;
                Value::Symbol(self.text(length)?)
            }
            0xb3 => {
                let length = self.length32()?;
                Value::Symbol(self.text(length)?)
            }
            0xc0 => Value::List(self.compound8()?),
            0xd0 => Value::List(self.compound32()?),
            0xc1 => Value::Map(self.compound8()?),
            0xd1 => Value::Map(self.compound32()?),
            0xe0 => {
                let Compound { count, bytes } = self.compound8()?;
                Value::Array(Array::new(count, bytes)?)
            }
            0xf0 => {
                let Compound { count, bytes } = self.compound32()?;
                Value::Array(Array::new(count, bytes)?)
            }
            other => return Err(ValueError::Constructor(other)),
        })
    }

    fn text(&mut self, length: usize) -> Result<&'a str, ValueError> {
        str::from_utf8(self.take(length)?).map_err(|_| ValueError::Text)
    }

    fn compound8(&mut self) -> Result<Compound<'a>, ValueError> {
        let length = self.length8()?;
        let (count, bytes) = self.take(length)?.split_first().ok_or(ValueError::Length)?;
        Ok(Compound {
            count: u32::from(*count),
            bytes,
        })
    }

    fn compound32(&mut self) -> Result<Compound<'a>, ValueError> {
        let length = self.length32()?;
        let (count, bytes) = self.take(length)?.split_first_chunk().ok_or(ValueError::Length)?;
        Ok(Compound {
            count: u32::from_be_bytes(*count),
            bytes,
        })
    }
}

impl<'a> Compound<'a> {
    /// Reads the values in order; a compound value whose count is wrong shows as a truncated one.
    pub fn reader(&self) -> Reader<'a> {
        Reader::new(self.bytes)
    }

    /// The values, at most as many as are announced.
    pub fn values(&self) -> impl Iterator<Item = Result<Value<'a>, ValueError>> + use<'a> {
        let mut reader = self.reader();
        let mut left = self.count;
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let value = reader.value();
            if value.is_err() {
                left = 0;
            }
            Some(value)
        })
    }

    /// The pairs of a map.
    pub fn pairs(&self) -> impl Iterator<Item = Result<(Value<'a>, Value<'a>), ValueError>> + use<'a> {
        let mut values = self.values();
        std::iter::from_fn(move || {
            let key = values.next()?;
            let pair = key.and_then(|key| Ok((key, values.next().ok_or(ValueError::Length)??)));
            Some(pair)
        })
    }
}

impl<'a> Array<'a> {
    fn new(count: u32, bytes: &'a [u8]) -> Result<Self, ValueError> {
        let (constructor, bytes) = bytes.split_first().ok_or(ValueError::Length)?;
        if *constructor == 0 {
            // Arrays of described values have no place in the protocol.
            return Err(ValueError::Constructor(0));
        }
        Ok(Self {
            count,
            constructor: *constructor,
            bytes,
        })
    }

    /// The values; at most as many as there are bytes, so that values without any cost nothing.
    pub fn values(&self) -> impl Iterator<Item = Result<Value<'a>, ValueError>> + use<'a> {
        let mut reader = Reader::new(self.bytes);
        let constructor = self.constructor;
        let mut left = self.count;
        std::iter::from_fn(move || {
            if reader.is_empty() {
                return None;
            }
            left = left.checked_sub(1)?;
            let value = reader.of(constructor);
            if value.is_err() {
                left = 0;
            }
            Some(value)
        })
    }
}

impl<'a> Value<'a> {
    pub fn as_text(&self) -> Option<&'a str> {
        match self {
            Self::String(text) | Self::Symbol(text) => Some(text),
            _ => None,
        }
    }

    /// Any whole number that fits.
    pub fn as_integer(&self) -> Option<i64> {
        match *self {
            Self::Ubyte(n) => Some(n.into()),
            Self::Ushort(n) => Some(n.into()),
            Self::Uint(n) => Some(n.into()),
            Self::Ulong(n) => i64::try_from(n).ok(),
            Self::Byte(n) => Some(n.into()),
            Self::Short(n) => Some(n.into()),
            Self::Int(n) => Some(n.into()),
            Self::Long(n) | Self::Timestamp(n) => Some(n),
            _ => None,
        }
    }

    /// A descriptor's number.
    pub fn as_descriptor(&self) -> Option<u64> {
        match *self {
            Self::Ulong(number) => Some(number),
            _ => None,
        }
    }

    /// The texts of a symbol, or of an array of them: what "multiple" fields may hold.
    pub fn texts(&self) -> Vec<&'a str> {
        match self {
            Self::Array(array) => array.values().filter_map(|value| value.ok()?.as_text()).collect(),
            other => other.as_text().into_iter().collect(),
        }
    }
}

/// The fields of a performative or section: absent ones at the end are null.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    reader: Reader<'a>,
    left: u32,
}

impl<'a> Fields<'a> {
    pub fn new(list: &Compound<'a>) -> Self {
        Self {
            reader: list.reader(),
            left: list.count,
        }
    }

    /// # Errors
    /// `ValueError`.
    pub fn value(&mut self) -> Result<Value<'a>, ValueError> {
        match self.left.checked_sub(1) {
            None => Ok(Value::Null),
            Some(left) => {
                self.left = left;
                self.reader.value()
            }
        }
    }

    /// The field as it stands; `None` for null.
    ///
    /// # Errors
    /// `ValueError`.
    pub fn raw(&mut self) -> Result<Option<&'a [u8]>, ValueError> {
        match self.left.checked_sub(1) {
            None => Ok(None),
            Some(left) => {
                self.left = left;
                let raw = self.reader.raw()?;
                Ok((raw != [0x40]).then_some(raw))
            }
        }
    }

    pub fn skip(&mut self, fields: usize) -> Result<(), ValueError> {
        (0..fields).try_for_each(|_| self.value().map(|_| ()))
    }

    pub fn text(&mut self) -> Result<Option<&'a str>, ValueError> {
        match self.value()? {
            Value::Null => Ok(None),
            value => value.as_text().map(Some).ok_or(ValueError::Type("text")),
        }
    }

    pub fn binary(&mut self) -> Result<Option<&'a [u8]>, ValueError> {
        match self.value()? {
            Value::Null => Ok(None),
            Value::Binary(bytes) => Ok(Some(bytes)),
            _ => Err(ValueError::Type("binary")),
        }
    }

    pub fn boolean(&mut self) -> Result<Option<bool>, ValueError> {
        match self.value()? {
            Value::Null => Ok(None),
            Value::Bool(value) => Ok(Some(value)),
            _ => Err(ValueError::Type("boolean")),
        }
    }

    pub fn ubyte(&mut self) -> Result<Option<u8>, ValueError> {
        match self.value()? {
            Value::Null => Ok(None),
            Value::Ubyte(value) => Ok(Some(value)),
            _ => Err(ValueError::Type("ubyte")),
        }
    }

    pub fn ushort(&mut self) -> Result<Option<u16>, ValueError> {
        match self.value()? {
            Value::Null => Ok(None),
            Value::Ushort(value) => Ok(Some(value)),
            _ => Err(ValueError::Type("ushort")),
        }
    }

    pub fn uint(&mut self) -> Result<Option<u32>, ValueError> {
        match self.value()? {
            Value::Null => Ok(None),
            Value::Uint(value) => Ok(Some(value)),
            _ => Err(ValueError::Type("uint")),
        }
    }

    pub fn ulong(&mut self) -> Result<Option<u64>, ValueError> {
        match self.value()? {
            Value::Null => Ok(None),
            Value::Ulong(value) => Ok(Some(value)),
            _ => Err(ValueError::Type("ulong")),
        }
    }

    pub fn timestamp(&mut self) -> Result<Option<i64>, ValueError> {
        match self.value()? {
            Value::Null => Ok(None),
            Value::Timestamp(value) => Ok(Some(value)),
            _ => Err(ValueError::Type("timestamp")),
        }
    }

    pub fn map(&mut self) -> Result<Option<Compound<'a>>, ValueError> {
        match self.value()? {
            Value::Null => Ok(None),
            Value::Map(map) => Ok(Some(map)),
            _ => Err(ValueError::Type("map")),
        }
    }
}

/// Appends values to a buffer.
#[derive(Debug)]
pub struct Writer<'a>(pub &'a mut Vec<u8>);

impl Writer<'_> {
    pub fn null(&mut self) {
        self.0.push(0x40);
    }

    pub fn boolean(&mut self, value: bool) {
        self.0.push(if value { 0x41 } else { 0x42 });
    }

    pub fn ubyte(&mut self, value: u8) {
        self.0.extend([0x50, value]);
    }

    pub fn ushort(&mut self, value: u16) {
        self.0.push(0x60);
        self.0.extend(value.to_be_bytes());
    }

    pub fn uint(&mut self, value: u32) {
        match u8::try_from(value) {
            Ok(0) => self.0.push(0x43),
            Ok(small) => self.0.extend([0x52, small]),
            Err(_) => {
                self.0.push(0x70);
                self.0.extend(value.to_be_bytes());
            }
        }
    }

    pub fn ulong(&mut self, value: u64) {
        match u8::try_from(value) {
            Ok(0) => self.0.push(0x44),
            Ok(small) => self.0.extend([0x53, small]),
            Err(_) => {
                self.0.push(0x80);
                self.0.extend(value.to_be_bytes());
            }
        }
    }

    pub fn int(&mut self, value: i32) {
        self.0.push(0x71);
        self.0.extend(value.to_be_bytes());
    }

    pub fn long(&mut self, value: i64) {
        self.0.push(0x81);
        self.0.extend(value.to_be_bytes());
    }

    pub fn double(&mut self, value: f64) {
        self.0.push(0x82);
        self.0.extend(value.to_be_bytes());
    }

    pub fn timestamp(&mut self, utc_ms: i64) {
        self.0.push(0x83);
        self.0.extend(utc_ms.to_be_bytes());
    }

    pub fn uuid(&mut self, value: &[u8; 16]) {
        self.0.push(0x98);
        self.0.extend(value);
    }

    fn variable(&mut self, short: u8, bytes: &[u8]) {
        match u8::try_from(bytes.len()) {
            Ok(length) => self.0.extend([short, length]),
            Err(_) => {
                self.0.push(short | 0x10);
                let length = u32::try_from(bytes.len()).expect("nothing here holds 4 GiB");
                self.0.extend(length.to_be_bytes());
            }
        }
        self.0.extend_from_slice(bytes);
    }

    pub fn binary(&mut self, bytes: &[u8]) {
        self.variable(0xa0, bytes);
    }

    pub fn string(&mut self, text: &str) {
        self.variable(0xa1, text.as_bytes());
    }

    pub fn symbol(&mut self, text: &str) {
        self.variable(0xa3, text.as_bytes());
    }

    /// A value that was read elsewhere.
    pub fn raw(&mut self, value: &[u8]) {
        self.0.extend_from_slice(value);
    }

    /// An array of symbols; an empty one is null.
    pub fn symbols(&mut self, texts: &[&str]) {
        self.texts(0xb3, texts);
    }

    /// An array of strings; an empty one is null.
    pub fn strings(&mut self, texts: &[&str]) {
        self.texts(0xb1, texts);
    }

    fn texts(&mut self, constructor: u8, texts: &[&str]) {
        if texts.is_empty() {
            return self.null();
        }
        self.compound(0xf0, texts.len(), |writer| {
            writer.0.push(constructor);
            for text in texts {
                writer.0.extend((text.len() as u32).to_be_bytes());
                writer.0.extend_from_slice(text.as_bytes());
            }
        });
    }

    /// A list of exactly `count` values. Never the empty form: there are clients that cannot read it.
    pub fn list(&mut self, count: usize, write: impl FnOnce(&mut Writer<'_>)) {
        self.compound(0xd0, count, write);
    }

    /// A map of exactly `pairs` pairs.
    pub fn map(&mut self, pairs: usize, write: impl FnOnce(&mut Writer<'_>)) {
        self.compound(0xd1, pairs * 2, write);
    }

    fn compound(&mut self, constructor: u8, count: usize, write: impl FnOnce(&mut Writer<'_>)) {
        self.0.push(constructor);
        let start = self.0.len();
        self.0.extend([0; 4]);
        self.0.extend((count as u32).to_be_bytes());
        write(&mut Writer(self.0));
        let length = u32::try_from(self.0.len() - start - 4).expect("nothing here holds 4 GiB");
        self.0[start..start + 4].copy_from_slice(&length.to_be_bytes());
    }

    /// The descriptor of what is written next: in the one form that every client reads.
    pub fn descriptor(&mut self, code: u8) {
        self.0.extend([0x00, 0x53, code]);
    }

    pub fn optional<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        match value {
            Some(value) => write(self, value),
            None => self.null(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut bytes = Vec::new();
        let mut writer = Writer(&mut bytes);
        writer.null();
        writer.boolean(true);
        writer.uint(0);
        writer.uint(200);
        writer.uint(70_000);
        writer.ulong(0);
        writer.ulong(u64::MAX);
        writer.int(-5);
        writer.long(i64::MIN);
        writer.timestamp(1_766_000_000_123);
        writer.uuid(&[7; 16]);
        writer.binary(&[1; 300]);
        writer.string("tür");
        writer.symbol("amqp:accepted:list");
        let mut reader = Reader::new(&bytes);
        let expected = [
            Value::Null,
            Value::Bool(true),
            Value::Uint(0),
            Value::Uint(200),
            Value::Uint(70_000),
            Value::Ulong(0),
            Value::Ulong(u64::MAX),
            Value::Int(-5),
            Value::Long(i64::MIN),
            Value::Timestamp(1_766_000_000_123),
            Value::Uuid([7; 16]),
            Value::Binary(&[1; 300]),
            Value::String("tür"),
            Value::Symbol("amqp:accepted:list"),
        ];
        for value in expected {
            assert_eq!(reader.value(), Ok(value));
        }
        assert!(reader.is_empty());
    }

    #[test]
    fn compound_values_are_read_from_inside() {
        let mut bytes = Vec::new();
        let mut writer = Writer(&mut bytes);
        writer.map(2, |map| {
            map.symbol("a");
            map.list(1, |list| list.uint(1));
            map.symbol("b");
            map.strings(&["x", "yz"]);
        });
        let Ok(Value::Map(map)) = Reader::new(&bytes).value() else {
            panic!("a map was written");
        };
        let pairs: Vec<_> = map.pairs().map(Result::unwrap).collect();
        assert_eq!(pairs.len(), 2);
        assert_eq!(pairs[0].0, Value::Symbol("a"));
        assert_eq!(pairs[1].1.texts(), ["x", "yz"]);
        assert_eq!(Reader::new(&bytes).raw(), Ok(&bytes[..]));
    }

    #[test]
    fn nonsense_is_refused() {
        for (bytes, error) in [
            (&[][..], ValueError::Truncated),
            (&[0x70, 1, 2, 3], ValueError::Truncated),
            (&[0xa1, 5, b'a'], ValueError::Truncated),
            (&[0xb0, 0xff, 0xff, 0xff, 0xff, 1], ValueError::Truncated),
            (&[0xa1, 1, 0xff], ValueError::Text),
            (&[0xc0, 0], ValueError::Length),
            (&[0xe0, 2, 1, 0], ValueError::Constructor(0)),
            (&[0x99], ValueError::Constructor(0x99)),
            (&[0x00, 0x53], ValueError::Truncated),
            (&[0; 64], ValueError::Nested),
        ] {
            assert_eq!(Reader::new(bytes).value(), Err(error), "{bytes:02x?}");
        }
    }

    #[test]
    fn an_array_of_nothing_does_not_run_long() {
        // Four billion nulls in seven bytes.
        let bytes = [0xf0, 0, 0, 0, 5, 0xff, 0xff, 0xff, 0xff, 0x40];
        let Ok(Value::Array(array)) = Reader::new(&bytes).value() else {
            panic!("an array");
        };
        assert_eq!(array.values().count(), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = Reader::new(&bytes);
            while let Ok(value) = reader.value() {
                match value {
                    Value::List(list) => { let _ = list.values().count(); }
                    Value::Map(map) => { let _ = map.pairs().count(); }
                    Value::Array(array) => { let _ = array.values().count(); }
                    Value::Described(described) => { let _ = (described.descriptor(), described.value()); }
                    _ => {}
                }
            }
        }
    }
}
