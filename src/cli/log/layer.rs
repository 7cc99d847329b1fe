//! Between the events and who writes them: [`super::repeats`] decides, this asks it and tells its sums.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::repeats::{Key, Line, Repeats, Sum};

/// Events with this target are sums.
const SUMS: &str = "lifeboat::log::sums";

/// Whom a line is about.
const SUBJECT: [&str; 4] = ["target_name", "store", "channel", "probe"];
/// Texts in which times, ports and request ids change from one try to the next.
const TEXTS: [&str; 7] = [
    "message", "error", "failure", "hint", "why", "reason", "warnings",
];

#[derive(Debug, Default)]
struct Shared {
    repeats: Mutex<Repeats>,
    /// Something was counted: there is an end to wait for.
    counted: Condvar,
}

impl Shared {
    fn repeats(&self) -> MutexGuard<'_, Repeats> {
        self.repeats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells sums when their windows end, for ever.
    fn watch(&self) {
        let mut repeats = self.repeats();
        loop {
            let now = Instant::now();
            let sums = repeats.due(now);
            if !sums.is_empty() {
                drop(repeats);
                sums.iter().for_each(tell);
                repeats = self.repeats();
                continue;
            }
            repeats = match repeats.next_due() {
                None => self
                    .counted
                    .wait(repeats)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    let wait = due.saturating_duration_since(now);
                    let woken = self.counted.wait_timeout(repeats, wait);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// Suppresses repeats. Debugging output is left as it is.
pub(super) struct Quiet(Arc<Shared>);

/// Tells what was counted when it is dropped: the process ends.
pub(super) struct Rest(Arc<Shared>);

impl Drop for Rest {
    fn drop(&mut self) {
        let sums = self.0.repeats().rest(Instant::now());
        sums.iter().for_each(tell);
    }
}

impl Quiet {
    /// Starts the thread that tells sums in time.
    pub(super) fn start() -> std::io::Result<(Self, Rest)> {
        let shared = Arc::new(Shared::default());
        let watched = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || watched.watch())?;
        Ok((Self(Arc::clone(&shared)), Rest(shared)))
    }
}

impl<S: Subscriber> Layer<S> for Quiet {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let about = event.metadata();
        if *about.level() > Level::INFO || about.target() == SUMS {
            return true;
        }
        let mut words = Words::default();
        event.record(&mut words);
        let (key, line) = words.line(about);
        let verdict = self.0.repeats().note(key, line, Instant::now());
        if !verdict.tell {
            self.0.counted.notify_one();
        }
        verdict.sums.iter().for_each(tell);
        verdict.tell
    }
}

fn tell(sum: &Sum) {
    let Line {
        level,
        target,
        store,
        error,
        ..
    } = &sum.line;
    let (target, store) = (target.as_deref(), store.as_deref());
    let (error, message) = (error.as_deref(), sum.message());
    macro_rules! at {
        ($level:expr) => {
            tracing::event!(target: SUMS, $level, target_name = target, store, error, repeated = sum.times, "{message}")
        };
    }
    match *level {
        Level::ERROR => at!(Level::ERROR),
        Level::WARN => at!(Level::WARN),
        _ => at!(Level::INFO),
    }
}

/// What an event says.
#[derive(Default)]
struct Words {
    hasher: DefaultHasher,
    subject: Option<DefaultHasher>,
    message: String,
    target: Option<String>,
    store: Option<String>,
    error: Option<String>,
}

impl Words {
    fn line(self, about: &tracing::Metadata<'_>) -> (Key, Line) {
        let key = Key {
            callsite: about.callsite(),
            words: self.hasher.finish(),
        };
        let line = Line {
            level: *about.level(),
            message: self.message,
            target: self.target,
            store: self.store,
            error: self.error,
            subject: self.subject.map(|s| s.finish()),
        };
        (key, line)
    }

    fn text(&mut self, name: &'static str, text: &str) {
        name.hash(&mut self.hasher);
        if TEXTS.contains(&name) {
            hash_words(text, &mut self.hasher);
        } else {
            text.hash(&mut self.hasher);
        }
        if SUBJECT.contains(&name) {
            let subject = self.subject.get_or_insert_default();
            (name, text).hash(subject);
        }
        match name {
            "message" => text.clone_into(&mut self.message),
            "target_name" => self.target = Some(text.to_owned()),
            "store" => self.store = Some(text.to_owned()),
            "error" | "failure" => self.error = Some(text.to_owned()),
            _ => {}
        }
    }
}

/// Whatever holds a digit is a time, a port, a count or an id.
fn hash_words(text: &str, hasher: &mut DefaultHasher) {
    let words = text.split(|c: char| !c.is_alphanumeric());
    for word in words.filter(|w| !w.is_empty()) {
        if word.contains(|c: char| c.is_ascii_digit()) {
            "#".hash(hasher);
        } else {
            word.hash(hasher);
        }
    }
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field.name(), &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field.name(), value);
    }

    // Measurements.
    fn record_i64(&mut self, _: &Field, _: i64) {}
    fn record_u64(&mut self, _: &Field, _: u64) {}
    fn record_f64(&mut self, _: &Field, _: f64) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashed(text: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        hash_words(text, &mut hasher);
        hasher.finish()
    }

    #[test]
    fn numbers_times_and_ids_make_no_other_words() {
        let one = "http://127.0.0.1:34523/b: 503, request 17A3F09: since 2026-11-21T10:00:00.1Z";
        let two = "http://127.0.0.1:40000/b: 500, request 9B00C21: since 2026-11-21T11:30:05Z";
        assert_eq!(hashed(one), hashed(&two.replace("05Z", "05.2Z")));
        assert_ne!(hashed("access denied"), hashed("connection refused"));
    }
}
