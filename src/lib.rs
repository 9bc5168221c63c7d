//! Forebay: a self-hosted IoT hub. The map of the crate: data flows down, answers and pushes come back through
//! handles that the upper module passed down.
//!
//! ```text
//!   devices and services: QUIC (forebay/1)   MQTT, HTTPS, AMQP: devices    services
//!              |  bytes                              |             |     on net/  listeners, TLS
//!              |                                     |             |     over http/  call, answer, route, serve, websocket/
//!              |                                     |             |     and amqp/  connection, link, credentials, cbs
//! +-- session/ v-------------------------------------v--+  +-------v--- service/ --+
//! |  quic/  door, device, service, cursor, management   |  |  rest/  registry      |   sockets, TLS, tasks, limits
//! |         streams/  commands, twin, methods           |  |         twin  method  |
//! |  mqtt/  http/  amqp/  the same, without a stream each |  |         query         |
//! |  every door's:  home  telemetry  commands           |  |  console/  for people |
//! |                 twin  methods  post                 |  |                       |
//! +------------+----------------------------------------+  +-------+---------------+
//!              |  the door drives a codec                       +-- wire/ -----------------------+
//!              |------------------------------------------------>  frame  batch  message  stamp |
//!              |  typed commands                                +-- proto/ ----------------------+
//!              |                                                |  amqp/  mqtt/                  |
//!              |                                                +--------------------------------+
//! +-- shard/ --v-----------------------------------------------+
//! |  router.rs  partition -> owner    actor.rs  mailbox        |   actors end here: plain code below
//! |  inbox  shard.rs  plain logic     syncer  keeper  recovery |
//! |  lines/  who listens: calls, changes, waiting messages     |
//! |  readers  where consumers stand     timing  turns, dates   |
//! +------------+------------------------------------+----------+
//!              |  decide                            |  keep
//! +-- hub/ ----v------------------+   +-- log/ -----v----------+
//! |  auth  sas  registry  policy  |   |  appender  segment     |
//! |  authority  groups  filter    |   |  cursor  recovery  map |   sync code, no runtime
//! |  outbox/  feedback/  twin/    |   |                        |
//! |  presence  events/  method    |   |                        |
//! |  query/  throttle/            |   |                        |
//! |  subscriptions                |   |                        |
//! +------------+------------------+   +-------------+----------+
//!              |  keep                              |
//! +-- state/ --v------------------+                 |
//! |  redb  memory                 |                 |
//! +------------+------------------+                 |
//!              |                                    |
//! +-- model/ --v------------------------------------v----------+
//! |  ids  message  time  limits   plain values                 |   imports only std
//! +------------------------------------------------------------+
//!   beside the flow:  server/ wires all parts, starts, drains    config/  cli/  main.rs
//!                     metrics/ implements the observers          client/  device, consumer, service
//!                     testing/ simulated disk, fuzz targets (feature "testing")
//! ```
//!
//! | module | may import | must stay ignorant of |
//! | --- | --- | --- |
//! | [`model`] | std | everything else |
//! | [`proto`] | nothing of ours | sockets, tokio, actix, clocks, hub, shard |
//! | [`wire`] | model | sockets, tokio, actix, clocks, hub, shard |
//! | [`log`] | model | devices, protocols, async, actix |
//! | [`state`] | nothing of ours | what its keys and values mean |
//! | [`hub`] | model, state | sockets, `Instant::now`, actix, protocols |
//! | [`shard`] | hub, log, model, state (to wait for it at start), wire | session, metrics, server |
//! | [`http`] | hub, model, net | session, service, shard, log, metrics, server |
//! | [`net`] | nothing of ours | protocols, who is let in and why |
//! | [`amqp`] | hub, model, net, proto | session, service, shard, log, metrics, server |
//! | [`session`] | http, amqp, net, proto, wire, shard, hub, model, the readers' side of log | service, metrics, server |
//! | [`service`] | http, amqp, proto, wire, shard, hub, model, the readers' side of log | session, metrics, server |
//! | [`client`] | wire, model, hub's `sas` and `connection_string`, log's `record` | everything else on the server's side |
//! | [`metrics`] | observers' traits and events, model | how anything works |
//! | [`config`] | nothing of ours | who reads it |
//! | [`server`], [`cli`] | all | |
//! | `testing` | log, state, model; the parsers it fuzzes | |
//!
//! No circles: a lower module that must reach up declares the trait, and the upper one hands in an implementation
//! ([`shard::observer::Observer`], [`shard::inbox::Waker`]). `tests/tidy.rs` checks the imports against this table, and
//! the drawing against the modules.

pub mod amqp;
pub mod cli;
pub mod client;
pub mod config;
pub mod http;
pub mod hub;
pub mod log;
pub mod metrics;
pub mod model;
pub mod net;
pub mod proto;
pub mod server;
pub mod service;
pub mod session;
pub mod shard;
pub mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod wire;
