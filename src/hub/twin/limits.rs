//! What a twin may hold: keys, values, depth, and sizes by the contract's counting rule (twins, section 1.8).

use std::fmt;

use serde_json::Value;

use super::document::Members;
use crate::hub::code::ErrorCode;

// IoT Hub, twins: limits of one section.
const TAGS_SIZE_MAX: usize = 8 * 1024;
const PROPERTIES_SIZE_MAX: usize = 32 * 1024;
const STRING_SIZE_MAX: usize = 4 * 1024;
const KEY_BYTES_MAX: usize = 1024;
const LEVELS_MAX: usize = 10;
const INTEGER_MIN: i64 = -4_503_599_627_370_496;
const INTEGER_MAX: i64 = 4_503_599_627_370_495;
/// The counting rule leaves out control characters and empty elements of arrays, so that it alone bounds no memory. A
/// section that has neither stays below 5 bytes for each counted one: 4 of a character, 1 of its value.
const BYTES_PER_SIZE_MAX: usize = 8;
/// Characters of a key that an error names.
const KEY_SHOWN_MAX: usize = 32;

/// The three parts of a twin that hold members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionName {
    Tags,
    Desired,
    Reported,
}

impl SectionName {
    fn size_max(self) -> usize {
        match self {
            Self::Tags => TAGS_SIZE_MAX,
            Self::Desired | Self::Reported => PROPERTIES_SIZE_MAX,
        }
    }
}

impl fmt::Display for SectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tags => "tags",
            Self::Desired => "properties.desired",
            Self::Reported => "properties.reported",
        })
    }
}

/// Why a patch or a section was refused, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{section}{path}: {fault}")]
pub struct InvalidTwin {
    pub section: SectionName,
    /// `.key.key`, long keys shortened; empty for the section as a whole.
    pub path: String,
    pub fault: Fault,
}

impl InvalidTwin {
    /// IoT Hub, twins: 400 for all of them; that a size has a code of its own is not confirmed.
    pub fn code(&self) -> ErrorCode {
        ErrorCode::ARGUMENT_INVALID
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("a key has a control character, a space, '.' or '$'")]
    Key,
    #[error("a key is longer than {KEY_BYTES_MAX} bytes")]
    KeyTooLong,
    #[error("a text is longer than {STRING_SIZE_MAX} characters")]
    StringTooLong,
    #[error("an integer is not within {INTEGER_MIN} to {INTEGER_MAX}")]
    Integer,
    #[error("nested more than {LEVELS_MAX} levels deep")]
    TooDeep,
    #[error("size {size} exceeds {size_max}")]
    TooLarge { size: usize, size_max: usize },
    /// Control characters and empty elements count nothing, but are kept.
    #[error("takes {bytes} bytes, allowed are {bytes_max}")]
    TooManyBytes { bytes: usize, bytes_max: usize },
}

/// How much members are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Measure {
    /// By the contract's counting rule.
    pub size: usize,
    /// UTF-8 bytes of keys and texts, and one for each value.
    pub bytes: usize,
    pub values: usize,
}

/// Checks what is true of each member by itself, in a patch as in a section. Linear in what it looks at.
pub(super) fn check_patch(section: SectionName, patch: &Members) -> Result<Measure, InvalidTwin> {
    let mut measure = Measure::default();
    let checked = check_members(patch, 0, &mut measure).and_then(|()| {
        let bytes_max = section.size_max() * BYTES_PER_SIZE_MAX;
        let bytes = measure.bytes;
        let fits = bytes <= bytes_max;
        fits.then_some(())
            .ok_or_else(|| Found::here(Fault::TooManyBytes { bytes, bytes_max }))
    });
    checked.map_err(|found| InvalidTwin {
        section,
        path: found.path,
        fault: found.fault,
    })?;
    Ok(measure)
}

/// Checks a whole section: as a patch, and its size.
pub(super) fn check_section(section: SectionName, members: &Members) -> Result<(), InvalidTwin> {
    let Measure { size, .. } = check_patch(section, members)?;
    let size_max = section.size_max();
    if size > size_max {
        return Err(InvalidTwin {
            section,
            path: String::new(),
            fault: Fault::TooLarge { size, size_max },
        });
    }
    Ok(())
}

/// A fault and the way to it, built while going back up, so that what is right pays nothing for it.
struct Found {
    path: String,
    fault: Fault,
}

impl Found {
    fn here(fault: Fault) -> Self {
        Self {
            path: String::new(),
            fault,
        }
    }

    fn below(self, key: &str) -> Self {
        let shown: String = key.chars().take(KEY_SHOWN_MAX).collect();
        Self {
            path: format!(".{shown}{}", self.path),
            fault: self.fault,
        }
    }
}

fn check_members(members: &Members, level: usize, measure: &mut Measure) -> Result<(), Found> {
    for (key, value) in members {
        check_key(key)
            .map_err(Found::here)
            .and_then(|()| {
                measure.size += counted(key);
                measure.bytes += key.len();
                check_value(value, level, measure)
            })
            .map_err(|found| found.below(key))?;
    }
    Ok(())
}

// IoT Hub, twins: keys are 1 KB of UTF-8, case-sensitive, without control characters (C0, C1), `.`, `$` and space.
fn check_key(key: &str) -> Result<(), Fault> {
    if key.len() > KEY_BYTES_MAX {
        return Err(Fault::KeyTooLong);
    }
    if key.chars().any(|c| c.is_control() || matches!(c, '.' | '$' | ' ')) {
        return Err(Fault::Key);
    }
    Ok(())
}

fn check_value(value: &Value, level: usize, measure: &mut Measure) -> Result<(), Found> {
    measure.values += 1;
    measure.bytes += 1;
    match value {
        // Deletes a member; in an array, which replaces as a whole, it is a value like any other.
        Value::Null => {}
        Value::Bool(_) => measure.size += 4,
        Value::Number(number) => {
            // What is too great for `i64` is an integer all the same; what has a fraction or exponent is none.
            let is_integer = number.is_i64() || number.is_u64();
            let in_range = number
                .as_i64()
                .is_some_and(|n| (INTEGER_MIN..=INTEGER_MAX).contains(&n));
            if is_integer && !in_range {
                return Err(Found::here(Fault::Integer));
            }
            measure.size += 8;
        }
        Value::String(text) => {
            let size = counted(text);
            if size > STRING_SIZE_MAX {
                return Err(Found::here(Fault::StringTooLong));
            }
            measure.size += size;
            measure.bytes += text.len();
        }
        Value::Array(elements) => {
            let level = deeper(level)?;
            for element in elements {
                check_value(element, level, measure)?;
            }
        }
        Value::Object(members) => check_members(members, deeper(level)?, measure)?,
    }
    Ok(())
}

fn deeper(level: usize) -> Result<usize, Found> {
    if level == LEVELS_MAX {
        return Err(Found::here(Fault::TooDeep));
    }
    Ok(level + 1)
}

/// IoT Hub, twins: characters without control characters.
fn counted(text: &str) -> usize {
    text.chars().filter(|c| !c.is_control()).count()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn members(value: Value) -> Members {
        value.as_object().unwrap().clone()
    }

    fn nested(levels: usize, leaf: Value) -> Value {
        (0..levels).fold(leaf, |inner, _| json!({ "k": inner }))
    }

    #[test]
    fn sizes_are_counted_by_the_contract() {
        let check = |value: Value, size: usize| {
            let measure = check_patch(SectionName::Tags, &members(value.clone())).unwrap();
            assert_eq!(measure.size, size, "{value}");
        };
        check(json!({}), 0);
        check(json!({ "a": 1 }), 9);
        check(json!({ "a": 1.5, "b": true }), 14);
        check(json!({ "abc": "defg" }), 7);
        // Characters, not bytes, and no control characters.
        check(json!({ "é": "😀\u{1}\u{7f}\u{85}\n" }), 2);
        check(json!({ "a": { "b": { "c": "d" } }, "e": {} }), 5);
        check(json!({ "a": [1, "xy", { "b": false }] }), 16);
        check(json!({ "abc": null }), 3);
    }

    #[test]
    fn each_limit_holds_to_the_last_unit() {
        let check = |section: SectionName, value: Value, expected: Result<(), (&str, Fault)>| {
            let found = check_section(section, &members(value));
            let expected = expected.map_err(|(path, fault)| InvalidTwin {
                section,
                path: path.to_owned(),
                fault,
            });
            assert_eq!(found, expected);
            if let Err(error) = found {
                assert_eq!(error.code().number, 400_004);
                assert!(error.to_string().len() < 600, "an error does not echo what was sent");
            }
        };
        use SectionName::{Desired, Reported, Tags};
        let wide = |size: usize| {
            let mut wide = Members::new();
            // Each member counts 1024: a key of 24 and a text of 1000.
            for n in 0..size / 1024 {
                wide.insert(format!("{n:024}"), Value::from("x".repeat(1000)));
            }
            Value::Object(wide)
        };
        for (section, size_max) in [(Tags, 8192), (Desired, 32768), (Reported, 32768)] {
            check(section, wide(size_max), Ok(()));
            let mut over = wide(size_max);
            over["y"] = json!({});
            let size = size_max + 1;
            check(section, over, Err(("", Fault::TooLarge { size, size_max })));
        }

        check(Desired, json!({ "a": "é".repeat(4096) }), Ok(()));
        check(
            Desired,
            json!({ "a": "x".repeat(4097) }),
            Err((".a", Fault::StringTooLong)),
        );
        check(
            Desired,
            json!({ "a": ["x".repeat(4097)] }),
            Err((".a", Fault::StringTooLong)),
        );

        let key = |key: String| Value::Object(Members::from_iter([(key, json!(1))]));
        let shown = format!(".{}", "k".repeat(32));
        check(Tags, key("k".repeat(1024)), Ok(()));
        check(Tags, key("k".repeat(1025)), Err((&shown, Fault::KeyTooLong)));
        for bad in ["a.b", "a b", "$a", "a$", "a\u{1}", "a\u{9f}", "\u{7f}"] {
            check(Tags, key(bad.into()), Err((&format!(".{bad}"), Fault::Key)));
        }
        check(Tags, key("/é-_()😀".into()), Ok(()));
        check(Tags, json!({ "a": [{ "b.c": 1 }] }), Err((".a.b.c", Fault::Key)));

        check(Desired, nested(11, json!(1)), Ok(()));
        let way = ".k".repeat(11);
        check(Desired, nested(12, json!(1)), Err((&way, Fault::TooDeep)));
        check(Desired, nested(11, json!([])), Err((&way, Fault::TooDeep)));
        let arrays = (0..20).fold(json!(1), |inner, _| json!([inner]));
        check(Desired, json!({ "a": arrays }), Err((".a", Fault::TooDeep)));

        for good in [
            json!(-4_503_599_627_370_496_i64),
            json!(4_503_599_627_370_495_i64),
            json!(1e300),
        ] {
            check(Desired, json!({ "a": good }), Ok(()));
        }
        for bad in [
            json!(-4_503_599_627_370_497_i64),
            json!(4_503_599_627_370_496_i64),
            json!(u64::MAX),
        ] {
            check(Desired, json!({ "a": bad }), Err((".a", Fault::Integer)));
        }
    }

    #[test]
    fn what_counts_nothing_is_bounded_all_the_same() {
        let bytes_max = 65536;
        for value in [
            json!("\u{1}".repeat(bytes_max)),
            json!(vec![""; bytes_max]),
            json!(vec![json!({}); bytes_max]),
        ] {
            let found = check_section(SectionName::Tags, &members(json!({ "a": value }))).unwrap_err();
            assert!(matches!(found.fault, Fault::TooManyBytes { .. }), "{found}");
        }
        // The densest legal section: members of one character of four bytes, with nothing in them.
        let dense: Members = ('\u{1f000}'..).take(8192).map(|c| (c.to_string(), json!({}))).collect();
        assert_eq!(check_section(SectionName::Tags, &dense), Ok(()));
    }
}
