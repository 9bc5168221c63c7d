//! The two stages of a door's stop: newcomers are refused, then those who are in are told to go.

use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Open,
    Refusing,
    Stopping,
}

/// How far a door's stop has come.
#[derive(Debug)]
pub struct Shutdown(watch::Sender<Stage>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(watch::Sender::new(Stage::Open))
    }
}

impl Shutdown {
    /// From now on newcomers are refused.
    pub fn refuse(&self) {
        self.reach(Stage::Refusing);
    }

    /// From now on those who are in go too.
    pub fn stop(&self) {
        self.reach(Stage::Stopping);
    }

    pub fn is_refusing(&self) -> bool {
        *self.0.borrow() >= Stage::Refusing
    }

    pub fn is_stopping(&self) -> bool {
        *self.0.borrow() == Stage::Stopping
    }

    pub async fn refusing(&self) {
        self.reached(Stage::Refusing).await;
    }

    pub async fn stopping(&self) {
        self.reached(Stage::Stopping).await;
    }

    fn reach(&self, stage: Stage) {
        self.0.send_modify(|reached| *reached = stage.max(*reached));
    }

    async fn reached(&self, stage: Stage) {
        let mut stages = self.0.subscribe();
        // The sender is `self`: it does not go meanwhile.
        let _ = stages.wait_for(|reached| *reached >= stage).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_in_stays_until_the_second_stage() {
        let shutdown = Shutdown::default();
        assert!(!shutdown.is_refusing() && !shutdown.is_stopping());
        let (refusing, stopping) = (shutdown.refusing(), shutdown.stopping());
        tokio::pin!(refusing, stopping);
        shutdown.refuse();
        refusing.await;
        assert!(shutdown.is_refusing() && !shutdown.is_stopping());
        let waited = tokio::time::timeout(std::time::Duration::from_millis(5), stopping.as_mut()).await;
        assert!(waited.is_err());
        shutdown.stop();
        stopping.await;
        shutdown.refuse();
        assert!(shutdown.is_stopping(), "there is no way back");
    }
}
