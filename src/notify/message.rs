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
    line.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
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
        text.push_str(&format!("\n{}: {}{since}", event.mark(), event.title));
        event
            .reasons
            .iter()
            .for_each(|r| text.push_str(&format!("\n  {r}")));
        event
            .hints
            .iter()
            .for_each(|h| text.push_str(&format!("\n  what to do: {h}")));
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
    fn long_texts_are_cut_between_characters() {
        let text = cut("ä".repeat(TEXT_MAX));
        assert!(text.len() < TEXT_MAX + 50 && text.ends_with("`lifeboat status`"));
    }
}
