//! The page: files that are part of the program, and the headers that keep everything else out of it.
//!
//! The page fetches nothing but its own files and `/console/api`, has no inline script or style, and puts text into the
//! document as text only: the policy makes the browser hold it to that.

use actix_web::HttpResponse;
use actix_web::http::Method;
use actix_web::http::header::{CACHE_CONTROL, HeaderName, HeaderValue, LOCATION};

use super::denied::Denied;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! files {
    ($($path:literal $kind:ident $file:literal;)*) => {
        /// Path below `/console`, content type, content.
        const FILES: &[(&str, &str, &str)] = &[$(($path, $kind, include_str!(concat!("page/", $file)))),*];
    };
}

files! {
    "/" HTML "index.html";
    "/console.css" CSS "console.css";
    "/icon.svg" SVG "icon.svg";
    "/main.js" SCRIPT "main.js";
    "/api.js" SCRIPT "api.js";
    "/dom.js" SCRIPT "dom.js";
    "/chart.js" SCRIPT "chart.js";
    "/units.js" SCRIPT "units.js";
    "/overview.js" SCRIPT "overview.js";
    "/devices.js" SCRIPT "devices.js";
    "/device.js" SCRIPT "device.js";
    "/partitions.js" SCRIPT "partitions.js";
    "/tail.js" SCRIPT "tail.js";
    "/hub.js" SCRIPT "hub.js";
}

const HEADERS: [(&str, &str); 8] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    ("x-frame-options", "DENY"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=(), usb=()"),
    // Also the files: they change with the program, and are small.
    ("cache-control", "no-store"),
];

/// One of the page's files.
pub fn answer(method: &Method, path: &str) -> Result<HttpResponse, Denied> {
    let file = FILES.iter().find(|(known, ..)| *known == path);
    let is_start = path.is_empty();
    if file.is_none() && !is_start {
        return Err(Denied::path());
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Err(Denied::method());
    }
    Ok(match file {
        Some((_, kind, content)) => HttpResponse::Ok().content_type(*kind).body(*content),
        None => HttpResponse::PermanentRedirect()
            .insert_header((LOCATION, "/console/"))
            .finish(),
    })
}

/// The answer with the headers of every answer of the console.
pub fn guarded(mut response: HttpResponse) -> HttpResponse {
    let headers = response.headers_mut();
    headers.remove(CACHE_CONTROL);
    for (name, value) in HEADERS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the policy forbids would not work; what fetches from elsewhere would not either, and must not be tried.
    #[test]
    fn files_have_nothing_inline_and_name_nobody_else() {
        for (path, kind, content) in FILES {
            for forbidden in [
                "https://",
                "//cdn",
                " style=\"",
                "javascript:",
                "innerHTML",
                "eval(",
                "@import",
            ] {
                assert!(!content.contains(forbidden), "{path} has {forbidden}");
            }
            let urls = content.matches("http://").count();
            // SVG is made in its namespace, whose name looks like an address.
            assert_eq!(urls, content.matches("http://www.w3.org/2000/svg").count(), "{path}");
            if *kind == HTML {
                assert!(!content.contains("<style") && !content.contains(" onclick"), "{path}");
                assert_eq!(
                    content.matches("<script").count(),
                    content.matches("<script type=\"module\" src=").count()
                );
            }
        }
    }

    #[test]
    fn every_file_that_is_asked_for_is_there() {
        for (path, kind, content) in FILES.iter().filter(|(_, kind, _)| *kind != SVG) {
            let quoted = content.split('"').skip(1).step_by(2);
            let wanted = quoted.filter(|text| {
                text.strip_prefix("./").is_some_and(|_| *kind == SCRIPT)
                    || (*kind == HTML && [".js", ".css", ".svg"].iter().any(|end| text.ends_with(end)))
            });
            for file in wanted {
                let file = format!("/{}", file.trim_start_matches("./").trim_start_matches("/console/"));
                assert!(FILES.iter().any(|(known, ..)| *known == file), "{path} wants {file}");
            }
        }
    }
}
