//! Documents and ids, as JSON Schema.

use serde_json::{Value, json};

pub(super) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// Of an id in a path.
pub(super) fn id(name: &str) -> Value {
    match name {
        "deviceId" | "moduleId" => json!({ "type": "string", "minLength": 1, "maxLength": 128 }),
        _ => json!({ "type": "string", "minLength": 1 }),
    }
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn perhaps_text() -> Value {
    json!({ "type": ["string", "null"] })
}

fn time() -> Value {
    json!({ "type": "string", "description": "ISO 8601 in UTC; `0001-01-01T00:00:00` is never." })
}

fn count() -> Value {
    json!({ "type": "integer", "minimum": 0 })
}

fn members() -> Value {
    json!({ "type": "object", "additionalProperties": true })
}

/// An object; members without a value that matters are left out by clients.
fn object(required: &[&str], properties: Value) -> Value {
    json!({ "type": "object", "required": required, "properties": properties })
}

fn status() -> Value {
    json!({ "enum": ["enabled", "disabled"] })
}

fn connection_state() -> Value {
    json!({ "enum": ["Connected", "Disconnected"], "readOnly": true })
}

fn entry_errors() -> Value {
    let error = json!({
        "deviceId": text(), "moduleId": text(), "operation": text(),
        "errorCode": { "type": "string", "description": "The error's name." },
        "errorStatus": text(),
    });
    json!({ "type": "array", "items": object(&["deviceId", "errorCode", "errorStatus"], error) })
}

pub(super) fn all() -> Value {
    let desired = json!({ "desired": members() });
    json!({
        "Error": object(&["Message"], json!({
            "Message": {
                "type": "string",
                "description": "`ErrorCode:{name};{text}`; of newer errors an object as text, with `errorCode`, `message`, `trackingId` and `timestampUtc`.",
            },
            "ExceptionMessage": { "type": "string", "description": "Tracking id and time." },
        })),
        "Authentication": object(&[], json!({
            "type": { "enum": ["sas", "selfSigned", "certificateAuthority", "none"] },
            "symmetricKey": object(&[], json!({ "primaryKey": perhaps_text(), "secondaryKey": perhaps_text() })),
            "x509Thumbprint": object(&[], json!({
                "primaryThumbprint": perhaps_text(), "secondaryThumbprint": perhaps_text(),
            })),
        })),
        "Capabilities": object(&[], json!({ "iotEdge": { "type": "boolean" } })),
        "Device": object(&["deviceId"], json!({
            "deviceId": id("deviceId"),
            "generationId": { "type": "string", "readOnly": true },
            "etag": text(),
            "connectionState": connection_state(),
            "connectionStateUpdatedTime": time(),
            "status": status(),
            "statusReason": { "type": ["string", "null"], "maxLength": 128 },
            "statusUpdatedTime": time(),
            "lastActivityTime": time(),
            "cloudToDeviceMessageCount": count(),
            "authentication": reference("Authentication"),
            "capabilities": reference("Capabilities"),
            "deviceScope": text(),
            "parentScopes": { "type": "array", "items": text() },
            "attributes": members(),
        })),
        "Module": object(&["deviceId", "moduleId"], json!({
            "deviceId": id("deviceId"),
            "moduleId": id("moduleId"),
            "managedBy": perhaps_text(),
            "generationId": { "type": "string", "readOnly": true },
            "etag": text(),
            "connectionState": connection_state(),
            "connectionStateUpdatedTime": time(),
            "lastActivityTime": time(),
            "cloudToDeviceMessageCount": count(),
            "authentication": reference("Authentication"),
            "attributes": members(),
        })),
        "BulkEntry": object(&["id"], json!({
            "id": id("deviceId"),
            "moduleId": perhaps_text(),
            "eTag": perhaps_text(),
            "importMode": { "enum": [
                "create", "update", "updateIfMatchETag", "delete", "deleteIfMatchETag", "updateTwin",
                "updateTwinIfMatchETag",
            ], "default": "create" },
            "status": status(),
            "statusReason": perhaps_text(),
            "authentication": reference("Authentication"),
            "capabilities": reference("Capabilities"),
            "deviceScope": perhaps_text(),
            "parentScopes": { "type": "array", "items": text() },
            "twinETag": perhaps_text(),
            "tags": members(),
            "properties": object(&[], desired.clone()),
        })),
        "BulkResult": object(&["isSuccessful", "errors", "warnings"], json!({
            "isSuccessful": { "type": "boolean" },
            "errors": entry_errors(),
            "warnings": { "type": "array", "maxItems": 0 },
        })),
        "RegenerateKeys": object(&["policyKey", "devices"], json!({
            "policyKey": { "enum": ["primaryKey", "secondaryKey", "both"] },
            "devices": {
                "type": "array", "maxItems": 100,
                "items": object(&["id"], json!({ "id": id("deviceId"), "moduleId": perhaps_text() })),
            },
        })),
        "RegeneratedKeys": object(&["policyKey", "rotatedKeys", "errors"], json!({
            "policyKey": text(),
            "rotatedKeys": { "type": "array", "items": object(&["id"], json!({
                "id": text(), "moduleId": text(), "primaryKey": perhaps_text(), "secondaryKey": perhaps_text(),
            })) },
            "errors": { "type": "array", "items": object(&["id", "errorCode", "errorStatus"], json!({
                "id": text(), "moduleId": text(), "errorCode": text(), "errorStatus": text(),
            })) },
        })),
        "RegistryStatistics": object(
            &["totalDeviceCount", "enabledDeviceCount", "disabledDeviceCount"],
            json!({ "totalDeviceCount": count(), "enabledDeviceCount": count(), "disabledDeviceCount": count() }),
        ),
        "ServiceStatistics": object(&["connectedDeviceCount"], json!({ "connectedDeviceCount": count() })),
        "Twin": object(&["deviceId", "etag", "version", "tags", "properties"], json!({
            "deviceId": id("deviceId"),
            "moduleId": id("moduleId"),
            "etag": text(),
            "deviceEtag": text(),
            "status": status(),
            "statusReason": perhaps_text(),
            "statusUpdateTime": time(),
            "connectionState": connection_state(),
            "lastActivityTime": time(),
            "cloudToDeviceMessageCount": count(),
            "authenticationType": { "enum": ["sas", "selfSigned", "certificateAuthority", "none"] },
            "x509Thumbprint": members(),
            "modelId": text(),
            "version": count(),
            "tags": members(),
            "properties": object(&["desired", "reported"], json!({ "desired": members(), "reported": members() })),
            "capabilities": reference("Capabilities"),
            "deviceScope": text(),
            "parentScopes": { "type": "array", "items": text() },
        })),
        "TwinUpdate": object(&[], json!({ "tags": members(), "properties": object(&[], desired) })),
        "Query": object(&["query"], json!({ "query": text() })),
        "QueryItem": { "type": "object", "description": "A twin, or the selected members by their names." },
        "MethodRequest": object(&["methodName"], json!({
            "methodName": { "type": "string", "minLength": 1, "maxLength": 100 },
            "payload": { "description": "Any JSON." },
            "responseTimeoutInSeconds": { "type": "integer", "minimum": 5, "maximum": 300 },
            "connectTimeoutInSeconds": { "type": "integer", "minimum": 0, "maximum": 300 },
        })),
        "MethodResponse": object(&["status", "payload"], json!({
            "status": { "type": "integer" }, "payload": { "description": "Any JSON." },
        })),
        "Purged": object(&["deviceId", "totalMessagesPurged"], json!({
            "deviceId": text(), "moduleId": perhaps_text(), "totalMessagesPurged": count(),
        })),
        "FeedbackRecord": object(
            &["originalMessageId", "enqueuedTimeUtc", "statusCode", "description", "deviceId", "deviceGenerationId"],
            json!({
                "originalMessageId": text(),
                "enqueuedTimeUtc": time(),
                "statusCode": { "enum": ["Success", "Expired", "DeliveryCountExceeded", "Rejected", "Purged"] },
                "description": text(),
                "deviceId": text(),
                "deviceGenerationId": text(),
            }),
        ),
        "TelemetryBatch": {
            "type": "array",
            "items": object(&["body"], json!({
                "body": text(),
                "base64Encoded": { "type": "boolean", "default": true, "description": "false: `body` is the text itself." },
                "properties": {
                    "type": "object", "additionalProperties": text(),
                    "description": "Names as those of the headers of one message.",
                },
            })),
        },
    })
}
