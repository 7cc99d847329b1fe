//! The page for people: is everything safe, since when, and what to do if not. No script; one style sheet.

use std::collections::BTreeMap;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::access::Sees;
use super::chart;
use super::points::{Flavour, Point, StorePoints, TargetPoints};
use crate::config::{RetentionConfig, format_duration};
use crate::labels::age;
use crate::observe::facts::DrillFacts;
use crate::observe::health::Verdict;
use crate::observe::history::Past;
use crate::observe::services::Service;
use crate::observe::view::View;
use crate::postgres::Kind;
use crate::retention::Held;
use crate::types::Millis;

/// Points in the table of one store.
const SHOWN: usize = 20;

/// One target on the overview.
pub(super) struct Card {
    pub(super) verdict: Verdict,
    pub(super) past: Option<Past>,
    /// What it is.
    pub(super) what: &'static str,
    /// Facts that stand in a line.
    pub(super) facts: Vec<(&'static str, String)>,
}

/// Everything that the overview shows.
pub(super) fn cards(view: &View, past: impl Fn(&Verdict) -> Option<Past>) -> Vec<Card> {
    let verdicts = view.verdicts();
    let now = view.now;
    let ago =
        |at: Option<Millis>| at.map_or("never".to_owned(), |t| format!("{} ago", age(t, now)));
    let facts = |i: usize| -> (&'static str, Vec<(&'static str, String)>) {
        if let Some((t, _)) = view.targets.get(i) {
            let durable = t.stores.iter().map(|s| s.durable_at).min().flatten();
            let base = t.stores.iter().map(|s| s.base.map(|b| b.1)).min().flatten();
            let drill = t
                .stores
                .iter()
                .filter_map(|s| s.drill.as_ref())
                .max_by_key(|d| d.at);
            let drill = drilled(drill, now);
            let facts = vec![
                ("last change durable", ago(durable)),
                ("full copy", ago(base)),
                ("drill", drill),
                ("database", bytes(t.db_bytes)),
                (
                    "in the store",
                    bytes(t.stores.iter().map(|s| s.object_bytes).sum()),
                ),
            ];
            return ("SQLite", facts);
        }
        let i = i - view.targets.len();
        if let Some(f) = view.postgres.get(i) {
            let facts = vec![
                ("newest dump", ago(f.succeeded_at)),
                (
                    "next",
                    f.next.map_or("not planned".to_owned(), |t| t.to_string()),
                ),
                ("read back", ago(f.read_back_at)),
                ("drill", drilled(f.drill.as_ref(), now)),
                ("dumps", format!("{} with {}", f.dumps, bytes(f.dump_bytes))),
            ];
            let kind = match f.kind {
                Kind::Postgres => "PostgreSQL",
                Kind::Redis => "Redis",
            };
            return (kind, facts);
        }
        let Some(f) = view.files.get(i - view.postgres.len()) else {
            return ("", Vec::new());
        };
        let facts = vec![
            ("newest snapshot", ago(f.succeeded_at)),
            (
                "next",
                f.next.map_or("not planned".to_owned(), |t| t.to_string()),
            ),
            ("drill", drilled(f.drill.as_ref(), now)),
            ("files", format!("{} with {}", f.files, bytes(f.bytes))),
        ];
        ("Files", facts)
    };
    let cards = verdicts.into_iter().enumerate().map(|(i, verdict)| {
        let (what, facts) = facts(i);
        Card {
            past: past(&verdict),
            verdict,
            what,
            facts,
        }
    });
    let mut cards: Vec<Card> = cards.collect();
    // What needs somebody stands first.
    cards.sort_by_key(|c| c.verdict.safe);
    cards
}

fn drilled(drill: Option<&DrillFacts>, now: Millis) -> String {
    drill.map_or("none known".to_owned(), |d| {
        let word = if d.ok { "passed" } else { "FAILED" };
        let (ago, took) = (age(d.at, now), d.restore_seconds);
        format!("{word} {ago} ago, restored in {took:.1} s")
    })
}

fn frame(title: &str, body: Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " - Lifeboat" }
                link rel="stylesheet" href="/style.css";
                // The icon in words: a browser then asks for none.
                link rel="icon" href="data:,";
            }
            body { (body) }
        }
    };
    page.into_string()
}

fn foot(now: Millis) -> Markup {
    html! {
        footer {
            p {
                "As of " (now) ". "
                a href="/metrics" { "Metrics" } ", " a href="/readyz" { "readiness" } ", "
                a href="/api/v1/openapi.json" { "API" } ". Lifeboat " (env!("CARGO_PKG_VERSION"))
            }
        }
    }
}

/// The whole fleet.
pub(super) fn overview(
    (cards, services): (&[Card], &[Service]),
    now: Millis,
    instance: &str,
    sees: Sees,
) -> String {
    let bad = cards.iter().filter(|c| !c.verdict.safe).count();
    let (class, headline) = match (cards.len(), bad) {
        (0, _) => ("bad", "There is nothing to keep yet".to_owned()),
        (_, 0) => ("ok", "Everything is safe".to_owned()),
        (1, 1) => ("bad", format!("{} is not safe", cards[0].verdict.name)),
        (all, bad) => ("bad", format!("{bad} of {all} are not safe")),
    };
    let down: Vec<&str> = services
        .iter()
        .filter(|s| s.is_bad())
        .map(|s| s.name.as_str())
        .collect();
    let past = cards
        .iter()
        .filter(|c| c.verdict.safe == (bad == 0))
        .filter_map(|c| c.past.as_ref());
    // All are safe since the last became so; some are not since the first did.
    let past = match bad {
        0 => past.max_by_key(|p| p.since),
        _ => past.min_by_key(|p| p.since),
    };
    let body = html! {
        header class=(class) {
            h1 { (headline) }
            @if let Some(past) = past {
                p {
                    "since " time datetime=(past.since) { (past.since) } " (" (age(past.since, now))
                    @if past.always { ", perhaps longer: this process has not seen it otherwise" }
                    ")"
                }
            }
            @if !down.is_empty() { p.reason { "Not up: " (down.join(", ")) } }
            @if sees == Sees::Everything { p { (instance) } }
        }
        main {
            @for card in cards { (article(card, sees)) }
            @if !services.is_empty() { (services_of(services, sees)) }
            @if sees == Sees::Outside {
                p.note { "Stores, paths, reasons and restore commands are shown here once a token is set: " code { "http: { token: ... }" } ". " code { "lifeboat status" } " on the host shows them." }
            }
        }
        (foot(now))
    };
    frame(&headline, body)
}

/// What the copies do not depend on.
fn services_of(services: &[Service], sees: Sees) -> Markup {
    html! {
        @for s in services {
            article class=(if s.is_bad() { "bad" } else { "ok" }) {
                h2 {
                    (s.name) " "
                    span.badge { (s.state) } " " small { (s.kind) }
                }
                @if sees == Sees::Everything {
                    @for reason in &s.reasons { p.reason { (reason) } }
                    @for warning in &s.warnings { p.reason { (warning) } }
                    @for hint in &s.hints { p.hint { "What to do: " (hint) } }
                } @else if s.is_bad() || !s.warnings.is_empty() {
                    p.hint { "What to do: " code { "lifeboat status" } " on the host says why." }
                }
                dl {
                    @if let Some(since) = &s.since {
                        div { dt { "since" } dd { time datetime=(since) { (since) } } }
                    }
                    @if sees == Sees::Everything {
                        div { dt { "address" } dd { code { (s.address) } } }
                    }
                }
            }
        }
    }
}

fn article(card: &Card, sees: Sees) -> Markup {
    let v = &card.verdict;
    let (class, word) = if v.safe {
        ("ok", "safe")
    } else {
        ("bad", "NOT SAFE")
    };
    let lag = duration(v.lag_seconds);
    let allowed = duration(v.objective_seconds);
    let measure = if card.what == "SQLite" { "lag" } else { "age" };
    let words = card.past.as_ref().map(|p| {
        let worst = p.lags.iter().flatten().fold(0.0_f32, |a, b| a.max(*b));
        format!(
            "{measure} of {} over the last hours: at most {worst:.1} s, allowed are {allowed}",
            v.name
        )
    });
    html! {
        article class=(class) {
            h2 {
                a href=(format!("/targets/{}", segment(&v.name))) { (v.name) } " "
                span.badge { (word) } " " small { (card.what) ", " (v.state) }
            }
            @if sees == Sees::Everything {
                @for reason in &v.reasons { p.reason { (reason) } }
                @for hint in &v.hints { p.hint { "What to do: " (hint) } }
            } @else if !v.safe {
                p.hint { "What to do: " code { "lifeboat status" } " on the host says why." }
            }
            dl {
                div { dt { (measure) } dd { (lag) " of " (allowed) " allowed" } }
                @for (name, value) in &card.facts { div { dt { (name) } dd { (value) } } }
                @if sees == Sees::Everything {
                    div { dt { "path" } dd { code { (v.path) } } }
                    @for store in &v.stores { div { dt { "store" } dd { code { (store.store) } } } }
                }
            }
            @if let (Some(past), Some(words)) = (&card.past, &words) {
                figure {
                    (chart::lag(&past.lags, v.objective_seconds, words))
                    figcaption { (measure) " over the last six hours; dashed: what is allowed" }
                }
            }
        }
    }
}

/// The moment that somebody asks a command for.
pub(super) struct Asked {
    /// As it was typed.
    pub(super) text: String,
    /// `Err`: not a time.
    pub(super) at: Result<Millis, String>,
}

/// What retention does with a target.
pub(super) struct Kept {
    /// What the configuration wants.
    pub(super) policy: Option<String>,
    /// What is there, by store.
    pub(super) held: BTreeMap<String, Held>,
}

/// One target with its restorable window.
pub(super) fn target(
    name: &str,
    points: &TargetPoints,
    asked: Option<&Asked>,
    (now, zone): (Millis, &str),
    kept: &Kept,
    sees: Sees,
) -> String {
    let everything = sees == Sees::Everything;
    let newest = points.last_at(now);
    let body = html! {
        header {
            p { a href="/" { "All targets" } }
            h1 { (name) }
            @match newest {
                Some(point) => p { "Newest restorable point: " time datetime=(point.at) { (point.at) } " (" (age(point.at, now)) " ago)" },
                None => p { "There is no restorable point." },
            }
            @if let Some(policy) = &kept.policy { p { "Kept: " (policy) "." } }
        }
        main {
            @if everything && newest.is_some() { (choose(name, points, asked, zone)) }
            @for (number, store) in points.stores.iter().enumerate() {
                (window(name, store, (number, points.flavour, kept.held.get(&store.store)), now, everything))
            }
            @if !everything {
                p.note { "Stores, labels and restore commands are shown here once a token is set: " code { "http: { token: ... }" } }
            }
            p.note { "Listed " (age(points.at, now)) " ago; a listing is billed, so it is made at most every five minutes." }
        }
        (foot(now))
    };
    frame(name, body)
}

fn choose(name: &str, points: &TargetPoints, asked: Option<&Asked>, zone: &str) -> Markup {
    let text = asked.map_or("", |a| a.text.as_str());
    html! {
        section {
            h2 { "Restore" }
            p { "The newest point, into a new place; nothing is replaced:" }
            @if let Some(newest) = points.stores.iter().filter_map(|s| s.points.last()).max_by_key(|p| p.at) {
                pre tabindex="0" { (command(name, points.flavour, newest)) }
            }
            form method="get" {
                label for="at" { "As it was at (" (zone) ")" }
                input #at name="at" type="text" value=(text) placeholder="2026-11-20T10:30, or 10m" size="28";
                button type="submit" { "Show the command" }
            }
            @if let Some(asked) = asked {
                @match &asked.at {
                    Err(why) => p.reason role="status" { (why) },
                    Ok(at) => @match points.last_at(*at) {
                        Some(point) => {
                            p role="status" { "The last point at or before " (at) " is of " (point.at) ":" }
                            pre tabindex="0" { (command(name, points.flavour, point)) }
                        }
                        None => p.reason role="status" { "Nothing is as old as " (at) "." },
                    },
                }
            }
        }
    }
}

/// A name as one segment of a path: those of databases hold anything.
fn segment(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => {
                out.push(char::from(byte));
            }
            other => out += &format!("%{other:02X}"),
        }
    }
    out
}

/// A word of a shell.
fn word(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-./".contains(&b);
    match !text.is_empty() && text.bytes().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// What restores exactly this point, without touching anything that is there.
fn command(name: &str, flavour: Flavour, point: &Point) -> String {
    match flavour {
        Flavour::Sqlite => format!(
            "lifeboat restore {name} --txid {} -o {name}-restored.sqlite3",
            point.id
        ),
        Flavour::Postgres => format!(
            "lifeboat restore {} --dump {} --into-new {}",
            word(name),
            point.id,
            word(&format!(
                "{}_restored",
                name.rsplit('/').next().unwrap_or(name)
            ))
        ),
        Flavour::Redis => format!("lifeboat restore {name} --dump {} -o {name}.rdb", point.id),
        Flavour::Files => format!(
            "lifeboat restore {name} --snapshot {} -o {name}-restored",
            point.id
        ),
    }
}

fn window(
    name: &str,
    store: &StorePoints,
    (number, flavour, held): (usize, Flavour, Option<&Held>),
    now: Millis,
    everything: bool,
) -> Markup {
    let ends = store.points.first().zip(store.points.last());
    let title = if everything {
        store.store.clone()
    } else {
        format!("Store {}", number + 1)
    };
    html! {
        section {
            h2 { (title) }
            @if let Some(error) = &store.error {
                p.reason { (if everything { error.as_str() } else { "The store could not be listed." }) }
            }
            @if let Some((first, last)) = ends {
                p { (store.points.len()) " points from " (first.at) " to " (last.at) "." }
                (chart::timeline(store, now, everything, &format!(
                    "{} points from {} to {}, {} labels, {} drills",
                    store.points.len(), first.at, last.at, store.labels.len(), store.drills.len()
                )))
                p.legend { (PreEscaped("lines: points; triangles: labels, also of deploys; circles: drills")) }
            }
            @if let Some(held) = held.filter(|h| h.iter().next().is_some()) {
                h3 { "Tiers" }
                (tiers(&format!("tiers in store {}", number + 1), flavour, held))
            }
            @if everything && !store.labels.is_empty() {
                h3 { "Labels" }
                (table(&format!("labels in store {}", number + 1), name, flavour, store.labels.iter().rev().map(|l| (l.label.as_str(), &l.point, l.kept))))
            }
            @if !store.drills.is_empty() {
                h3 { "Drills" }
                ul { @for (at, ok) in &store.drills { li { (at) ": " (if *ok { "passed" } else { "FAILED" }) } } }
            }
            @if everything && !store.points.is_empty() {
                h3 { "Newest points" }
                (table(&format!("newest points in store {}", number + 1), name, flavour, store.points.iter().rev().take(SHOWN).map(|p| ("", p, true))))
            }
        }
    }
}

fn tiers(words: &str, flavour: Flavour, held: &Held) -> Markup {
    let what = match flavour {
        Flavour::Sqlite => "Objects",
        Flavour::Postgres | Flavour::Redis => "Dumps",
        Flavour::Files => "Snapshots",
    };
    html! {
        div.scroll tabindex="0" role="region" aria-label=(words) {
            table {
                thead { tr { th scope="col" { "Kept for" } th scope="col" { (what) } th scope="col" { "Size" } } }
                tbody {
                    @for (tier, copies, size) in held.iter() {
                        tr { td { (tier) } td { (copies) } td { (bytes(size)) } }
                    }
                }
            }
        }
    }
}

fn table<'a>(
    words: &str,
    name: &str,
    flavour: Flavour,
    rows: impl Iterator<Item = (&'a str, &'a Point, bool)>,
) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(words) {
            table {
                thead { tr { th scope="col" { "Label" } th scope="col" { "Time" } th scope="col" { "Command" } } }
                tbody {
                    @for (label, point, kept) in rows {
                        tr {
                            td { (if label.is_empty() { "-" } else { label }) }
                            td { (point.at) }
                            td { @if kept { code { (command(name, flavour, point)) } } @else { "cannot be restored any more" } }
                        }
                    }
                }
            }
        }
    }
}

/// What retention is to keep, in words.
pub(super) fn policy(retention: &RetentionConfig) -> String {
    let tiers = [
        (retention.hourly, "hourly"),
        (retention.daily, "daily"),
        (retention.weekly, "weekly"),
        (retention.monthly, "monthly"),
        (retention.yearly, "yearly"),
    ];
    let moments = (!retention.point_in_time.is_zero()).then(|| {
        format!(
            "any moment of the last {}",
            format_duration(retention.point_in_time)
        )
    });
    let tiers = tiers
        .iter()
        .filter(|t| t.0 > 0)
        .map(|(n, word)| format!("{n} {word}"));
    let all: Vec<String> = moments
        .into_iter()
        .chain(tiers)
        .chain(["labels".into()])
        .collect();
    all.join(", ")
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.1} s"),
        s => age(Millis(0), Millis((s * 1000.0) as i64)),
    }
}

fn bytes(n: u64) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{:.1} KiB", n as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", n as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", n as f64 / 1_073_741_824.0),
    }
}
