//! `status`: the verdicts of `/readyz` in a terminal.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};

use anstyle::{AnsiColor, Style};
use serde_json::Value;

use super::args::StatusArgs;
use super::inspect::get;
use super::{Failure, ok};
use crate::config::{Config, parse_duration};
use crate::daemon::control::{Client, Request};
use crate::daemon::fleet::{socket_path, system_now};
use crate::labels::age;
use crate::types::Millis;

/// Moves to the corner and clears what is there.
const CLEAR: &str = "\x1b[H\x1b[2J";

const SERVICES_HEAD: [&str; 5] = ["SERVICE", "STATE", "FOR", "KIND", "ADDRESS"];
const HEAD: [&str; 8] = [
    "TARGET", "SAFE", "STATE", "LAG", "ALLOWED", "DURABLE", "OLDEST", "DRILL",
];

pub(super) async fn status(config: Config, args: StatusArgs, as_json: bool) -> Result<(), Failure> {
    let terminal = std::io::stdout().is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    if !args.watch {
        let status = ask(&config, args.address.as_deref()).await?;
        if as_json {
            println!("{status}");
        } else {
            print!("{}", table(&status, system_now(), colour));
        }
        if status["status"] == "safe" {
            ok("status safe");
            return Ok(());
        }
        let hint = "what to do stands below each target that is not; the daemon's log says more";
        return Err(Failure::new(1, "not everything is safe", Some(hint.into())));
    }
    let every = parse_duration(&args.interval)
        .ok()
        .filter(|d| !d.is_zero())
        .ok_or_else(|| {
            Failure::new(
                2,
                format!("--interval: \"{}\" is not a time to wait", args.interval),
                Some("for example 2s".into()),
            )
        })?;
    loop {
        let answer = ask(&config, args.address.as_deref()).await;
        let now = system_now();
        let text = match (answer, as_json) {
            (Ok(status), true) => format!("{status}\n"),
            (Ok(status), false) => format!("{now}\n{}", table(&status, now, colour)),
            // A restart of the daemon is no reason to stop looking.
            (Err(failure), true) => format!(
                "{}\n",
                serde_json::json!({ "status": "unknown", "error": failure.message })
            ),
            (Err(failure), false) => format!(
                "{now}\n{}\n{}\n",
                failure.message,
                failure.hint.unwrap_or_default()
            ),
        };
        let clear = if terminal && !as_json { CLEAR } else { "" };
        let mut out = std::io::stdout().lock();
        if out
            .write_all(format!("{clear}{text}").as_bytes())
            .and_then(|()| out.flush())
            .is_err()
        {
            // Nobody reads it any more.
            return Ok(());
        }
        drop(out);
        tokio::time::sleep(every).await;
    }
}

/// Over the socket, which needs no port and no token; over HTTP if an address is given or there is no socket.
async fn ask(config: &Config, address: Option<&str>) -> Result<Value, Failure> {
    if address.is_none()
        && let Ok(Some(mut client)) = Client::connect(&socket_path(config)).await
    {
        let asked = client.ask_for(&Request::Status);
        let limit = std::time::Duration::from_secs(10);
        return match tokio::time::timeout(limit, asked).await {
            Ok(Ok(status)) => Ok(status),
            Ok(Err(e)) => Err(Failure::new(
                1,
                format!("the daemon did not answer: {e}"),
                Some("see its log".into()),
            )),
            Err(_) => Err(Failure::new(
                1,
                "the daemon does not answer",
                Some("see its log; is a disk hanging?".into()),
            )),
        };
    }
    let body = get(config, address.map(str::to_owned), "/api/v1/status").await?;
    serde_json::from_str(&body)
        .map_err(|e| Failure::new(1, format!("the daemon's answer cannot be read: {e}"), None))
}

/// The verdicts as tables, what needs somebody first, reasons and hints below each.
fn table(status: &Value, now: Millis, colour: bool) -> String {
    let mut targets: Vec<&Value> = status["targets"].as_array().into_iter().flatten().collect();
    targets.sort_by_key(|t| t["safe"] == true);
    let of_targets = |t: &&Value| (row(t, now), t["safe"] == true);
    let mut text = rows(HEAD, &targets, of_targets, colour);
    let services = status["services"].as_array().into_iter().flatten();
    let mut services: Vec<&Value> = services.collect();
    if !services.is_empty() {
        // What nobody can tell any more has a reason for it, too.
        let is_fine =
            |s: &&Value| s["state"] != "down" && s["reasons"].as_array().is_none_or(Vec::is_empty);
        services.sort_by_key(is_fine);
        let of_services = |s: &&Value| (service_row(s, now), is_fine(s));
        text += "\n";
        text += &rows(SERVICES_HEAD, &services, of_services, colour);
    }
    text
}

fn rows<const N: usize>(
    head: [&str; N],
    entries: &[&Value],
    row: impl Fn(&&Value) -> ([String; N], bool),
    colour: bool,
) -> String {
    let rows: Vec<([String; N], bool)> = entries.iter().map(row).collect();
    let width = |i: usize| {
        let cells = rows.iter().map(|r| r.0[i].chars().count());
        cells.chain([head[i].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let paint = |style: Style, text: &str| match colour {
        true => format!("{style}{text}{style:#}"),
        false => text.to_owned(),
    };
    let (bad, good) = (
        AnsiColor::Red.on_default().bold(),
        AnsiColor::Green.on_default(),
    );
    let mut text = paint(Style::new().bold(), &line(head)) + "\n";
    for (entry, (row, fine)) in entries.iter().zip(&rows) {
        let style = if *fine { good } else { bad };
        text += &(paint(style, &line(row.each_ref().map(String::as_str))) + "\n");
        let words = |key: &str| entry[key].as_array().cloned().unwrap_or_default();
        let marked = [
            ("reasons", "    "),
            ("warnings", "    "),
            ("hints", "    what to do: "),
        ];
        for (key, mark) in marked {
            for word in words(key) {
                // Writing to a string does not fail.
                let _ = writeln!(text, "{mark}{}", plain(word.as_str().unwrap_or_default()));
            }
        }
    }
    text
}

/// Names and words of servers hold anything; a terminal takes some of it for commands.
fn plain(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(plain).collect()
}

fn service_row(service: &Value, now: Millis) -> [String; 5] {
    let text = |key: &str| plain(service[key].as_str().unwrap_or("-"));
    let since: Option<jiff::Timestamp> = service["since"].as_str().and_then(|t| t.parse().ok());
    let since = since.map(|t| age(Millis(t.as_millisecond()), now));
    [
        text("name"),
        text("state"),
        since.unwrap_or_else(|| "-".into()),
        text("kind"),
        text("address"),
    ]
}

fn row(target: &Value, now: Millis) -> [String; 8] {
    let text = |key: &str| plain(target[key].as_str().unwrap_or("-"));
    let seconds = |key: &str| {
        let seconds = target[key].as_f64().unwrap_or(0.0);
        match seconds {
            s if s < 120.0 => format!("{s:.1}s"),
            s => age(Millis(now.0 - (s * 1000.0) as i64), now),
        }
    };
    let stores = || target["stores"].as_array().into_iter().flatten();
    let time = |store: &Value, key: &str| {
        let at: Option<jiff::Timestamp> = store[key].as_str().and_then(|t| t.parse().ok());
        at.map(|t| Millis(t.as_millisecond()))
    };
    let ago = |at: Option<Millis>, none: &str| {
        at.map_or_else(|| none.to_owned(), |t| format!("{} ago", age(t, now)))
    };
    // The store that is furthest behind, and the one that goes back furthest.
    let durable = stores().map(|s| time(s, "durable_at")).min().flatten();
    let oldest = stores().filter_map(|s| time(s, "oldest_at")).min();
    // One that failed hides behind no other.
    let drill = stores().filter_map(|s| Some((s["drill_ok"] == false, time(s, "drill_at")?)));
    let drill = match drill.max() {
        Some((failed, at)) => {
            let word = if failed { "FAILED" } else { "passed" };
            format!("{word} {} ago", age(at, now))
        }
        None => "none".into(),
    };
    let safe = if target["safe"] == true { "yes" } else { "NO" };
    [
        text("name"),
        safe.to_owned(),
        text("state"),
        seconds("lag_seconds"),
        seconds("objective_seconds"),
        ago(durable, "never"),
        ago(oldest, "-"),
        drill,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_needs_somebody_comes_first_with_what_to_do() {
        let now = Millis(1_000_000_000_000);
        let target = |name: &str, safe: bool| {
            json!({
                "name": name, "safe": safe, "state": "steady", "lag_seconds": 7201.0, "objective_seconds": 30.0,
                "reasons": if safe { json!([]) } else { json!(["the store is away"]) }, "hints": ["look at it"],
                "stores": [
                    { "durable_at": Millis(now.0 - 5_000).to_string(), "oldest_at": Millis(now.0 - 7_200_000).to_string(),
                      "drill_at": Millis(now.0 - 3_000).to_string(), "drill_ok": true },
                    { "durable_at": Millis(now.0 - 90_000).to_string(), "oldest_at": Millis(now.0 - 60_000).to_string(),
                      "drill_at": Millis(now.0 - 9_000).to_string(), "drill_ok": safe },
                ],
            })
        };
        let service = |name: &str, state: &str| {
            json!({
                "kind": "probe", "name": name, "address": "http://app/up", "state": state,
                "since": Millis(now.0 - 5_000).to_string(),
                "reasons": if state == "down" { json!(["it answered 500"]) } else { json!([]) },
                "warnings": [], "hints": [],
            })
        };
        let status = json!({
            "status": "unsafe",
            "targets": [target("app", true), target("a-long-name", false)],
            "services": [service("a", "up"), service("b", "down")],
        });
        let plain = table(&status, now, false);
        let lines: Vec<&str> = plain.lines().collect();
        assert_eq!(
            lines[0],
            "TARGET       SAFE  STATE   LAG  ALLOWED  DURABLE  OLDEST  DRILL"
        );
        assert_eq!(
            lines[1],
            "a-long-name  NO    steady  2h   30.0s    90s ago  2h ago  FAILED 9s ago"
        );
        assert_eq!(lines[2], "    the store is away");
        assert_eq!(lines[3], "    what to do: look at it");
        assert!(lines[4].starts_with("app          yes"), "{plain}");
        assert!(lines[4].ends_with("2h ago  passed 3s ago"), "{plain}");
        let services: Vec<&str> = lines[6..].to_vec();
        assert_eq!(
            services[..4],
            [
                "",
                "SERVICE  STATE  FOR  KIND   ADDRESS",
                "b        down   5s   probe  http://app/up",
                "    it answered 500",
            ],
            "{plain}"
        );
        assert!(services[4].starts_with("a        up "), "{plain}");
        let late = json!({ "name": "c", "state": "unknown", "reasons": ["it was looked at last at noon"] });
        let late = json!({ "targets": [], "services": [service("a", "up"), late] });
        let late = table(&late, now, true);
        let lines: Vec<&str> = late.lines().skip(3).collect();
        assert!(
            lines[0].contains("31m") && lines[0].contains("unknown"),
            "{late:?}"
        );
        assert!(lines[2].contains("32m"), "{late:?}");
        let odd = json!({ "targets": [target("pg/a\n\u{1b}[2Jall  yes", false)], "services": [] });
        let odd = table(&odd, now, false);
        assert!(
            odd.lines().count() == 4 && !odd.contains('\u{1b}'),
            "{odd:?}"
        );
        let coloured = table(&status, now, true);
        assert!(
            coloured.contains("\x1b[31ma-long-name")
                || coloured.contains("\x1b[1m\x1b[31ma-long-name"),
            "{coloured:?}"
        );
    }
}
