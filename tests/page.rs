//! The status page in a real browser, the API against its own description, and who may see what.
#![allow(missing_docs)]

mod common;

use std::process::Command;

use common::daemon::{Daemon, Site, take_away, wait_for};
use serde_json::Value;

const TOKEN: &str = "correct horse battery staple";

fn site(token: bool) -> Site {
    let mut site = Site::new().with_http();
    site.extra = "    max-lag: 1s\n".into();
    if token {
        let listen = site.http.trim_end_matches(" }").to_owned();
        site.http = format!("{listen}, token: {TOKEN} }}");
    }
    site
}

fn address(site: &Site) -> String {
    let rest = site.http.trim_start_matches("{ listen: ");
    let end = rest.find([',', ' ']).unwrap();
    format!("http://{}", &rest[..end])
}

/// Status, headers and body, as curl gets them.
fn get(site: &Site, path: &str, args: &[&str]) -> (u16, String, String) {
    let out = Command::new("curl")
        .args(["-s", "-i", "-m", "40"])
        .args(args)
        .arg(format!("{}{path}", address(site)))
        .output()
        .expect("curl is missing: run bin/install-dev");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let code = head.split(' ').nth(1).and_then(|c| c.parse().ok());
    (
        code.unwrap_or(0),
        head.to_ascii_lowercase(),
        body.to_owned(),
    )
}

fn json(site: &Site, path: &str, args: &[&str]) -> Value {
    let (_, _, body) = get(site, path, args);
    serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path}: {e}\n{body}"))
}

/// A labelled, drilled, green target with some history.
fn green(site: &Site, auth: &[&str]) -> Daemon {
    site.sync();
    site.ok(&["drill", "app"]);
    let daemon = site.start();
    for n in 0..5 {
        site.write(&format!("update t set a='{n}' where id=1"));
        site.sync();
    }
    site.ok(&["snapshot", "--label", "before-v42"]);
    wait_for(&daemon, "green", || get(site, "/readyz", auth).0 == 200);
    daemon
}

/// A value has the form that a schema describes. Only what the document uses.
fn check(document: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        let found = document.pointer(reference.trim_start_matches('#'));
        return check(document, found.expect(reference), value, at);
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect(),
    };
    let actual = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_u64() && types.contains(&"integer") => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    assert!(types.contains(&actual), "{at}: {value} is no {types:?}");
    if let Some(allowed) = schema["enum"].as_array() {
        assert!(allowed.contains(value), "{at}: {value}");
    }
    for (n, item) in value.as_array().into_iter().flatten().enumerate() {
        check(document, &schema["items"], item, &format!("{at}[{n}]"));
    }
    let Some(object) = value.as_object() else {
        return;
    };
    for key in schema["required"].as_array().into_iter().flatten() {
        assert!(
            object.contains_key(key.as_str().unwrap()),
            "{at} has no {key}"
        );
    }
    for (key, value) in object {
        let schema = &schema["properties"][key];
        assert!(!schema.is_null(), "{at}: `{key}` is not described");
        check(document, schema, value, &format!("{at}.{key}"));
    }
}

fn described(site: &Site, path: &str, as_path: &str, args: &[&str]) -> Value {
    let document = json(site, "/api/v1/openapi.json", &[]);
    let (code, _, body) = get(site, path, args);
    let value: Value = serde_json::from_str(&body).unwrap();
    let answer = &document["paths"][as_path]["get"]["responses"][code.to_string()];
    let schema = &answer["content"]["application/json"]["schema"];
    assert!(!schema.is_null(), "{as_path} {code} is not described");
    check(&document, schema, &value, path);
    value
}

#[test]
fn the_api_answers_as_it_is_described() {
    let site = site(true);
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let auth = ["-H", bearer.as_str()];
    let _daemon = green(&site, &auth);
    let name = "/api/v1/targets/{name}/points";
    for path in ["/api/v1/status", "/readyz", "/up"] {
        let status = described(&site, path, path, &auth);
        assert_eq!(status["status"], "safe", "{path}: {status}");
        let target = &status["targets"][0];
        if path == "/up" {
            assert_eq!(target["database"], "ok", "{status}");
        } else {
            assert_eq!(target["path"], site.db.to_str().unwrap());
        }
    }
    // Every point that is advertised is one that `list` knows.
    let points = described(&site, "/api/v1/targets/app/points", name, &auth);
    let listed: Vec<String> = site.points().iter().map(|t| format!("{t:016x}")).collect();
    let store = &points["stores"][0];
    let mut shown: Vec<&str> = store["points"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["id"].as_str().unwrap())
        .collect();
    shown.reverse();
    assert!(
        shown.len() > 5 && shown == listed[..shown.len()],
        "{shown:?}\n{listed:?}"
    );
    assert_eq!(store["labels"][0]["label"], "before-v42", "{store}");
    assert_eq!(store["labels"][0]["restorable"], true, "{store}");
    assert_eq!(store["drills"][0]["ok"], true, "{store}");
    let few = described(
        &site,
        "/api/v1/targets/app/points?limit=2&from=1h",
        name,
        &auth,
    );
    assert_eq!(few["stores"][0]["points"].as_array().unwrap().len(), 2);
    assert_eq!(few["stores"][0]["count"], store["count"]);
    assert_eq!(few["listed_at"], points["listed_at"], "listings are billed");
    let none = described(
        &site,
        "/api/v1/targets/app/points?to=2001-01-01T00:00",
        name,
        &auth,
    );
    assert_eq!(none["stores"][0]["count"], 0);
    described(
        &site,
        "/api/v1/targets/app/points?from=yesterday",
        name,
        &auth,
    );
    let error = described(&site, "/api/v1/targets/nobody/points", name, &auth);
    assert!(error["error"].as_str().unwrap().contains("no target"));
    // The command of the page works as it stands there.
    let (_, _, page) = get(&site, "/targets/app?at=0s", &auth);
    let begin = page.find("lifeboat restore app --txid").unwrap();
    let command = page[begin..].split('<').next().unwrap();
    let args: Vec<&str> = command.split(' ').skip(1).collect();
    site.ok(&args);
    assert!(site.path("app-restored.sqlite3").exists(), "{command}");
}

#[test]
fn without_the_token_nobody_sees_more_than_states() {
    let site = site(true);
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let _daemon = green(&site, &["-H", bearer.as_str()]);
    let secrets = ["store/app", "app.sqlite3", "before-v42", TOKEN];
    for path in [
        "/",
        "/targets/app",
        "/api/v1/status",
        "/api/v1/targets/app/points",
    ] {
        for wrong in [
            &[][..],
            &["-u", "lifeboat:wrong"],
            &["-H", "Authorization: Bearer wrong"],
        ] {
            let (code, head, body) = get(&site, path, wrong);
            assert_eq!(code, 401, "{path}");
            assert!(head.contains("www-authenticate: basic"), "{head}");
            assert!(!secrets.iter().any(|s| body.contains(s)), "{path}: {body}");
        }
        let password = format!("anybody:{TOKEN}");
        assert_eq!(get(&site, path, &["-u", &password]).0, 200, "{path}");
    }
    for path in ["/readyz", "/up"] {
        let status = described(&site, path, path, &[]);
        let target = &status["targets"][0];
        let safe = if path == "/up" {
            &target["backup"]["safe"]
        } else {
            &target["safe"]
        };
        assert_eq!(safe, true);
        assert!(
            !secrets.iter().any(|s| status.to_string().contains(s)),
            "{status}"
        );
    }
    // Commands on the host have the token from the configuration.
    assert!(site.ok(&["status"]).contains("lifeboat: ok status safe"));
    assert!(!site.ok(&["config", "show"]).contains(TOKEN));
}

#[test]
fn without_a_token_the_page_is_not_sensitive() {
    let site = site(false);
    let _daemon = green(&site, &[]);
    for path in ["/", "/targets/app", "/api/v1/targets/app/points"] {
        let (code, _, body) = get(&site, path, &[]);
        assert_eq!(code, 200);
        assert!(body.contains("app"), "{path}: {body}");
        for secret in ["store/app", "app.sqlite3", "before-v42", "file://"] {
            assert!(!body.contains(secret), "{path} shows {secret}: {body}");
        }
    }
    let (_, head, _) = get(&site, "/", &[]);
    assert!(
        head.contains("content-security-policy: default-src 'none'"),
        "{head}"
    );
    assert_eq!(get(&site, "/targets/nobody", &[]).0, 404);
}

/// What the browser found.
fn browse(site: &Site, paths: &[&str]) -> Vec<Value> {
    common::browser::browse(site.dir.path(), &address(site), TOKEN, paths)
}

#[test]
fn heavy_pages_in_a_browser_are_accessible_in_both_schemes() {
    let site = site(true);
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let auth = ["-H", bearer.as_str()];
    let daemon = green(&site, &auth);
    let paths = [
        "/",
        "/targets/app",
        "/targets/app?at=0s",
        "/targets/app?at=%3Cscript%3Ealert(1)%3C/script%3E",
    ];
    let mut seen = browse(&site, &paths);
    let text = |i: usize| seen[i]["text"].as_str().unwrap().to_owned();
    assert!(text(0).contains("Everything is safe"), "{}", text(0));
    assert!(
        text(2).contains("before-v42") && text(2).contains("lifeboat restore app --txid"),
        "{}",
        text(2)
    );
    assert!(
        text(4).contains("The last point at or before"),
        "{}",
        text(4)
    );
    assert!(
        text(6).contains("not a time") || text(6).contains("<script>"),
        "{}",
        text(6)
    );
    assert_ne!(seen[0]["ground"], seen[1]["ground"], "light and dark");
    // Red, with its reason.
    take_away(&site.path("store"));
    site.write("update t set a='during the outage' where id=1");
    wait_for(&daemon, "red", || get(&site, "/readyz", &[]).0 == 503);
    let red = browse(&site, &["/", "/targets/app"]);
    let words = red[0]["text"].as_str().unwrap();
    assert!(
        words.contains("app is not safe") && words.contains("are not durable"),
        "{words}"
    );
    seen.extend(red);
    for page in &seen {
        common::browser::is_clean(page);
        let what = format!("{} in {}", page["url"], page["scheme"]);
        assert!(page["charts"].as_u64().unwrap() >= 1, "{what}");
    }
}
