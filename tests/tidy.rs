//! Keeps what no compiler checks: the module map, where `unsafe` stands, what files look like, and that everything
//! outside the code names only what exists.

#[path = "tidy/manifests.rs"]
mod manifests;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use forebay::metrics::series::{self, Kind};

/// Who may import what, as prefixes of paths below `crate::`. A module may always import itself. The reasons stand in
/// the crate's docs; a line here that is longer than one word is an exception, and says so there.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("net", &[]),
    ("proto", &[]),
    ("wire", &["model"]),
    ("log", &["model"]),
    ("state", &[]),
    ("hub", &["model", "state"]),
    ("shard", &["hub", "log", "model", "state", "wire"]),
    ("http", &["hub", "model", "net"]),
    ("amqp", &["hub", "model", "net", "proto"]),
    (
        "session",
        &[
            "http",
            "amqp",
            "net",
            "proto",
            "wire",
            "shard",
            "hub",
            "model",
            // Cursors serve slices of the log: the readers' side only, never `Appender` or `Log`.
            "log::Chunk",
            "log::Cursor",
            "log::DiskStorage",
            "log::PartitionView",
            "log::ReadError",
            "log::SeekError",
            "log::Start",
        ],
    ),
    // The router needs the kind of disk it stands on.
    (
        "service",
        &[
            "http",
            "amqp",
            "proto",
            "wire",
            "shard",
            "hub",
            "model",
            // As for sessions.
            "log::Cursor",
            "log::DiskStorage",
            "log::PartitionView",
            "log::ReadError",
            "log::SeekError",
            "log::Start",
            "log::record",
        ],
    ),
    (
        "client",
        &["wire", "model", "hub::sas", "hub::connection_string", "log::record"],
    ),
    (
        "metrics",
        &[
            "model",
            "shard::observer",
            "shard::keeper",
            "shard::syncer",
            "http::observer",
            "http::route",
            "http::websocket",
            "amqp::observer",
            "service::console::observer",
            "service::eventhubs::observer",
            "proto::amqp::error",
            "hub::auth::AuthError",
            "hub::throttle",
            "session::amqp::observer",
            "session::mqtt::observer",
            "session::quic::observer",
            "log::SyncError",
            "net::admission",
            "wire::close",
        ],
    ),
    ("config", &[]),
    ("testing", &["log", "state", "model"]),
];

/// Not part of the layering: they put the parts together.
const MAY_IMPORT_ALL: &[&str] = &["server", "cli"];

/// Drives every parser of outside bytes, so it reaches all of them.
const FUZZ: &str = "testing/fuzz/";

const LINES_MAX: usize = 1000;

struct Source {
    /// Relative to `src`, with `/`.
    path: String,
    text: String,
}

impl Source {
    fn module(&self) -> &str {
        self.path
            .split('/')
            .next()
            .expect("a path has a first part")
            .trim_end_matches(".rs")
    }

    /// Tests and fuzz entries: neither is in a release.
    fn is_test(&self) -> bool {
        self.path.ends_with("/fuzz.rs")
            || self.path.ends_with("_tests.rs")
            || self.path.ends_with("/tests.rs")
            || self.path.contains("/tests/")
    }

    /// The text without comments and without the unit tests that close the file.
    fn code(&self) -> String {
        let end = self.text.find("#[cfg(test)]\nmod tests {").unwrap_or(self.text.len());
        let code = self.text[..end]
            .lines()
            .map(|line| line.split("//").next().unwrap_or_default());
        code.collect::<Vec<_>>().join("\n")
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    walk(&root().join("src"), &mut files);
    files.sort();
    let sources: Vec<_> = files
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| Source {
            path: path
                .strip_prefix(root().join("src"))
                .expect("below src")
                .to_string_lossy()
                .replace('\\', "/"),
            text: fs::read_to_string(path).expect("sources are UTF-8"),
        })
        .collect();
    assert!(sources.len() > 50, "the sources were found");
    sources
}

/// Every path behind `crate::` in the code, groups in braces taken apart.
fn crate_paths(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if !before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            tree("", &code[at + "crate::".len()..], &mut paths);
        }
    }
    paths
}

/// Reads one use tree below `prefix`; how many bytes it took.
fn tree(prefix: &str, text: &str, paths: &mut Vec<String>) -> usize {
    let mut at = text.len() - text.trim_start().len();
    let mut path = prefix.to_owned();
    loop {
        let rest = &text[at..];
        if rest.starts_with('{') {
            at += 1;
            loop {
                at += tree(&path, &text[at..], paths);
                at += text[at..].len() - text[at..].trim_start_matches([' ', '\n', ',']).len();
                if text[at..].is_empty() || text[at..].starts_with('}') {
                    return at + 1;
                }
            }
        }
        let word = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        if !path.is_empty() {
            path.push_str("::");
        }
        path.push_str(&rest[..word]);
        at += word.max(1);
        match text.get(at..).and_then(|rest| rest.strip_prefix("::")) {
            // `Vec::<..>` is the end of a path too.
            Some(rest) if !rest.starts_with('<') => at += 2,
            _ => {
                paths.push(path);
                return at;
            }
        }
    }
}

#[test]
fn use_trees_are_taken_apart() {
    let code = "use crate::a::{self, b::{C, D}, e};\nfn f(x: crate::g::H<crate::i>) {} other_crate::j";
    assert_eq!(
        crate_paths(code),
        ["a::self", "a::b::C", "a::b::D", "a::e", "g::H", "i"]
    );
}

fn may_import(module: &str, path: &str) -> bool {
    if path.split("::").next() == Some(module) || MAY_IMPORT_ALL.contains(&module) {
        return true;
    }
    let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == module) else {
        panic!("module {module} has no line in MAY_IMPORT: decide what it may know, and draw it in src/lib.rs");
    };
    allowed
        .iter()
        .any(|prefix| path == *prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with("::")))
}

#[test]
fn imports_follow_the_module_map() {
    let mut broken = Vec::new();
    for source in sources() {
        let module = source.module();
        if source.path.starts_with(FUZZ) || matches!(module, "lib" | "main") {
            continue;
        }
        // Tests may use the simulated parts; beyond that the map holds for them too.
        for path in crate_paths(&source.code()) {
            let is_simulated =
                path.starts_with("testing") || (matches!(module, "shard" | "session") && path.starts_with("state"));
            let may = may_import(module, &path) || (source.is_test() && is_simulated);
            if !may {
                broken.push(format!("src/{} imports crate::{path}", source.path));
            }
        }
    }
    assert!(broken.is_empty(), "against the module map:\n{}", broken.join("\n"));
}

#[test]
fn the_map_allows_and_refuses() {
    assert!(may_import("client", "hub::sas::generate"));
    assert!(!may_import("client", "hub::registry::Registry"));
    assert!(!may_import("session", "log::Appender"));
    assert!(!may_import("log", "hub"));
    assert!(!may_import("wire", "modeling::X"));
}

#[test]
fn unsafe_code_stands_in_one_file() {
    for source in sources() {
        let code = source
            .text
            .lines()
            .map(|line| line.split("//").next().unwrap_or_default());
        let has_unsafe = code
            .flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_'))
            .any(|word| word == "unsafe" || word == "unsafe_code");
        assert_eq!(has_unsafe, source.path == "log/map.rs", "src/{}", source.path);
    }
}

#[test]
fn every_file_says_what_it_is_and_stays_small() {
    let sources = sources();
    let bare: Vec<_> = sources
        .iter()
        .filter(|source| !source.text.starts_with("//! "))
        .map(|source| &source.path)
        .collect();
    assert!(bare.is_empty(), "without module docs: {bare:?}");
    let large: Vec<_> = sources
        .iter()
        .filter(|source| source.text.lines().count() >= LINES_MAX)
        .map(|source| &source.path)
        .collect();
    assert!(
        large.is_empty(),
        "a file of {LINES_MAX} lines hides a second noun: {large:?}"
    );
}

/// What `//! ```text` of `src/lib.rs` draws, and the modules the crate has.
fn drawing_and_modules() -> (String, Vec<String>) {
    let lib = fs::read_to_string(root().join("src/lib.rs")).expect("the crate has a root");
    let docs: Vec<_> = lib.lines().map_while(|line| line.strip_prefix("//!")).collect();
    let drawn = docs
        .iter()
        .skip_while(|line| line.trim() != "```text")
        .skip(1)
        .take_while(|line| line.trim() != "```");
    let drawing = drawn.copied().collect::<Vec<_>>().join("\n");
    let modules = lib
        .lines()
        .filter_map(|line| Some(line.strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned()));
    (drawing, modules.collect())
}

#[test]
fn the_drawing_shows_every_module_and_nothing_else() {
    let (drawing, modules) = drawing_and_modules();
    let folders: BTreeSet<&str> = drawing
        .split(|c: char| !c.is_alphanumeric() && !"_/.".contains(c))
        .filter_map(|word| word.strip_suffix('/'))
        .collect();
    for module in &modules {
        assert!(folders.contains(module.as_str()), "src/lib.rs does not draw {module}/");
    }
    let src = root().join("src");
    for folder in folders.into_iter().filter(|folder| !folder.is_empty()) {
        let is_there = modules
            .iter()
            .any(|module| module == folder || src.join(module).join(folder).is_dir());
        assert!(is_there, "src/lib.rs draws {folder}/, which is not there");
    }
    for (name, _) in MAY_IMPORT {
        assert!(
            modules.iter().any(|module| module == name),
            "MAY_IMPORT has {name}, which is no module"
        );
    }
}

#[test]
fn the_example_configuration_is_read() {
    let sources = forebay::config::Sources {
        file: Some(root().join("deploy/forebay.toml")),
        ..Default::default()
    };
    forebay::config::load(&sources).expect("deploy/forebay.toml is a valid configuration");
}

/// Names of series in a text: `forebay_` and what follows, where that is a name and not a pattern of one.
fn named_series(text: &str) -> Vec<&str> {
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let mut names = Vec::new();
    for (at, _) in text.match_indices("forebay_") {
        if text[..at]
            .chars()
            .next_back()
            .is_some_and(|c| is_name(c) || "-./".contains(c))
        {
            continue;
        }
        let name = &text[at..at + text[at..].find(|c| !is_name(c)).unwrap_or(text.len() - at)];
        let next = text[at + name.len()..].chars().next();
        // `level:forebay_x:operation` is a recorded series.
        let is_recorded = text[..at].ends_with(':') && next == Some(':');
        if !is_recorded && !name.ends_with('_') && !matches!(next, Some('*' | '<' | '/' | '.' | '-' | '=')) {
            names.push(name);
        }
    }
    names
}

fn exists(name: &str) -> bool {
    series::ALL.iter().any(|series| {
        let rest = name.strip_prefix(series.name);
        match series.kind {
            Kind::Counter | Kind::Gauge => rest == Some(""),
            Kind::Histogram => matches!(rest, Some("" | "_bucket" | "_sum" | "_count")),
        }
    })
}

#[test]
fn series_are_told_from_other_names() {
    let text = "rate(forebay_sync_seconds_bucket[5m]) forebay_<noun> my_forebay_x target/forebay_y `forebay_fds_open` \
                instance:forebay_z:rate2m";
    assert_eq!(named_series(text), ["forebay_sync_seconds_bucket", "forebay_fds_open"]);
    assert!(exists("forebay_sync_seconds_bucket") && !exists("forebay_fds_open") && !exists("forebay_sessions_count"));
}

#[test]
fn dashboards_alerts_and_readme_name_only_series_that_exist() {
    let mut files = Vec::new();
    walk(&root().join("dashboards"), &mut files);
    walk(&root().join("deploy"), &mut files);
    files.push(root().join("README.md"));
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for name in named_series(&text) {
            assert!(exists(name), "{} names {name}, which is no series", file.display());
        }
    }
}

/// Every alert of the rules: its name and its lines.
fn alerts() -> Vec<(String, String)> {
    let rules = fs::read_to_string(root().join("deploy/monitoring/rules.yml")).expect("there are rules");
    let blocks = rules.split("\n      - ").skip(1);
    let alerts = blocks.filter_map(|block| {
        let name = block.strip_prefix("alert: ")?.lines().next()?;
        Some((name.to_owned(), format!("{block}\n")))
    });
    alerts.collect()
}

#[test]
fn every_alert_has_its_texts_its_runbook_and_its_test() {
    let tests = fs::read_to_string(root().join("deploy/monitoring/rules_test.yml")).expect("the rules are tested");
    let alerts = alerts();
    assert!(alerts.len() > 20, "the alerts were found");
    for (name, block) in &alerts {
        for part in ["severity: ", "summary: ", "description: "] {
            assert!(block.contains(part), "{name} has no {part}");
        }
        let severities = ["critical", "warning", "info"].map(|severity| format!("severity: {severity}\n"));
        assert!(severities.iter().any(|severity| block.contains(severity)), "{name}");
        assert!(
            block.contains(&format!("runbook_url: deploy/runbooks/{name}.md\n")),
            "{name} names another page than its own"
        );
        // It is seen to fire: expected alerts follow its name.
        let fires = tests.split("alertname: ").skip(1).any(|test| {
            let mut lines = test.lines();
            lines.next() == Some(name) && lines.next().is_some_and(|line| line.trim() == "exp_alerts:")
        });
        assert!(fires, "{name} is not tested to fire");
    }
}

#[test]
fn every_runbook_page_has_its_alert_and_all_parts() {
    let alerts = alerts();
    let mut files = Vec::new();
    walk(&root().join("deploy/runbooks"), &mut files);
    assert_eq!(files.len(), alerts.len(), "a page for each alert");
    for file in files {
        let name = file
            .file_stem()
            .expect("a file has a name")
            .to_string_lossy()
            .into_owned();
        assert!(alerts.iter().any(|(alert, _)| *alert == name), "{name} is no alert");
        let text = fs::read_to_string(&file).expect("pages are UTF-8");
        assert!(text.starts_with(&format!("# {name}\n\n")), "{name}");
        let mut at = 0;
        for part in [
            "What it means",
            "What users feel",
            "How to look",
            "How to mend",
            "Try it",
        ] {
            let heading = format!("\n## {part}\n\n");
            let found = text[at..].find(&heading);
            at += found.unwrap_or_else(|| panic!("{name} lacks `{part}`, or has it in another place"));
        }
        // Pages send on to others; those are there.
        for word in text.split(|c: char| !c.is_alphanumeric()) {
            let is_alert = word.len() > "Forebay".len() && word.starts_with("Forebay");
            assert!(
                !is_alert || alerts.iter().any(|(alert, _)| alert == word),
                "{name}: {word}"
            );
        }
        for key in text.split('`').skip(1).step_by(2) {
            let keys = forebay::config::keys::keys();
            let section = key.split_once('.').map(|(section, _)| section);
            let is_key = keys.iter().any(|known| Some(known.section) == section);
            let exists = keys
                .iter()
                .any(|known| known.dotted() == key.split(' ').next().unwrap_or_default());
            assert!(!is_key || exists, "{name} names the key {key}");
        }
    }
}

#[test]
fn the_operators_rules_are_the_rules() {
    let read = |name: &str| fs::read_to_string(root().join("deploy/monitoring").join(name)).expect("there are rules");
    let (plain, wrapped) = (read("rules.yml"), read("prometheusrule.yaml"));
    let plain = &plain[plain.find("groups:\n").expect("rules have groups")..];
    let (_, spec) = wrapped.split_once("\nspec:\n").expect("the object has a spec");
    let indented = |line: &str| {
        if line.is_empty() {
            String::new()
        } else {
            format!("  {line}")
        }
    };
    assert!(
        plain.lines().map(indented).eq(spec.lines().map(str::to_owned)),
        "prometheusrule.yaml differs from rules.yml"
    );
}
