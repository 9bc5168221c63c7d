//! The contract's error codes (quotas and errors, section 6) that this room gives out.

/// A code with its name. The first three digits of the number are the HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCode {
    pub number: u32,
    pub name: &'static str,
}

impl ErrorCode {
    pub const BAD_REQUEST: Self = Self::new(400_000, "GenericBadRequest");
    pub const INVALID_PROTOCOL_VERSION: Self = Self::new(400_001, "InvalidProtocolVersion");
    pub const ARGUMENT_INVALID: Self = Self::new(400_004, "ArgumentInvalid");
    pub const FORMAT_ERROR: Self = Self::new(400_006, "IotHubFormatError");
    pub const DEFINED_MULTIPLE_TIMES: Self = Self::new(400_011, "DeviceDefinedMultipleTimes");
    pub const BULK_REGISTRY_FAILURE: Self = Self::new(400_013, "BulkRegistryOperationFailure");
    pub const INVALID_OPERATION: Self = Self::new(400_003, "InvalidOperation");
    pub const NO_UPLOAD_STORAGE: Self = Self::new(400_014, "DefaultStorageEndpointNotConfigured");
    pub const REQUEST_TIMED_OUT: Self = Self::new(400_024, "RequestTimedOut");
    pub const INVALID_POLICY_KEY: Self = Self::new(400_035, "InvalidPolicyKey");
    pub const BULK_REGENERATE_FAILURE: Self = Self::new(400_036, "BulkRegenerateDeviceKeyOperationFailure");
    pub const HUB_NOT_FOUND: Self = Self::new(401_001, "IotHubNotFound");
    pub const UNAUTHORIZED_ACCESS: Self = Self::new(401_002, "IotHubUnauthorizedAccess");
    pub const UNAUTHORIZED: Self = Self::new(401_003, "IotHubUnauthorized");
    pub const QUOTA_EXCEEDED: Self = Self::new(403_002, "IotHubQuotaExceeded");
    pub const TOKENS_EXCEEDED: Self = Self::new(403_005, "IotHubMaxCbsTokenExceeded");
    pub const DEVICE_QUEUE_DEPTH: Self = Self::new(403_004, "DeviceMaximumQueueDepthExceeded");
    pub const MESSAGE_EXPIRY: Self = Self::new(403_009, "InvalidMessageExpiryTime");
    pub const DEVICE_DISABLED: Self = Self::new(403_012, "DeviceDisabled");
    pub const METHODS_IN_FLIGHT: Self = Self::new(403_800, "DeviceMaximumInflightMethodExceeded");
    pub const NOT_FOUND: Self = Self::new(404_000, "GenericNotFound");
    pub const DEVICE_NOT_FOUND: Self = Self::new(404_001, "DeviceNotFound");
    pub const CERTIFICATE_NOT_FOUND: Self = Self::new(404_008, "CertificateNotFound");
    pub const MODULE_NOT_FOUND: Self = Self::new(404_010, "ModuleNotFound");
    pub const DEVICE_NOT_ONLINE: Self = Self::new(404_103, "DeviceNotOnline");
    pub const GROUP_NOT_FOUND: Self = Self::new(404_302, "GroupNotFound");
    pub const METHOD_NOT_ALLOWED: Self = Self::new(405_000, "GenericMethodNotAllowed");
    pub const CONFLICT: Self = Self::new(409_000, "GenericConflict");
    pub const SUBSCRIPTION_CONFLICT: Self = Self::new(409_003, "CallbackSubscriptionConflict");
    pub const LINK_CREATION_CONFLICT: Self = Self::new(409_002, "LinkCreationConflict");
    pub const DEVICE_ALREADY_EXISTS: Self = Self::new(409_001, "DeviceAlreadyExists");
    pub const MODULE_ALREADY_EXISTS: Self = Self::new(409_301, "ModuleAlreadyExistsOnDevice");
    pub const PRECONDITION_FAILED: Self = Self::new(412_001, "PreconditionFailed");
    pub const LOCK_LOST: Self = Self::new(412_002, "DeviceMessageLockLost");
    pub const TOO_LARGE: Self = Self::new(413_000, "GenericRequestEntityTooLarge");
    pub const MESSAGE_TOO_LARGE: Self = Self::new(413_001, "MessageTooLarge");
    pub const TOO_MANY_DEVICES: Self = Self::new(413_002, "TooManyDevices");
    pub const TOO_MANY_MODULES: Self = Self::new(413_003, "TooManyModulesOnDevice");
    /// Not of the contract, which has nothing to say about a WebSocket that is none.
    pub const UPGRADE_REQUIRED: Self = Self::new(426_000, "GenericUpgradeRequired");
    pub const THROTTLED: Self = Self::new(429_001, "ThrottlingException");
    pub const THROTTLE_BACKLOG: Self = Self::new(429_002, "ThrottleBacklogLimitExceeded");
    pub const DEVICE_THROTTLED: Self = Self::new(429_005, "DeviceThrottlingLimitExceeded");
    pub const SERVER_ERROR: Self = Self::new(500_001, "ServerError");
    pub const BAD_GATEWAY: Self = Self::new(502_000, "GenericBadGateway");
    pub const SERVER_BUSY: Self = Self::new(503_005, "ServerBusy");
    pub const GATEWAY_TIMEOUT: Self = Self::new(504_101, "GatewayTimeout");

    const fn new(number: u32, name: &'static str) -> Self {
        Self { number, name }
    }

    pub fn http_status(self) -> u16 {
        (self.number / 1000) as u16
    }
}
