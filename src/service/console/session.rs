//! Who is signed in: a bounded table of sessions, each the holder of one policy's key.
//!
//! A session lasts while it is used, at most [`ABSOLUTE`], and only while the key it was begun with is one of its
//! policy's: a changed key, a deleted policy or a lost right counts from the next request on. The table has digests of
//! the tokens, so that neither a dump of memory nor the time of a comparison gives one away.
//!
//! Knows no clock and no HTTP: `now` is an argument.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::hub::{Entropy, Permissions, Policies};
use crate::model::PolicyName;

/// Sessions at a time; one more ends the one that was used least recently.
pub const SESSIONS_MAX: usize = 64;
/// A session that is not used for this long has ended.
pub const IDLE: Duration = Duration::from_secs(30 * 60);
/// A session has ended this long after it was begun, however much it is used.
pub const ABSOLUTE: Duration = Duration::from_secs(12 * 60 * 60);

type Digest = [u8; 32];

struct Session {
    policy: PolicyName,
    key: Digest,
    begun: Instant,
    used: Instant,
}

/// Who makes a request, with what its policy grants now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    pub policy: PolicyName,
    pub permissions: Permissions,
    /// When the session ends whatever happens.
    pub ends: Instant,
}

/// All sessions of the console.
pub struct Sessions {
    policies: Policies,
    entropy: Arc<dyn Entropy>,
    table: Mutex<HashMap<Digest, Session>>,
}

impl Sessions {
    pub fn new(policies: Policies, entropy: Arc<dyn Entropy>) -> Self {
        Self {
            policies,
            entropy,
            table: Mutex::default(),
        }
    }

    /// Begins a session for the holder of a key that was checked; its token, which nobody can ask for again.
    pub fn begin(&self, policy: &PolicyName, key: &str, now: Instant) -> String {
        let mut token = [0; 32];
        self.entropy.fill(&mut token);
        let token = URL_SAFE_NO_PAD.encode(token);
        let session = Session {
            policy: policy.clone(),
            key: digest(key),
            begun: now,
            used: now,
        };
        let mut table = self.lock();
        table.retain(|_, session| session.is_alive(now));
        if table.len() >= SESSIONS_MAX {
            let oldest = table.iter().min_by_key(|(_, session)| session.used);
            if let Some(oldest) = oldest.map(|(token, _)| *token) {
                table.remove(&oldest);
            }
        }
        table.insert(digest(&token), session);
        token
    }

    /// Who holds a token; counts as use of the session.
    pub fn find(&self, token: &str, now: Instant) -> Option<Operator> {
        let token = digest(token);
        let mut table = self.lock();
        let session = table.get_mut(&token)?;
        let permissions = session.is_alive(now).then(|| self.granted(session)).flatten();
        let Some(permissions) = permissions else {
            table.remove(&token);
            return None;
        };
        session.used = now;
        Some(Operator {
            policy: session.policy.clone(),
            permissions,
            ends: session.begun + ABSOLUTE,
        })
    }

    /// Ends a session.
    pub fn end(&self, token: &str) {
        self.lock().remove(&digest(token));
    }

    /// Sessions that have not ended by themselves.
    pub fn count(&self, now: Instant) -> usize {
        let mut table = self.lock();
        table.retain(|_, session| session.is_alive(now));
        table.len()
    }

    /// What the policy grants, if the session's key is still one of its keys.
    fn granted(&self, session: &Session) -> Option<Permissions> {
        let policies = self.policies.list();
        let policy = policies.iter().find(|policy| policy.key_name == session.policy)?;
        let is_key = policy
            .keys
            .iter()
            .fold(0, |found, key| found | digest(key).ct_eq(&session.key).unwrap_u8());
        (is_key == 1).then_some(policy.rights)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Session>> {
        // Every change is one insertion or removal, so a panic elsewhere leaves nothing half done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    fn is_alive(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.used) < IDLE && now.saturating_duration_since(self.begun) < ABSOLUTE
    }
}

fn digest(text: &str) -> Digest {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::hub::KeySlot;
    use crate::state::MemoryState;

    #[derive(Default)]
    struct Counting(AtomicU64);

    impl Entropy for Counting {
        fn fill(&self, bytes: &mut [u8]) {
            for chunk in bytes.chunks_mut(8) {
                let next = self.0.fetch_add(1, Ordering::Relaxed) + 1;
                chunk.copy_from_slice(&next.to_be_bytes()[..chunk.len()]);
            }
        }
    }

    fn sessions() -> (Sessions, Policies) {
        let entropy: Arc<dyn Entropy> = Arc::new(Counting::default());
        let policies = Policies::open(Arc::new(MemoryState::default()), entropy.clone()).unwrap();
        (Sessions::new(policies.clone(), entropy), policies)
    }

    fn name(text: &str) -> PolicyName {
        PolicyName::new(text).unwrap()
    }

    fn key(policies: &Policies, policy: &str) -> String {
        policies.get(&name(policy)).unwrap().keys.primary_key.unwrap()
    }

    #[test]
    fn a_session_ends_unused_and_at_last_anyway() {
        let (sessions, policies) = sessions();
        let start = Instant::now();
        let begin = || sessions.begin(&name("service"), &key(&policies, "service"), start);
        let (unused, used) = (begin(), begin());
        assert_ne!(unused, used);
        assert_eq!(used.len(), 43, "256 bits");
        let mut now = start;
        while now + IDLE / 2 < start + ABSOLUTE {
            now += IDLE / 2;
            let operator = sessions.find(&used, now).expect("it is used");
            assert_eq!(operator.permissions, Permissions::SERVICE_CONNECT);
            assert_eq!(operator.ends, start + ABSOLUTE);
        }
        assert_eq!(sessions.find(&unused, start + IDLE), None);
        assert_eq!(sessions.find(&used, start + ABSOLUTE), None);
        assert_eq!(sessions.count(start + ABSOLUTE), 0);
    }

    #[test]
    fn a_changed_key_and_a_deleted_policy_end_sessions() {
        let (sessions, policies) = sessions();
        let now = Instant::now();
        let by_primary = sessions.begin(&name("service"), &key(&policies, "service"), now);
        let secondary = policies.get(&name("service")).unwrap().keys.secondary_key.unwrap();
        let by_secondary = sessions.begin(&name("service"), &secondary, now);
        let other = sessions.begin(&name("registryRead"), &key(&policies, "registryRead"), now);
        policies
            .wait(|done| policies.regenerate(&name("service"), KeySlot::Primary, done))
            .unwrap();
        assert_eq!(sessions.find(&by_primary, now), None);
        assert!(sessions.find(&by_secondary, now).is_some(), "the other key goes on");
        let mut policy = policies.get(&name("service")).unwrap();
        policy.rights = Permissions::REGISTRY_READ;
        policies.wait(|done| policies.put(policy, done)).unwrap();
        let operator = sessions.find(&by_secondary, now).unwrap();
        assert_eq!(
            operator.permissions,
            Permissions::REGISTRY_READ,
            "rights are those of now"
        );
        policies.wait(|done| policies.delete(&name("service"), done)).unwrap();
        assert_eq!(sessions.find(&by_secondary, now), None);
        assert!(sessions.find(&other, now).is_some());
        sessions.end(&other);
        assert_eq!(sessions.find(&other, now), None);
    }

    #[test]
    fn their_number_is_bounded() {
        let (sessions, policies) = sessions();
        let start = Instant::now();
        let key = key(&policies, "iothubowner");
        let tokens: Vec<_> = (0..SESSIONS_MAX as u64 + 1)
            .map(|n| sessions.begin(&name("iothubowner"), &key, start + Duration::from_millis(n)))
            .collect();
        assert_eq!(sessions.count(start), SESSIONS_MAX);
        assert_eq!(
            sessions.find(&tokens[0], start),
            None,
            "the least recently used one went"
        );
        assert!(sessions.find(&tokens[1], start).is_some());
    }
}
