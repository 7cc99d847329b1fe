//! A batch as text for people and as JSON for programs.

use serde_json::{Value, json};

use super::event::{Batch, Event};

/// Chat servers cut or refuse longer texts.
const TEXT_MAX: usize = 3_000;

/// One line that says how bad it is.
pub fn subject(batch: &Batch, instance: &str) -> String {
    let first = batch.events.iter().find(|e| e.is_bad());
    let Some(event) = first.or(batch.events.first()) else {
        return format!("Lifeboat on {instance}");
    };
    let more = match batch.events.len() {
        0 | 1 => String::new(),
        n => format!(" (and {} more)", n - 1),
    };
    let line = format!(
        "{}: {}{more} - Lifeboat on {instance}",
        event.mark(),
        event.title
    );
    // A header of a mail is one line.
    one_line(&line)
}

/// Names of databases and words of servers hold anything: none of it begins a line of its own, which would read like one of ours.
fn one_line(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(plain).collect()
}

/// For chats, pings and mails.
pub fn text(batch: &Batch, instance: &str) -> String {
    let mut text = format!("Lifeboat on {instance}");
    // What needs somebody first.
    let (bad, good): (Vec<&Event>, Vec<&Event>) = batch.events.iter().partition(|e| e.is_bad());
    for event in bad.into_iter().chain(good) {
        let since = match event.is_bad() {
            true => format!(" (since {})", event.since),
            false => String::new(),
        };
        let title = one_line(&event.title);
        text.push_str(&format!("\n{}: {title}{since}", event.mark()));
        for reason in &event.reasons {
            text.push_str(&format!("\n  {}", one_line(reason)));
        }
        for hint in &event.hints {
            text.push_str(&format!("\n  what to do: {}", one_line(hint)));
        }
    }
    cut(text)
}

fn cut(mut text: String) -> String {
    if text.len() > TEXT_MAX {
        let end = (0..=TEXT_MAX).rev().find(|i| text.is_char_boundary(*i));
        text.truncate(end.unwrap_or(0));
        text.push_str("\n... more in `lifeboat status`");
    }
    text
}

/// What Slack, Mattermost and Discord's `/slack` address take. `<`, `>` and `&` would be markup.
pub fn slack(batch: &Batch, instance: &str) -> Value {
    let text = text(batch, instance);
    let text = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    json!({ "text": text })
}

/// What the generic webhook takes: docs/notifications.md describes it.
pub fn webhook(batch: &Batch, instance: &str) -> Value {
    json!({
        "format": 1,
        "id": batch.id,
        "at": batch.at.to_string(),
        "instance": instance,
        "version": env!("CARGO_PKG_VERSION"),
        "summary": subject(batch, instance),
        "events": batch.events,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::event::{Kind, Phase};
    use crate::types::Millis;

    fn batch() -> Batch {
        let problem = Event {
            reasons: vec!["s3://b/app: <refused> & closed".into()],
            hints: vec!["look at it".into()],
            ..Event::new(Kind::Unsafe, Phase::Started, "app", Millis(0))
        };
        let over = Event::new(Kind::DiskLow, Phase::Ended, "/data", Millis(0));
        Batch {
            id: "7".into(),
            at: Millis(1),
            events: vec![over, problem],
        }
    }

    #[test]
    fn problems_come_first_and_markup_is_escaped() {
        let text = text(&batch(), "web1");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "Lifeboat on web1");
        assert!(
            lines[1].starts_with("PROBLEM: app is not safe (since 1970-"),
            "{text}"
        );
        assert_eq!(lines[4], "OK: the volume of /data has room again");
        assert_eq!(
            subject(&batch(), "web1"),
            "PROBLEM: app is not safe (and 1 more) - Lifeboat on web1"
        );
        let slack = slack(&batch(), "web1")["text"].to_string();
        assert!(slack.contains("&lt;refused&gt; &amp; closed"), "{slack}");
        let json = webhook(&batch(), "web1");
        assert_eq!(json["events"][1]["kind"], "unsafe");
        assert_eq!(json["events"][1]["phase"], "started");
        let back: Event = serde_json::from_value(json["events"][1].clone()).unwrap();
        assert_eq!(back, batch().events[1]);
    }

    #[test]
    fn nobody_elses_words_are_a_line_of_ours() {
        let mut forged = batch();
        let problem = &mut forged.events[1];
        let subject = "pg/x\nOK: everything is safe";
        *problem = Event {
            reasons: vec!["refused\nOK: pg is safe again\u{1b}[2J".into()],
            ..Event::new(Kind::DumpFailed, Phase::Started, subject, Millis(0))
        };
        let text = text(&forged, "web1");
        let good = text.lines().filter(|l| l.starts_with("OK")).count();
        assert_eq!(good, 1, "{text}");
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let text = cut("ä".repeat(TEXT_MAX));
        assert!(text.len() < TEXT_MAX + 50 && text.ends_with("`lifeboat status`"));
    }
}
