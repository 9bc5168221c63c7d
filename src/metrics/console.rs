//! The console's facts as metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::exposition::Families;
use super::registry::Metrics;
use super::series;
use crate::service::console::observer::{Observer, Reason, SignIn};

#[derive(Debug, Default)]
pub(super) struct ConsoleCells {
    sign_ins: [AtomicU64; SignIn::ALL.len()],
    refused: [AtomicU64; Reason::ALL.len()],
}

impl ConsoleCells {
    pub fn render(&self, out: &mut Families) {
        out.each(
            &series::CONSOLE_SIGN_INS,
            SignIn::ALL.iter().map(|&outcome| {
                let count = self.sign_ins[outcome as usize].load(Relaxed);
                (vec![outcome.label().to_owned()], count as f64)
            }),
        );
        out.each(
            &series::CONSOLE_REFUSED,
            Reason::ALL.iter().map(|&reason| {
                let count = self.refused[reason as usize].load(Relaxed);
                (vec![reason.label().to_owned()], count as f64)
            }),
        );
    }
}

/// What the console states, as metrics.
#[derive(Clone, Debug)]
pub struct ConsoleFacts(pub Arc<Metrics>);

impl Observer for ConsoleFacts {
    fn signed_in(&self, outcome: SignIn) {
        self.0.console.sign_ins[outcome as usize].fetch_add(1, Relaxed);
    }

    fn auth_refused(&self, label: &'static str) {
        self.0.auth_refused(label);
    }

    fn refused(&self, reason: Reason) {
        self.0.console.refused[reason as usize].fetch_add(1, Relaxed);
    }
}
