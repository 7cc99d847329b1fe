//! Pages in a real Chromium, with axe.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::daemon::tool;

/// Pages that were pictured by this test.
static PICTURES: AtomicUsize = AtomicUsize::new(0);

/// What the browser found on each page of `base`, in light and in dark. `TEST_SCREENSHOTS` names a folder that gets the pictures.
pub fn browse(folder: &Path, base: &str, token: &str, paths: &[&str]) -> Vec<Value> {
    assert!(
        Path::new("/usr/bin/chromium").exists(),
        "chromium is missing: run bin/install-dev"
    );
    tool("axe/node_modules/puppeteer-core/package.json");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/page.js");
    let out = Command::new("node")
        .arg(script)
        .arg(token)
        .arg(folder)
        .args(paths.iter().map(|p| format!("{base}{p}")))
        .env("HOME", folder)
        .output()
        .expect("node is missing: run bin/install-dev");
    let erred = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{erred}");
    if let Ok(pictures) = std::env::var("TEST_SCREENSHOTS") {
        let test = std::thread::current().name().unwrap_or("page").to_owned();
        for place in 0..paths.len() {
            let number = PICTURES.fetch_add(1, Ordering::Relaxed);
            for scheme in ["light", "dark"] {
                let made = folder.join(format!("page-{place}-{scheme}.png"));
                let name = format!("{test}-{number}-{scheme}.png");
                std::fs::copy(made, Path::new(&pictures).join(name)).unwrap();
            }
        }
    }
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Accessible, without scripts, no wider than its window, and the console has nothing to say.
#[track_caller]
pub fn is_clean(page: &Value) {
    let what = format!("{} in {}", page["url"], page["scheme"]);
    assert_eq!(page["status"], 200, "{what}");
    assert_eq!(page["violations"], json!([]), "{what}");
    let checks = page["checks"].as_u64().unwrap();
    assert!(checks > 10, "{what}: {checks}");
    assert_eq!(page["said"], json!([]), "{what}");
    assert_eq!(page["wide"], false, "{what} is wider than the window");
    assert_eq!(page["scripts"], 0, "{what}");
}
