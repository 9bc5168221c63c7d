//! Shared access signature tokens: read, verify, make (identity and security, sections 3 and 5).
//!
//! ```text
//!   SharedAccessSignature sr=<encoded resource>&sig=<encoded base64>&se=<seconds>[&skn=<policy>]
//! ```
//!
//! The signature covers the *received* text of `sr` and `se`, never a decoded and encoded again one: clients differ in
//! the case of escapes. What a token grants is judged on the decoded resource. Nothing here panics on any input; work
//! and allocation are bounded by `TOKEN_BYTES_MAX`.

use std::borrow::Cow;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::model::{PolicyName, UtcMillis, limits};

/// A longer token is refused unread.
pub const TOKEN_BYTES_MAX: usize = 4096;
/// No client sends more than the four known fields; unknown ones are ignored up to here.
const FIELDS_MAX: usize = 8;
const PREFIX: &str = "SharedAccessSignature ";
/// Larger than any time of interest, small enough that skew and milliseconds fit.
const EXPIRY_SECONDS_MAX: u64 = 1 << 48;

/// Why a text is not a token. The words are for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SasError {
    #[error("longer than {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    #[error("does not start with SharedAccessSignature and one space")]
    Prefix,
    #[error("has a field without `=`, or too many fields")]
    Field,
    #[error("names a field twice")]
    Repeated,
    #[error("lacks sr, sig or se")]
    Missing,
    #[error("sr is not a resource")]
    Resource,
    #[error("sig is not the base64 of 32 bytes")]
    Signature,
    #[error("se is not a number of seconds")]
    Expiry,
    #[error("skn is not a policy name")]
    Policy,
}

/// A token as received. Nothing in it is to be believed before `is_signed_by`.
#[derive(Clone, Debug)]
pub struct SasToken<'a> {
    resource_raw: &'a str,
    expiry_raw: &'a str,
    signature: [u8; 32],
    expiry_seconds: u64,
    resource: Resource,
    policy: Option<PolicyName>,
}

impl<'a> SasToken<'a> {
    /// # Errors
    /// `SasError` says which part is not as it must be.
    pub fn parse(text: &'a str) -> Result<Self, SasError> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(SasError::TooLong);
        }
        let fields = text.strip_prefix(PREFIX).ok_or(SasError::Prefix)?;
        let [mut sr, mut sig, mut se, mut skn] = [None; 4];
        for (index, field) in fields.split('&').enumerate() {
            let (name, value) = field.split_once('=').ok_or(SasError::Field)?;
            if index >= FIELDS_MAX {
                return Err(SasError::Field);
            }
            let known = [("sr", &mut sr), ("sig", &mut sig), ("se", &mut se), ("skn", &mut skn)];
            // An unknown field is ignored: the signature does not cover it, so it can change nothing.
            if let Some((_, slot)) = known.into_iter().find(|(known, _)| name.eq_ignore_ascii_case(known))
                && slot.replace(value).is_some()
            {
                // Which of two values counts would be a matter of taste, and taste is how checks are walked around.
                return Err(SasError::Repeated);
            }
        }
        let (Some(resource_raw), Some(sig), Some(expiry_raw)) = (sr, sig, se) else {
            return Err(SasError::Missing);
        };
        let policy = match skn {
            None | Some("") => None,
            Some(name) => {
                let name = decode_form(name).ok_or(SasError::Policy)?;
                Some(PolicyName::new(&name).map_err(|_| SasError::Policy)?)
            }
        };
        Ok(Self {
            resource_raw,
            expiry_raw,
            signature: decode_signature(sig)?,
            expiry_seconds: decode_expiry(expiry_raw)?,
            resource: Resource::parse(&decode(resource_raw).ok_or(SasError::Resource)?)?,
            policy,
        })
    }

    /// Whether this key made the signature. Takes the same time whether it is nearly right or quite wrong.
    pub fn is_signed_by(&self, key: &[u8]) -> bool {
        let mut mac = mac(key);
        mac.update(self.resource_raw.as_bytes());
        mac.update(b"\n");
        mac.update(self.expiry_raw.as_bytes());
        // Compares by `subtle`.
        mac.verify_slice(&self.signature).is_ok()
    }

    pub fn resource(&self) -> &Resource {
        &self.resource
    }

    /// The policy said to have signed; `None` if the identity's own key has.
    pub fn policy(&self) -> Option<&PolicyName> {
        self.policy.as_ref()
    }

    /// When the token stops being accepted: `se` and the allowed clock skew.
    pub fn expires(&self) -> UtcMillis {
        UtcMillis((self.expiry_seconds + limits::TOKEN_CLOCK_SKEW_SECONDS) as i64 * 1000)
    }

    pub fn is_expired(&self, now: UtcMillis) -> bool {
        now >= self.expires()
    }
}

/// What a token is for: a host and a path of segments. Empty path: the whole hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    host: String,
    path: Vec<String>,
    has_scheme: bool,
}

impl Resource {
    /// Reads a decoded resource, with or without scheme.
    ///
    /// # Errors
    /// `SasError::Resource` when there is no host.
    pub fn parse(text: &str) -> Result<Self, SasError> {
        // Event Hubs clients sign full addresses. Only their schemes: a `:` may also stand in an id.
        let schemes = ["sb://", "amqps://", "amqp://", "https://", "http://"];
        let rest = schemes.iter().find_map(|scheme| {
            let head = text.get(..scheme.len())?;
            head.eq_ignore_ascii_case(scheme).then(|| &text[scheme.len()..])
        });
        let mut segments = rest.unwrap_or(text).split('/');
        let mut host = segments.next().unwrap_or_default();
        let mut path: Vec<String> = segments.map(str::to_owned).collect();
        if rest.is_some() {
            // Old .NET clients sign `http://host/path/`, others a port.
            if path.last().is_some_and(String::is_empty) {
                path.pop();
            }
            host = without_port(host);
        }
        if host.is_empty() {
            return Err(SasError::Resource);
        }
        Ok(Self {
            host: host.to_owned(),
            path,
            has_scheme: rest.is_some(),
        })
    }

    /// Whether the token was made by an Event Hubs client, which signs a full address.
    pub fn has_scheme(&self) -> bool {
        self.has_scheme
    }

    pub fn is_host_one_of(&self, host_names: &[String]) -> bool {
        host_names.iter().any(|name| name.eq_ignore_ascii_case(&self.host))
    }

    /// The decoded segments behind the host.
    pub fn path(&self) -> &[String] {
        &self.path
    }

    /// Whether it stands for the whole hub.
    pub fn is_hub(&self) -> bool {
        self.path.is_empty()
    }

    /// Whether it covers a path by segment: `/a/b` covers `/a/b/c` and not `/a/bc`. Ids compare with case.
    pub fn covers(&self, path: &[&str]) -> bool {
        self.path.len() <= path.len() && self.path.iter().zip(path).all(|(own, wanted)| own == wanted)
    }

    /// Whether it names just this identity path. For tokens signed by the identity's own key only, which are therefore
    /// read with some goodwill: an id escaped twice, and one documented extra segment, are accepted.
    pub fn names(&self, path: &[&str]) -> bool {
        let own = match self.path.split_last() {
            // IoT Hub: `{host}/devices/{id}/api-version=2016-11-14` stands in old documents.
            Some((last, rest)) if last.starts_with("api-version=") => rest,
            _ => &self.path,
        };
        own.len() == path.len()
            && own
                .iter()
                .zip(path)
                .all(|(own, wanted)| own == wanted || decode(own).is_some_and(|decoded| decoded == *wanted))
    }

    /// `covers` as the Event Hubs surface has it: without case, because its clients lower it.
    pub fn covers_address(&self, path: &str) -> bool {
        let mut wanted = path.split('/').filter(|segment| !segment.is_empty());
        self.path
            .iter()
            .all(|own| wanted.next().is_some_and(|wanted| own.eq_ignore_ascii_case(wanted)))
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    }
}

/// A complete token over `resource`, which is escaped here. `key` is the decoded key for IoT Hub, the text of the key
/// for Event Hubs.
pub fn generate(resource: &str, key: &[u8], expiry_seconds: u64, policy: Option<&str>) -> String {
    let resource = percent_encode(resource);
    let mut mac = mac(key);
    mac.update(resource.as_bytes());
    mac.update(format!("\n{expiry_seconds}").as_bytes());
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    let signature = percent_encode(&signature);
    let mut token = format!("{PREFIX}sr={resource}&sig={signature}&se={expiry_seconds}");
    if let Some(policy) = policy {
        // Writing to a string cannot fail.
        let _ = write!(token, "&skn={}", percent_encode(policy));
    }
    token
}

/// Escapes everything but letters, digits and `-._~` (RFC 3986 s2.3).
pub fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// Resolves `%XX`; `None` for a broken escape or text that is not UTF-8. A `+` stays: in a path it is a character.
pub fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let (&[high, low], after) = rest.split_first_chunk()?;
        let digit = |byte: u8| char::from(byte).to_digit(16);
        decoded.push((digit(high)? * 16 + digit(low)?) as u8);
        rest = after;
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

/// `decode` for form values, where `+` is a space.
fn decode_form(text: &str) -> Option<Cow<'_, str>> {
    if text.contains('+') {
        return decode(&text.replace('+', " ")).map(|decoded| Cow::Owned(decoded.into_owned()));
    }
    decode(text)
}

fn decode_signature(text: &str) -> Result<[u8; 32], SasError> {
    let text = decode_form(text).ok_or(SasError::Signature)?;
    let bytes = STANDARD.decode(text.as_bytes()).map_err(|_| SasError::Signature)?;
    bytes.try_into().map_err(|_| SasError::Signature)
}

fn decode_expiry(text: &str) -> Result<u64, SasError> {
    // `parse` alone would take a leading `+`.
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SasError::Expiry);
    }
    let seconds: u64 = text.parse().map_err(|_| SasError::Expiry)?;
    Ok(seconds.min(EXPIRY_SECONDS_MAX))
}

fn mac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

#[cfg(test)]
#[path = "sas_tests.rs"]
mod tests;
