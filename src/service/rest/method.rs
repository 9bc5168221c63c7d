//! Direct methods: called, and waited for.

use super::Rest;
use crate::http::{Answer, Call, Refused};
use crate::hub::method::{self, MethodError, MethodRequest, MethodResponse};
use crate::hub::throttle::{self, Class};

impl Rest {
    pub(super) async fn invoke(&self, call: Call) -> Result<Answer, Refused> {
        let name = call.identity()?;
        let request: MethodRequest = call.json().await?;
        let method = request.check()?;
        method::find(&self.registry, &name)?;
        let bytes = throttle::method_bytes(method.payload.len());
        self.throttle(Class::MethodBytes, bytes).await?;
        let answer = self.lines.invoke(&name, method).await?;
        Ok(Answer::json(200, &MethodResponse::from(answer)))
    }
}

impl From<MethodError> for Refused {
    fn from(error: MethodError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
