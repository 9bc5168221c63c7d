//! The routes as an OpenAPI 3.1 document, made from the tables that requests are looked up in.
//!
//! What a route takes and answers is said once for each [`Route`] (`operation`); the match there is exhaustive, so that
//! no route can be added without its description.

mod operation;
mod schema;

use serde_json::{Map, Value, json};

use super::route::{Entry, Route};
use crate::hub::{ErrorCode, Permissions};
use operation::{Body, Content, Operation};

/// Routes that belong together.
#[derive(Clone, Copy)]
pub struct Section {
    pub name: &'static str,
    pub description: &'static str,
    pub entries: &'static [Entry],
    /// What the credential of a request must allow.
    pub permission: fn(Route) -> Permissions,
    /// Whether a client certificate may stand for the token.
    pub takes_certificates: bool,
}

/// Errors that any route may answer with.
const COMMON_ERRORS: [ErrorCode; 7] = [
    ErrorCode::BAD_REQUEST,
    ErrorCode::INVALID_PROTOCOL_VERSION,
    ErrorCode::ARGUMENT_INVALID,
    ErrorCode::UNAUTHORIZED_ACCESS,
    ErrorCode::UNAUTHORIZED,
    ErrorCode::SERVER_ERROR,
    ErrorCode::SERVER_BUSY,
];

/// The document of these sections.
pub fn document(sections: &[Section]) -> Value {
    let mut paths = Map::new();
    let mut tags = Vec::new();
    for section in sections {
        tags.push(json!({ "name": section.name, "description": section.description }));
        for entry in section.entries {
            let (method, path, route) = *entry;
            let Some(operation) = operation::of(route) else {
                continue;
            };
            let (path, ids) = named(path);
            let described = describe(section, route, &path, &ids, &operation);
            let item = paths.entry(path).or_insert_with(|| json!({}));
            item[method.to_ascii_lowercase()] = described;
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Forebay",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            "description": "The HTTPS routes of an IoT hub, as Azure IoT device and service SDKs call them. Literal words of paths have no case; ids in paths are percent-encoded.",
        },
        "servers": [{
            "url": "https://{host}",
            "variables": { "host": { "default": "localhost", "description": "A host name of the hub." } },
        }],
        "tags": tags,
        "paths": paths,
        "components": {
            "securitySchemes": {
                "sas": {
                    "type": "apiKey", "in": "header", "name": "Authorization",
                    "description": "`SharedAccessSignature sr=..&sig=..&se=..[&skn=..]`: signed with a device's key, or with a policy's.",
                },
                "certificate": {
                    "type": "mutualTLS",
                    "description": "The device's certificate, by thumbprint or by registered authority. Counts where there is no Authorization header.",
                },
            },
            "parameters": {
                "apiVersion": {
                    "name": "api-version", "in": "query", "required": true, "schema": { "type": "string", "minLength": 1 },
                    "description": "Any version is served as the newest.", "example": "2021-04-12",
                },
            },
            "schemas": schema::all(),
        },
    })
}

/// A table's path with a name for each id, and the names.
fn named(path: &str) -> (String, Vec<&'static str>) {
    let mut ids = Vec::new();
    let mut before = "";
    let words = path.split('/').map(|word| {
        let word = match (word, before) {
            ("{}", "modules") => "moduleId",
            ("{}", "devices" | "twins") => "deviceId",
            ("{}", "devicebound" | "feedback") => "lockToken",
            ("{}", "notifications") => "correlationId",
            ("{}", _) => "id",
            (word, _) => {
                before = word;
                return word.to_owned();
            }
        };
        ids.push(word);
        format!("{{{word}}}")
    });
    let path = words.collect::<Vec<_>>().join("/");
    (path, ids)
}

fn describe(section: &Section, route: Route, path: &str, ids: &[&str], operation: &Operation) -> Value {
    let mut parameters: Vec<Value> = ids
        .iter()
        .map(|id| json!({ "name": id, "in": "path", "required": true, "schema": schema::id(id) }))
        .collect();
    parameters.push(json!({ "$ref": "#/components/parameters/apiVersion" }));
    for parameter in operation.parameters {
        parameters.push(json!({
            "name": parameter.name, "in": parameter.place, "required": parameter.is_required,
            "schema": { "type": parameter.kind }, "description": parameter.description,
        }));
    }
    let mut security = vec![json!({ "sas": [] })];
    if section.takes_certificates {
        security.push(json!({ "certificate": [] }));
    }
    let mut described = json!({
        "tags": [section.name],
        "operationId": operation_id(route, path),
        "summary": operation.summary,
        "description": format!("{} Permission: {}.", operation.description, (section.permission)(route)),
        "parameters": parameters,
        "security": security,
        "responses": responses(operation),
    });
    if let Some(body) = &operation.body {
        described["requestBody"] = request_body(body);
    }
    described
}

/// One route may have several paths.
fn operation_id(route: Route, path: &str) -> String {
    let detail = if path.contains("{moduleId}") && !route.label().starts_with("module") {
        "_of_module"
    } else if path.ends_with("/{correlationId}") {
        "_by_id"
    } else if path.ends_with("/notifications") {
        "_notify"
    } else {
        ""
    };
    format!("{}{detail}", route.label())
}

fn request_body(body: &Body) -> Value {
    let mut content = Map::new();
    for one in body.contents {
        add_content(&mut content, one);
    }
    json!({ "required": body.is_required, "description": body.description, "content": content })
}

fn add_content(contents: &mut Map<String, Value>, content: &Content) {
    let (media_type, schema) = match content {
        Content::Json(schema) => ("application/json", schema::reference(schema)),
        Content::List(schema) => (
            "application/json",
            json!({ "type": "array", "items": schema::reference(schema) }),
        ),
        Content::Typed(media_type, schema) => (*media_type, schema::reference(schema)),
        Content::Bytes => ("application/octet-stream", json!({})),
    };
    contents.insert(media_type.to_owned(), json!({ "schema": schema }));
}

fn responses(operation: &Operation) -> Value {
    let mut responses = Map::new();
    for answer in operation.answers {
        let mut response = json!({ "description": answer.description });
        if let Some(content) = &answer.content {
            let mut contents = Map::new();
            add_content(&mut contents, content);
            response["content"] = contents.into();
        }
        let header = |name: &&str| ((*name).to_owned(), json!({ "schema": { "type": "string" } }));
        let headers: Map<String, Value> = answer.headers.iter().map(header).collect();
        if !headers.is_empty() {
            response["headers"] = headers.into();
        }
        responses.insert(answer.status.to_string(), response);
    }
    let mut errors: Vec<ErrorCode> = COMMON_ERRORS.iter().chain(operation.errors).copied().collect();
    errors.sort_unstable_by_key(|code| code.number);
    errors.dedup();
    for of_status in errors.chunk_by(|a, b| a.http_status() == b.http_status()) {
        let status = of_status[0].http_status();
        let names: Vec<_> = of_status
            .iter()
            .map(|code| format!("{} {}", code.number, code.name))
            .collect();
        let mut headers = json!({
            "iothub-errorcode": {
                "description": "The error's name.",
                "schema": { "enum": of_status.iter().map(|code| code.name).collect::<Vec<_>>() },
            },
            "iothub-servicetrackingid": { "schema": { "type": "string" } },
        });
        if matches!(status, 429 | 503) {
            headers["Retry-After"] = json!({
                "description": "Seconds after which it is worth coming back.", "schema": { "type": "integer" },
            });
        }
        // A bulk operation of which nothing succeeded has two forms of 400: what became of each entry, and the usual one.
        let mut schema = schema::reference("Error");
        if let Some(own) = operation.failure.filter(|_| status == 400) {
            schema = json!({ "oneOf": [schema::reference(own), schema] });
        }
        responses.insert(
            status.to_string(),
            json!({
                "description": names.join(", "),
                "headers": headers,
                "content": { "application/json": { "schema": schema } },
            }),
        );
    }
    responses.into()
}
