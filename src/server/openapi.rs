//! The document of all routes, for the operations port.

use serde_json::Value;

use crate::http::openapi::{Section, document};
use crate::service::rest;
use crate::session::http as devices;

const SECTIONS: [Section; 2] = [
    Section {
        name: "devices",
        description: "What devices and modules call.",
        entries: devices::ROUTES,
        permission: devices::permission,
        takes_certificates: true,
    },
    Section {
        name: "services",
        description: "What services call.",
        entries: rest::ROUTES,
        permission: rest::permission,
        takes_certificates: false,
    },
];

pub(super) fn all_routes() -> Value {
    document(&SECTIONS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::http::Route;

    /// Every object of the document, with the way to it.
    fn walk(value: &Value, way: &str, visit: &mut impl FnMut(&str, &Value)) {
        visit(way, value);
        match value {
            Value::Object(members) => members
                .iter()
                .for_each(|(key, value)| walk(value, &format!("{way}/{key}"), visit)),
            Value::Array(items) => items.iter().for_each(|item| walk(item, &format!("{way}/-"), visit)),
            _ => {}
        }
    }

    fn operations(document: &Value) -> Vec<(String, String, Value)> {
        let mut found = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                found.push((method.clone(), path.clone(), operation.clone()));
            }
        }
        found
    }

    #[test]
    fn every_route_of_the_tables_is_told() {
        let document = all_routes();
        let told: BTreeSet<(String, String)> = operations(&document)
            .into_iter()
            .map(|(method, path, _)| {
                let words = path
                    .split('/')
                    .map(|word| if word.starts_with('{') { "{}" } else { word });
                (method.to_uppercase(), words.collect::<Vec<_>>().join("/"))
            })
            .collect();
        let tables = SECTIONS.iter().flat_map(|section| section.entries);
        let routed: BTreeSet<(String, String)> = tables
            .clone()
            .map(|(method, path, _)| ((*method).into(), (*path).into()))
            .collect();
        assert_eq!(told, routed);
        let routes: BTreeSet<&str> = tables.map(|(_, _, route)| route.label()).collect();
        let all: BTreeSet<&str> = Route::ALL
            .iter()
            .filter(|route| **route != Route::None)
            .map(|route| route.label())
            .collect();
        assert_eq!(routes, all, "a route that no table has cannot be asked for");
    }

    #[test]
    fn references_resolve_and_all_that_is_defined_is_used() {
        let document = all_routes();
        let mut used = BTreeSet::new();
        walk(&document, "", &mut |way, value| {
            if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{way} points to {reference}");
                used.insert(pointer.to_owned());
            }
        });
        for kind in ["schemas", "parameters"] {
            for name in document["components"][kind].as_object().unwrap().keys() {
                assert!(
                    used.contains(&format!("/components/{kind}/{name}")),
                    "nobody uses {kind} {name}"
                );
            }
        }
    }

    // OpenAPI 3.1.0 s4.8.8 to s4.8.17, as far as the document uses them.
    #[test]
    fn operations_follow_the_rules() {
        let document = all_routes();
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
        let mut ids = BTreeSet::new();
        for (method, path, operation) in operations(&document) {
            let about = format!("{method} {path}");
            assert!(["get", "put", "post", "delete", "patch"].contains(&&*method), "{about}");
            let id = operation["operationId"].as_str().unwrap().to_owned();
            assert!(ids.insert(id.clone()), "{about}: {id} is another operation");
            for text in ["summary", "description"] {
                assert!(operation[text].as_str().unwrap().len() > 5, "{about}: {text}");
            }
            let mut declared: Vec<(&str, &str)> = Vec::new();
            let mut in_path = BTreeSet::new();
            for parameter in operation["parameters"].as_array().unwrap() {
                let Some(name) = parameter["name"].as_str() else {
                    continue;
                };
                let place = parameter["in"].as_str().unwrap();
                assert!(!declared.contains(&(name, place)), "{about}: {name} twice");
                declared.push((name, place));
                assert!(parameter["schema"]["type"].is_string(), "{about}: {name}");
                match place {
                    "path" => {
                        assert_eq!(parameter["required"], true, "{about}: {name}");
                        in_path.insert(format!("{{{name}}}"));
                    }
                    "query" | "header" => assert!(
                        !parameter["description"].as_str().unwrap().is_empty(),
                        "{about}: {name}"
                    ),
                    other => panic!("{about}: {name} in {other}"),
                }
            }
            let wanted: BTreeSet<String> = path
                .split('/')
                .filter(|word| word.starts_with('{'))
                .map(Into::into)
                .collect();
            assert_eq!(in_path, wanted, "{about}: ids of the path");
            for requirement in operation["security"].as_array().unwrap() {
                for scheme in requirement.as_object().unwrap().keys() {
                    assert!(
                        document["components"]["securitySchemes"][scheme].is_object(),
                        "{about}: {scheme}"
                    );
                }
            }
            let responses = operation["responses"].as_object().unwrap();
            let is_refusing_all = id.starts_with("device_files");
            assert!(
                is_refusing_all || responses.keys().any(|status| status.starts_with('2')),
                "{about}: no success"
            );
            for (status, response) in responses {
                assert!(
                    (200..600).contains(&status.parse::<u16>().unwrap()),
                    "{about}: {status}"
                );
                assert!(
                    !response["description"].as_str().unwrap().is_empty(),
                    "{about}: {status}"
                );
                assert_eq!(
                    status == "204",
                    response["content"].is_null(),
                    "{about}: {status} and its body"
                );
            }
            assert!(responses.contains_key("401"), "{about}");
        }
        assert!(ids.len() > 25);
    }
}
