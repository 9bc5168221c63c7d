//! Whether the server's certificate lets clients in, and for how long.

use std::os::unix::fs::PermissionsExt as _;

use super::{Finding, Patient};
use crate::cli::status::time_left;
use crate::server::certificate::{Leaf, now_seconds};
use crate::server::tls::{DevFiles, load_identity};

const CHECK: &str = "certificate";
const WARN_SECONDS: i64 = 30 * 86_400;
const REPLACE: &str = "write a new chain and key over the files; a hub that runs serves them within seconds";

pub(super) fn check(patient: &Patient) -> Vec<Finding> {
    let files = match &patient.certificate {
        Ok(files) => files,
        Err(missing) => {
            let advice = "set quic.certificate_file and quic.key_file to the PEM files of chain and key";
            return vec![Finding::fail(CHECK, missing.clone(), advice)];
        }
    };
    if patient.is_dev && !files.certificate.exists() {
        return vec![Finding::ok(CHECK, "made at the first start of `forebay dev`")];
    }
    let leaf =
        load_identity(&files.certificate, &files.key).and_then(|_| Leaf::read("certificate", &files.certificate));
    let leaf = match leaf {
        Ok(leaf) => leaf,
        Err(error) => return vec![Finding::fail(CHECK, error.to_string(), REPLACE)],
    };
    let hosts: Vec<&str> = patient
        .config
        .identity
        .host_names
        .iter()
        .map(|host| host.0.as_str())
        .collect();
    let mut findings = vec![
        time_finding(CHECK, &leaf, now_seconds(), patient.is_dev),
        names_finding(&leaf, &hosts),
    ];
    if let Ok(metadata) = std::fs::metadata(&files.key)
        && metadata.permissions().mode() & 0o007 != 0
    {
        let key = files.key.display();
        findings.push(Finding::warn(
            CHECK,
            format!("{key} can be read by everybody on this machine"),
            format!("chmod 600 {key}"),
        ));
    }
    if patient.is_dev
        && let Ok(ca) = Leaf::read("CA certificate", &DevFiles::in_directory(&patient.data).ca_certificate)
    {
        findings.push(time_finding("CA", &ca, now_seconds(), false));
    }
    findings
}

fn time_finding(check: &'static str, leaf: &Leaf, now: i64, is_renewed: bool) -> Finding {
    let left = leaf.not_after - now;
    if now < leaf.not_before {
        let text = format!("valid only in {}", time_left(leaf.not_before - now));
        return Finding::fail(check, text, "look at the clock, or wait, or replace the files");
    }
    match left {
        ..0 => Finding::fail(
            check,
            format!("expired {} ago: clients refuse it", time_left(-left)),
            REPLACE,
        ),
        0..WARN_SECONDS if is_renewed => Finding::ok(
            check,
            format!(
                "expires in {}; `forebay dev` renews it at its next start, or within an hour where it runs",
                time_left(left)
            ),
        ),
        0..WARN_SECONDS => Finding::warn(check, format!("expires in {}", time_left(left)), REPLACE),
        _ => Finding::ok(check, format!("expires in {}, serial {}", time_left(left), leaf.serial)),
    }
}

fn names_finding(leaf: &Leaf, hosts: &[&str]) -> Finding {
    let missing: Vec<&str> = hosts.iter().copied().filter(|host| !leaf.is_for(host)).collect();
    let names = leaf.names.join(", ");
    if missing.is_empty() {
        return Finding::ok(CHECK, format!("for {names}"));
    }
    let text = format!("for {names}, but not for {} of identity.host_names", missing.join(", "));
    let advice =
        "take a certificate for every name that clients call the hub by; those that call it by another refuse it";
    // The first one stands in connection strings.
    if missing.contains(&hosts[0]) {
        Finding::fail(CHECK, text, advice)
    } else {
        Finding::warn(CHECK, text, advice)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    const DAY: i64 = 86_400;

    fn leaf() -> Leaf {
        Leaf {
            not_before: 100 * DAY,
            not_after: 200 * DAY,
            names: vec!["hub.example".to_owned(), "*.hub.example".to_owned()],
            serial: "0a".to_owned(),
        }
    }

    #[test]
    fn its_time_is_judged() {
        for (day, is_renewed, level, part) in [
            (99, false, Level::Fail, "valid only in 1d 0h"),
            (100, false, Level::Ok, "expires in 100d"),
            (171, false, Level::Warn, "expires in 29d"),
            (171, true, Level::Ok, "renews it"),
            (201, false, Level::Fail, "expired 1d 0h ago"),
            (201, true, Level::Fail, "expired"),
        ] {
            let found = time_finding(CHECK, &leaf(), day * DAY, is_renewed);
            assert!(
                found.level == level && found.text.contains(part),
                "day {day}: {found:?}"
            );
        }
    }

    #[test]
    fn its_names_are_held_against_those_of_the_hub() {
        for (hosts, level) in [
            (&["hub.example"][..], Level::Ok),
            (&["hub.example", "a.hub.example"], Level::Ok),
            (&["hub.example", "other.example"], Level::Warn),
            (&["other.example", "hub.example"], Level::Fail),
        ] {
            assert_eq!(names_finding(&leaf(), hosts).level, level, "{hosts:?}");
        }
    }
}
