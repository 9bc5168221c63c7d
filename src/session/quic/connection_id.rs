//! Ids of this endpoint's connections, such that a hub that was killed is missed at once.
//!
//! A restarted hub does not know the connections of its former life. It answers their packets with a stateless reset (RFC
//! 9000 s10.3), whose token follows from the id and the kept reset key, and the client reconnects instead of waiting for
//! its idle timeout. That takes ids that the endpoint answers for in every life: quinn's own carry a check value under a
//! key that is new in each process, and what does not fit is dropped without an answer.

use quinn::{ConnectionId, ConnectionIdGenerator};
use ring::rand::{SecureRandom as _, SystemRandom};

const ID_BYTES: usize = 8;

pub(super) struct ConnectionIds(SystemRandom);

impl ConnectionIds {
    pub fn new() -> Self {
        Self(SystemRandom::new())
    }
}

impl ConnectionIdGenerator for ConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; ID_BYTES];
        self.0
            .fill(&mut bytes)
            .expect("the operating system gives random bytes");
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}
