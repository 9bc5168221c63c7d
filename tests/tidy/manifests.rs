//! The Kubernetes manifests follow from the configuration that stands beside them. What is checked here needs no tools;
//! `deploy/kubernetes/check` does more, on what kustomize builds.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use forebay::config::memory::{Memory, Usage};
use forebay::config::{Config, Sources, load};

/// Folder of a configuration, and the file that says what its pod may use.
const HUBS: [(&str, &str); 3] = [
    ("base", "base/statefulset.yaml"),
    ("overlays/single", "base/statefulset.yaml"),
    ("overlays/production", "overlays/production/statefulset.yaml"),
];

/// From SIGKILL's point of view: what follows a drain must fit in.
const AFTER_DRAIN: Duration = Duration::from_secs(10);

fn path(name: &str) -> PathBuf {
    super::root().join("deploy/kubernetes").join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn config(folder: &str) -> Config {
    let sources = Sources {
        file: Some(path(&format!("{folder}/forebay.toml"))),
        // The secret is in the pod, not here.
        flags: vec!["identity.owner_key_file=".to_owned()],
        ..Sources::default()
    };
    load(&sources).unwrap_or_else(|error| panic!("{folder}: {error}"))
}

/// The values of all lines `key: value` of a manifest, comments and list marks aside.
fn values<'a>(manifest: &'a str, key: &str) -> Vec<&'a str> {
    let lines = manifest.lines().map(|line| line.trim_start().trim_start_matches("- "));
    lines
        .filter_map(|line| Some(line.strip_prefix(key)?.strip_prefix(": ")?.trim()))
        .collect()
}

fn bytes(quantity: &str) -> u64 {
    let (number, unit) = quantity.split_at(quantity.len() - 2);
    let shift = match unit {
        "Mi" => 20,
        "Gi" => 30,
        unit => panic!("{unit} of {quantity}"),
    };
    number.parse::<u64>().expect("a number") << shift
}

#[test]
fn pods_have_the_memory_that_the_formula_says() {
    for (folder, manifest) in HUBS {
        let memory = Memory::of(&config(folder), &Usage::default());
        let manifest = text(manifest);
        let [request, limit] = values(&manifest, "memory")[..] else {
            panic!("{folder}: a request and a limit");
        };
        assert!(bytes(request) >= memory.request(), "{folder}: {request} for\n{memory}");
        assert!(bytes(limit) >= memory.limit(), "{folder}: {limit} for\n{memory}");
    }
}

#[test]
fn shards_do_not_follow_the_node() {
    for (folder, _) in HUBS {
        assert_ne!(config(folder).process.shards, 0, "{folder}");
    }
}

#[test]
fn a_pod_is_given_the_time_to_drain() {
    for (folder, manifest) in HUBS {
        let manifest = text(manifest);
        let grace = values(&manifest, "terminationGracePeriodSeconds")[0];
        let grace = Duration::from_secs(grace.parse().expect("seconds"));
        let drain = config(folder).process.drain_timeout;
        assert!(
            grace >= drain + AFTER_DRAIN,
            "{folder}: {grace:?} for a drain of {drain:?}"
        );
    }
}

#[test]
fn ports_of_the_pod_are_those_of_the_configuration() {
    let manifest = text("base/statefulset.yaml");
    let pod: Vec<u16> = values(&manifest, "containerPort")
        .iter()
        .map(|port| port.parse().expect("a port"))
        .collect();
    for (folder, _) in HUBS {
        let config = config(folder);
        let listens = [
            config.quic.listen,
            config.mqtt.listen,
            config.https.listen,
            config.amqp.listen,
            config.ops.listen,
        ];
        let configured = listens.map(|listen| listen.port());
        assert_eq!(pod, configured, "{folder}");
        assert!(listens.iter().all(|listen| listen.ip().is_unspecified()), "{folder}");
    }
}

#[test]
fn the_image_is_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    for (manifest, image) in [
        ("base/statefulset.yaml", format!("forebay:{version}")),
        ("overlays/load-test/job.yaml", format!("forebay-bench:{version}")),
    ] {
        assert_eq!(values(&text(manifest), "image"), [image], "{manifest}");
    }
    assert_eq!(
        values(&text("overlays/production/kustomization.yaml"), "newTag"),
        [version]
    );
}
