//! What each route takes and answers, in words.

use crate::http::route::Route;
use crate::hub::ErrorCode;

/// A route in words.
pub(super) struct Operation {
    pub summary: &'static str,
    pub description: &'static str,
    /// Besides the path's ids and the version.
    pub parameters: &'static [Parameter],
    pub body: Option<Body>,
    pub answers: &'static [Success],
    /// Besides those that any route may answer with.
    pub errors: &'static [ErrorCode],
    /// The form of a 400 that is not that of errors.
    pub failure: Option<&'static str>,
}

pub(super) struct Parameter {
    pub name: &'static str,
    /// `query` or `header`.
    pub place: &'static str,
    pub kind: &'static str,
    pub is_required: bool,
    pub description: &'static str,
}

pub(super) struct Body {
    pub is_required: bool,
    pub description: &'static str,
    pub contents: &'static [Content],
}

/// A media type and the name of a schema.
pub(super) enum Content {
    Json(&'static str),
    List(&'static str),
    Typed(&'static str, &'static str),
    Bytes,
}

/// An answer that is no error.
pub(super) struct Success {
    pub status: u16,
    pub description: &'static str,
    pub content: Option<Content>,
    pub headers: &'static [&'static str],
}

const fn optional(name: &'static str, place: &'static str, kind: &'static str, description: &'static str) -> Parameter {
    Parameter {
        name,
        place,
        kind,
        is_required: false,
        description,
    }
}

const fn done(description: &'static str) -> Success {
    Success {
        status: 204,
        description,
        content: None,
        headers: &[],
    }
}

const fn document(description: &'static str, content: Content, headers: &'static [&'static str]) -> Success {
    Success {
        status: 200,
        description,
        content: Some(content),
        headers,
    }
}

const CREATE_OR_UPDATE: &[Parameter] = &[optional(
    "If-Match",
    "header",
    "string",
    "The etag that is to be replaced, or `*`. Without it the identity is created.",
)];
const VERSION: &[Parameter] = &[optional(
    "If-Match",
    "header",
    "string",
    "The etag that is meant, or `*`. Without it the update is unconditional.",
)];
const WHICH: &[Parameter] = &[Parameter {
    name: "If-Match",
    place: "header",
    kind: "string",
    is_required: true,
    description: "The etag that is meant, or `*`.",
}];
/// Of properties that a message is sent with.
const PROPERTIES: &[Parameter] = &[
    optional(
        "iothub-messageid",
        "header",
        "string",
        "Message id. Application properties go as `iothub-app-{name}`.",
    ),
    optional("iothub-correlationid", "header", "string", "Correlation id."),
    optional("iothub-userid", "header", "string", "User id."),
    optional("iothub-contenttype", "header", "string", "Content type of the body."),
    optional("iothub-contentencoding", "header", "string", "Encoding of the body."),
    optional("iothub-messageschema", "header", "string", "Schema of the body."),
    optional(
        "iothub-creationtimeutc",
        "header",
        "string",
        "When the message was made: ISO 8601 in UTC, with `Z`.",
    ),
];
/// Errors of a body that is read whole.
const UPDATE_ERRORS: &[ErrorCode] = &[
    ErrorCode::FORMAT_ERROR,
    ErrorCode::REQUEST_TIMED_OUT,
    ErrorCode::DEVICE_NOT_FOUND,
    ErrorCode::MODULE_NOT_FOUND,
    ErrorCode::PRECONDITION_FAILED,
    ErrorCode::TOO_LARGE,
    ErrorCode::THROTTLED,
    ErrorCode::THROTTLE_BACKLOG,
];
const LOCK_ERRORS: &[ErrorCode] = &[
    ErrorCode::DEVICE_NOT_FOUND,
    ErrorCode::DEVICE_DISABLED,
    ErrorCode::LOCK_LOST,
];
const THROTTLE_ERRORS: &[ErrorCode] = &[ErrorCode::THROTTLED, ErrorCode::THROTTLE_BACKLOG];
const FOUND_ERRORS: &[ErrorCode] = &[
    ErrorCode::DEVICE_NOT_FOUND,
    ErrorCode::MODULE_NOT_FOUND,
    ErrorCode::THROTTLED,
    ErrorCode::THROTTLE_BACKLOG,
];

/// `None` for what is no route.
pub(super) fn of(route: Route) -> Option<Operation> {
    let plain = Operation {
        summary: "",
        description: "",
        parameters: &[],
        body: None,
        answers: &[],
        errors: &[],
        failure: None,
    };
    Some(match route {
        Route::DeviceEvents => Operation {
            summary: "Send telemetry",
            description: "One message, its properties in headers, or a batch as JSON. Answered once it is durable. Above the rate of the device or hub the answer waits.",
            parameters: PROPERTIES,
            body: Some(Body {
                is_required: false,
                description: "The body of one message; with the batch's content type, all of a batch. At most 256 KiB.",
                contents: &[
                    Content::Bytes,
                    Content::Typed("application/vnd.microsoft.iothub.json", "TelemetryBatch"),
                ],
            }),
            answers: const { &[done("Stored.")] },
            errors: &[
                ErrorCode::REQUEST_TIMED_OUT,
                ErrorCode::QUOTA_EXCEEDED,
                ErrorCode::DEVICE_DISABLED,
                ErrorCode::DEVICE_NOT_FOUND,
                ErrorCode::MODULE_NOT_FOUND,
                ErrorCode::MESSAGE_TOO_LARGE,
                ErrorCode::THROTTLED,
                ErrorCode::THROTTLE_BACKLOG,
                ErrorCode::DEVICE_THROTTLED,
            ],
            ..plain
        },
        Route::DeviceFiles => Operation {
            summary: "Upload a file",
            description: "This hub has no storage for files: always refused.",
            errors: &[
                ErrorCode::NO_UPLOAD_STORAGE,
                ErrorCode::DEVICE_DISABLED,
                ErrorCode::DEVICE_NOT_FOUND,
            ],
            ..plain
        },
        Route::DeviceQuery => Operation {
            summary: "Query devices and modules",
            description: "`SELECT .. FROM devices | devices.modules [WHERE ..] [GROUP BY ..]`: a page of what the twins show at that moment. The `x-ms-continuation` of an answer, sent as a header of the same query, asks for the next page; a page may be short of its items and still not be the last.",
            parameters: const {
                &[
                    optional(
                        "x-ms-max-item-count",
                        "header",
                        "integer",
                        "Items on a page, 1 to 100. Default 100.",
                    ),
                    optional("x-ms-continuation", "header", "string", "Where the page before ended."),
                ]
            },
            body: Some(Body {
                is_required: true,
                description: "The query's text, at most 32 KiB.",
                contents: &[Content::Json("Query")],
            }),
            answers: const {
                &[document(
                    "Twins where all was selected (`x-ms-item-type: twin`), otherwise what was selected (`raw`).",
                    Content::List("QueryItem"),
                    &["x-ms-item-type", "x-ms-continuation"],
                )]
            },
            errors: &[
                ErrorCode::FORMAT_ERROR,
                ErrorCode::REQUEST_TIMED_OUT,
                ErrorCode::TOO_LARGE,
                ErrorCode::THROTTLED,
                ErrorCode::THROTTLE_BACKLOG,
            ],
            ..plain
        },
        Route::CommandReceive => Operation {
            summary: "Take a message to the device",
            description: "The oldest that waits, under a lock of 60 seconds. Its token is the `ETag`.",
            parameters: const {
                &[optional(
                    "iothub-messagelocktimeout",
                    "header",
                    "integer",
                    "Accepted and not looked at.",
                )]
            },
            answers: const {
                &[
                    document(
                        "A message: properties in headers, application properties as `iothub-app-{name}`.",
                        Content::Bytes,
                        &[
                            "ETag",
                            "iothub-sequencenumber",
                            "iothub-deliverycount",
                            "iothub-enqueuedtime",
                            "iothub-expiry",
                            "iothub-messageid",
                            "iothub-correlationid",
                            "iothub-to",
                        ],
                    ),
                    done("None waits."),
                ]
            },
            errors: &[
                ErrorCode::DEVICE_NOT_FOUND,
                ErrorCode::DEVICE_DISABLED,
                ErrorCode::THROTTLED,
                ErrorCode::THROTTLE_BACKLOG,
            ],
            ..plain
        },
        Route::CommandSettle => Operation {
            summary: "Complete or reject a message to the device",
            description: "Ends the message under this lock; its sender gets the feedback it asked for.",
            parameters: const {
                &[optional(
                    "reject",
                    "query",
                    "string",
                    "Present: the message is rejected, whatever the value.",
                )]
            },
            answers: const { &[done("Ended.")] },
            errors: LOCK_ERRORS,
            ..plain
        },
        Route::CommandAbandon => Operation {
            summary: "Abandon a message to the device",
            description: "Gives the lock back; the message comes again, unless it was handed out too often.",
            answers: const { &[done("Given back.")] },
            errors: LOCK_ERRORS,
            ..plain
        },
        Route::DeviceGet => Operation {
            summary: "Read a device identity",
            description: "With its keys.",
            answers: const { &[document("The identity.", Content::Json("Device"), &["ETag"])] },
            errors: &[
                ErrorCode::DEVICE_NOT_FOUND,
                ErrorCode::THROTTLED,
                ErrorCode::THROTTLE_BACKLOG,
            ],
            ..plain
        },
        Route::DevicePut => Operation {
            summary: "Create or replace a device identity",
            description: "Keys that are left out are generated. Sessions that the change locks out have ended when it is answered.",
            parameters: CREATE_OR_UPDATE,
            body: Some(Body {
                is_required: true,
                description: "The identity; `deviceId` is that of the path.",
                contents: &[Content::Json("Device")],
            }),
            answers: const {
                &[document(
                    "The identity as it is stored.",
                    Content::Json("Device"),
                    &["ETag"],
                )]
            },
            errors: &[
                ErrorCode::FORMAT_ERROR,
                ErrorCode::REQUEST_TIMED_OUT,
                ErrorCode::DEVICE_NOT_FOUND,
                ErrorCode::DEVICE_ALREADY_EXISTS,
                ErrorCode::PRECONDITION_FAILED,
                ErrorCode::TOO_LARGE,
                ErrorCode::THROTTLED,
                ErrorCode::THROTTLE_BACKLOG,
            ],
            ..plain
        },
        Route::DeviceDelete => Operation {
            summary: "Delete a device identity",
            description: "With its modules, twins and queues. Its sessions have ended when it is answered.",
            parameters: WHICH,
            answers: const { &[done("Deleted.")] },
            errors: &[
                ErrorCode::DEVICE_NOT_FOUND,
                ErrorCode::PRECONDITION_FAILED,
                ErrorCode::THROTTLED,
                ErrorCode::THROTTLE_BACKLOG,
            ],
            ..plain
        },
        Route::DeviceList => Operation {
            summary: "List device identities",
            description: "There is no next page.",
            parameters: const {
                &[optional(
                    "top",
                    "query",
                    "integer",
                    "How many, 1 to 1000. Absent or out of range: 1000.",
                )]
            },
            answers: const { &[document("Identities.", Content::List("Device"), &[])] },
            errors: THROTTLE_ERRORS,
            ..plain
        },
        Route::DeviceBulk => Operation {
            summary: "Change many identities",
            description: "Entries are independent: each that is valid takes effect, whatever becomes of the others. Each counts for the rate of registry operations.",
            body: Some(Body {
                is_required: true,
                description: "At most 100 entries.",
                contents: &[Content::List("BulkEntry")],
            }),
            answers: const {
                &[document(
                    "At least one entry took effect.",
                    Content::Json("BulkResult"),
                    &[],
                )]
            },
            errors: &[
                ErrorCode::FORMAT_ERROR,
                ErrorCode::BULK_REGISTRY_FAILURE,
                ErrorCode::REQUEST_TIMED_OUT,
                ErrorCode::TOO_LARGE,
                ErrorCode::TOO_MANY_DEVICES,
                ErrorCode::THROTTLED,
                ErrorCode::THROTTLE_BACKLOG,
            ],
            failure: Some("BulkResult"),
            ..plain
        },
        Route::KeysRegenerate => Operation {
            summary: "Make new keys for many identities",
            description: "Sessions under the former keys have ended when it is answered.",
            body: Some(Body {
                is_required: true,
                description: "At most 100 identities.",
                contents: &[Content::Json("RegenerateKeys")],
            }),
            answers: const {
                &[
                    document("All have new keys.", Content::Json("RegeneratedKeys"), &[]),
                    Success {
                        status: 207,
                        description: "Some have new keys.",
                        content: Some(Content::Json("RegeneratedKeys")),
                        headers: &[],
                    },
                ]
            },
            errors: &[
                ErrorCode::FORMAT_ERROR,
                ErrorCode::REQUEST_TIMED_OUT,
                ErrorCode::INVALID_POLICY_KEY,
                ErrorCode::BULK_REGENERATE_FAILURE,
                ErrorCode::TOO_LARGE,
                ErrorCode::TOO_MANY_DEVICES,
                ErrorCode::THROTTLED,
                ErrorCode::THROTTLE_BACKLOG,
            ],
            failure: Some("RegeneratedKeys"),
            ..plain
        },
        Route::ModuleGet => Operation {
            summary: "Read a module identity",
            description: "With its keys.",
            answers: const { &[document("The identity.", Content::Json("Module"), &["ETag"])] },
            errors: FOUND_ERRORS,
            ..plain
        },
        Route::ModulePut => Operation {
            summary: "Create or replace a module identity",
            description: "As of a device.",
            parameters: CREATE_OR_UPDATE,
            body: Some(Body {
                is_required: true,
                description: "The identity; `deviceId` and `moduleId` are those of the path.",
                contents: &[Content::Json("Module")],
            }),
            answers: const {
                &[
                    document("The identity as it was replaced.", Content::Json("Module"), &["ETag"]),
                    Success {
                        status: 201,
                        description: "The identity as it was created.",
                        content: Some(Content::Json("Module")),
                        headers: &["ETag"],
                    },
                ]
            },
            errors: &[
                ErrorCode::FORMAT_ERROR,
                ErrorCode::REQUEST_TIMED_OUT,
                ErrorCode::DEVICE_NOT_FOUND,
                ErrorCode::MODULE_NOT_FOUND,
                ErrorCode::MODULE_ALREADY_EXISTS,
                ErrorCode::PRECONDITION_FAILED,
                ErrorCode::TOO_LARGE,
                ErrorCode::TOO_MANY_MODULES,
                ErrorCode::THROTTLED,
                ErrorCode::THROTTLE_BACKLOG,
            ],
            ..plain
        },
        Route::ModuleDelete => Operation {
            summary: "Delete a module identity",
            description: "With its twin and queue.",
            parameters: WHICH,
            answers: const { &[done("Deleted.")] },
            errors: &[
                ErrorCode::DEVICE_NOT_FOUND,
                ErrorCode::MODULE_NOT_FOUND,
                ErrorCode::PRECONDITION_FAILED,
                ErrorCode::THROTTLED,
                ErrorCode::THROTTLE_BACKLOG,
            ],
            ..plain
        },
        Route::ModuleList => Operation {
            summary: "List the modules of a device",
            description: "All of them.",
            answers: const { &[document("Identities.", Content::List("Module"), &[])] },
            errors: &[
                ErrorCode::DEVICE_NOT_FOUND,
                ErrorCode::THROTTLED,
                ErrorCode::THROTTLE_BACKLOG,
            ],
            ..plain
        },
        Route::StatisticsDevices => Operation {
            summary: "Count the devices",
            description: "Of the whole registry.",
            answers: const { &[document("Figures.", Content::Json("RegistryStatistics"), &[])] },
            errors: THROTTLE_ERRORS,
            ..plain
        },
        Route::StatisticsService => Operation {
            summary: "Count the connected devices",
            description: "Those with a session now.",
            answers: const { &[document("Figures.", Content::Json("ServiceStatistics"), &[])] },
            ..plain
        },
        Route::TwinGet => Operation {
            summary: "Read a twin",
            description: "Tags, desired and reported properties, with what the registry knows of the identity.",
            answers: const { &[document("The twin.", Content::Json("Twin"), &["ETag"])] },
            errors: FOUND_ERRORS,
            ..plain
        },
        Route::TwinPatch => Operation {
            summary: "Update a twin in part",
            description: "Members that are null are removed, those left out stay.",
            parameters: VERSION,
            body: Some(Body {
                is_required: true,
                description: "What changes.",
                contents: &[Content::Json("TwinUpdate")],
            }),
            answers: const { &[document("The whole twin.", Content::Json("Twin"), &["ETag"])] },
            errors: UPDATE_ERRORS,
            ..plain
        },
        Route::TwinPut => Operation {
            summary: "Replace tags and desired properties",
            description: "Of each section that is given, all of it.",
            parameters: VERSION,
            body: Some(Body {
                is_required: true,
                description: "The new sections.",
                contents: &[Content::Json("TwinUpdate")],
            }),
            answers: const { &[document("The whole twin.", Content::Json("Twin"), &["ETag"])] },
            errors: UPDATE_ERRORS,
            ..plain
        },
        Route::MethodInvoke => Operation {
            summary: "Call a direct method",
            description: "Waits for the device to connect and to answer, for no longer than the request says. Nothing is stored.",
            body: Some(Body {
                is_required: true,
                description: "The method and its payload of at most 128 KiB.",
                contents: &[Content::Json("MethodRequest")],
            }),
            answers: const {
                &[document(
                    "What the device answered.",
                    Content::Json("MethodResponse"),
                    &[],
                )]
            },
            errors: &[
                ErrorCode::FORMAT_ERROR,
                ErrorCode::REQUEST_TIMED_OUT,
                ErrorCode::METHODS_IN_FLIGHT,
                ErrorCode::DEVICE_NOT_FOUND,
                ErrorCode::MODULE_NOT_FOUND,
                ErrorCode::DEVICE_NOT_ONLINE,
                ErrorCode::TOO_LARGE,
                ErrorCode::MESSAGE_TOO_LARGE,
                ErrorCode::THROTTLED,
                ErrorCode::THROTTLE_BACKLOG,
                ErrorCode::BAD_GATEWAY,
                ErrorCode::GATEWAY_TIMEOUT,
            ],
            ..plain
        },
        Route::CommandPurge => Operation {
            summary: "Remove all messages to a device",
            description: "Locked ones too. Senders get the feedback they asked for.",
            answers: const { &[document("How many there were.", Content::Json("Purged"), &[])] },
            errors: &[ErrorCode::DEVICE_NOT_FOUND],
            ..plain
        },
        Route::FeedbackReceive => Operation {
            summary: "Take feedback",
            description: "The next batch of what became of messages to devices, under a lock. Its token is the `ETag`.",
            answers: const {
                &[
                    document("At most 64 records.", Content::List("FeedbackRecord"), &["ETag"]),
                    done("None waits."),
                ]
            },
            ..plain
        },
        Route::FeedbackComplete => Operation {
            summary: "Complete a batch of feedback",
            description: "It does not come again.",
            answers: const { &[done("Completed.")] },
            errors: &[ErrorCode::LOCK_LOST],
            ..plain
        },
        Route::FeedbackAbandon => Operation {
            summary: "Abandon a batch of feedback",
            description: "It comes again, unless it was handed out too often.",
            answers: const { &[done("Given back.")] },
            errors: &[ErrorCode::LOCK_LOST],
            ..plain
        },
        Route::None => return None,
    })
}
