//! What a shard tells presence: sessions that open, act, take over, close and are cut off.

use super::*;
use crate::hub::presence::Seen;
use crate::hub::{Entropy, IdentityName, Presence, Registry};

struct Zeros;

impl Entropy for Zeros {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(0);
    }
}

#[test]
fn a_take_over_is_no_disconnection_and_each_end_of_a_session_is_told() {
    let mut world = World::new(Durability::Sync);
    // Of one partition, which is the one the first device lives in.
    let registry = Registry::open(world.state.clone(), Arc::new(Zeros), 1).unwrap();
    let start = UtcMillis(world.utc);
    let presence = Presence::open(world.state.clone(), registry, 1, Duration::from_secs(60), start).unwrap();
    world.process().shard.set_presence(presence.clone());
    let name = IdentityName::device(world.devices[0].key.device.clone());
    let look = |presence: &Presence| -> Seen { presence.look(&name, Generation(7)).unwrap() };
    let connected = |seen: Seen| format!("{:?}", seen.state) == "Connected";
    let connect = Step::Connect {
        device: 0,
        how: Connect::Resume,
    };

    assert_eq!(look(&presence), Seen::default());
    world.step(&connect);
    world.settle();
    let first = look(&presence);
    assert!(connected(first) && first.since > Some(start));
    world.step(&Step::MoveClock { ms: 5_000 });
    world.step(&Step::Send {
        device: 0,
        count: 1,
        bytes: 10,
    });
    world.settle();
    let active = look(&presence);
    assert!(
        active.activity >= first.activity.map(|at| UtcMillis(at.0 + 5_000)),
        "{active:?}"
    );

    world.step(&Step::MoveClock { ms: 5_000 });
    world.step(&connect);
    world.settle();
    let taken_over = look(&presence);
    assert!(connected(taken_over));
    assert_eq!(taken_over.since, first.since, "it was connected all the time");

    world.step(&Step::Close { device: 0 });
    world.settle();
    let closed = look(&presence);
    assert!(!connected(closed) && closed.since > taken_over.since);

    world.step(&connect);
    world.settle();
    assert!(connected(look(&presence)));
    world.step(&Step::Revoke { device: 0 });
    world.settle();
    assert!(!connected(look(&presence)));
}
