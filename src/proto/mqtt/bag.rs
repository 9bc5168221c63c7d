//! Property bags: the last segment of a topic, `key=value` pairs with percent-encoding.
//!
//! ```text
//!   bag   = [ "?" ] pair *( "&" pair ) [ "/" ]
//!   pair  = key | key "=" | key "=" value          a key alone: no value
//! ```

use std::borrow::Cow;
use std::fmt::Write as _;

/// The pairs of a bag in their order, decoded. A pair without a key is passed over.
// IoT Hub, MQTT section 4.1; section 4: a slash behind the bag means nothing.
pub fn pairs(bag: &str) -> impl Iterator<Item = (Cow<'_, str>, Option<Cow<'_, str>>)> {
    let bag = bag.strip_suffix('/').unwrap_or(bag);
    let bag = bag.strip_prefix('?').unwrap_or(bag);
    bag.split('&').filter_map(|pair| {
        let (key, value) = match pair.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (pair, None),
        };
        (!key.is_empty()).then(|| (decoded(key), value.map(decoded)))
    })
}

/// Undoes percent-encoding. What is no escape, or escapes no UTF-8, stays as it stands, as in the SDKs' language.
pub fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        match (byte, after) {
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                bytes.push(digit(*high) << 4 | digit(*low));
                rest = after;
            }
            _ => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).map_or(Cow::Borrowed(text), Cow::Owned)
}

fn digit(hex: u8) -> u8 {
    match hex {
        b'0'..=b'9' => hex - b'0',
        _ => (hex | 0x20) - b'a' + 10,
    }
}

/// Appends a pair to a bag under way; everything that is not unreserved is encoded, also slashes, on which clients cut
/// topics.
// IoT Hub, MQTT section 5; RFC 2396 s2.3.
pub fn push(bag: &mut String, key: &str, value: Option<&str>) {
    if !bag.is_empty() && !bag.ends_with(['/', '?']) {
        bag.push('&');
    }
    encode(bag, key);
    if let Some(value) = value {
        bag.push('=');
        encode(bag, value);
    }
}

/// Appends the text, percent-encoded. A dot stays, also in `%24.mid`, as a client that compares characters wants it.
pub fn encode(into: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'_' | b'.' | b'~' => into.push(char::from(byte)),
            _ => write!(into, "%{byte:02X}").expect("a text takes what is written"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bag: &str) -> Vec<(String, Option<String>)> {
        let owned = |(key, value): (Cow<'_, str>, Option<Cow<'_, str>>)| (key.into(), value.map(Cow::into_owned));
        pairs(bag).map(owned).collect()
    }

    fn pair(key: &str, value: Option<&str>) -> (String, Option<String>) {
        (key.to_owned(), value.map(str::to_owned))
    }

    #[test]
    fn a_bag_is_cut_into_pairs() {
        let expected = [
            pair("$.mid", Some("m 1")),
            pair("a", None),
            pair("b", Some("")),
            pair("c", Some("x=y+z")),
            pair("tür", Some("/")),
        ];
        let bag = "%24.mid=m%201&a&b=&c=x=y+z&t%C3%BCr=%2f";
        for form in [
            bag.to_owned(),
            format!("?{bag}"),
            format!("{bag}/"),
            format!("&{bag}&=1&"),
        ] {
            assert_eq!(read(&form), expected, "{form}");
        }
        assert_eq!(read(""), []);
        assert_eq!(read("/"), []);
    }

    #[test]
    fn what_escapes_nothing_stays_as_it_stands() {
        for text in ["%", "50%", "%4", "%zz", "%ff", "a%c3", "%+1"] {
            assert_eq!(decoded(text), text);
        }
        assert_eq!(decoded("%25%41"), "%A");
    }

    #[test]
    fn no_character_of_a_topic_is_left_in_a_bag() {
        let mut bag = String::new();
        push(&mut bag, "$.to", Some("/devices/a b"));
        push(&mut bag, "empty", Some(""));
        push(&mut bag, "none", None);
        assert_eq!(bag, "%24.to=%2Fdevices%2Fa%20b&empty=&none");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(pairs in prop::collection::vec(("\\PC{1,8}", prop::option::of("\\PC{0,8}")), 1..5)) {
            let mut bag = String::new();
            for (key, value) in &pairs {
                push(&mut bag, key, value.as_deref());
            }
            prop_assert_eq!(read(&bag), pairs);
        }
    }
}
