//! Connections as they come, through the port and through WebSockets, and their common end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::io::{BufReader, DuplexStream};

use super::observer::Began;
use super::{Door, session};
use crate::net::{Host, Stream};

/// A connection counts from its first packet to its end.
pub struct Counted {
    door: Arc<Door>,
    began: Began,
}

impl Counted {
    /// `None`: there are as many as there may be.
    fn new(door: &Arc<Door>, began: Began) -> Option<Self> {
        let counted = Self {
            door: door.clone(),
            began,
        };
        let before = door.connections.fetch_add(1, Ordering::Relaxed);
        door.observer.connection_opened(began);
        (before < door.connections_max.load(Ordering::Relaxed) && !door.shutdown.is_refusing()).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.door.connections.fetch_sub(1, Ordering::Relaxed);
        self.door.observer.connection_closed(self.began);
    }
}

impl Door {
    /// Connections open now, handshakes included.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Host for Door {
    type Place = Counted;

    fn take_place(self: &Arc<Self>, _: bool) -> Option<Counted> {
        Counted::new(self, Began::Tls)
    }

    fn handshake_timeout(&self) -> Duration {
        self.config.handshake_timeout
    }

    fn handshake_failed(&self) {
        self.observer.handshake_failed();
    }

    async fn stopped(&self) {
        self.shutdown.refusing().await;
    }

    async fn admitted(&self) -> bool {
        self.admission.turn().await;
        true
    }

    async fn serve<S: Stream>(self: Arc<Self>, place: Counted, stream: S, chain: Vec<CertificateDer<'static>>) {
        session::run(self, stream, chain).await;
        drop(place);
    }
}

/// Serves a connection that came through a WebSocket, on the thread it came on.
pub async fn serve_tunnel(door: Arc<Door>, stream: DuplexStream, chain: Vec<CertificateDer<'static>>) {
    match Counted::new(&door, Began::WebSocket) {
        Some(counted) => {
            session::run(door, BufReader::new(stream), chain).await;
            drop(counted);
        }
        None => door.observer.handshake_failed(),
    }
}
