//! What services do with messages to devices over HTTPS: purge a queue, and take feedback. Sending has no route in the
//! contract; it goes by the native door.

use serde_json::json;

use super::Rest;
use crate::http::{Answer, Call, Refused, wait};
use crate::hub::FeedbackError;
use crate::hub::outbox::Settlement;

impl Rest {
    // IoT Hub, C2D section 9.
    pub(super) async fn purge(&self, call: &Call) -> Result<Answer, Refused> {
        let name = call.identity()?;
        let purged = wait(|done| self.outboxes.purge(&name, call.now(), done)).await??;
        Ok(Answer::json(
            200,
            &json!({
                "deviceId": name.device.as_str(),
                "moduleId": name.module.as_ref().map(|module| module.as_str()),
                "totalMessagesPurged": purged,
            }),
        ))
    }

    // IoT Hub, C2D section 8: the next batch under a lock, or 204.
    pub(super) async fn feedback_receive(&self, call: &Call) -> Result<Answer, Refused> {
        let batch = wait(|done| self.feedbacks.receive(call.now(), done)).await??;
        Ok(match batch {
            Some(batch) => Answer::json(200, &batch.records).etag(&batch.token.to_string()),
            None => Answer::no_content(),
        })
    }

    pub(super) async fn feedback_settle(&self, call: &Call, settlement: Settlement) -> Result<Answer, Refused> {
        let token = call.lock_token(3)?;
        wait(|done| self.feedbacks.settle(token, settlement, call.now(), done)).await??;
        Ok(Answer::no_content())
    }
}

impl From<FeedbackError> for Refused {
    fn from(error: FeedbackError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
