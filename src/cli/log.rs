//! The log: to stderr, as text for people or one JSON object a line. What repeats itself is summed, see [`repeats`].

mod layer;
mod repeats;

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use super::Failure;
use super::args::{Global, LogFormat};

/// Keeps the log until its end.
#[must_use]
pub(super) struct Log {
    /// Held until the end.
    _rest: Option<layer::Rest>,
}

/// Starts it. A command that `goes_on` until it is ended sums what repeats itself; of others every line is told.
pub(super) fn start(global: &Global, goes_on: bool) -> Result<Log, Failure> {
    let level = if global.quiet {
        "error"
    } else {
        global.log_level.as_str()
    };
    let filter = EnvFilter::try_new(format!(
        "{level},aws_config=error,aws_smithy_runtime=error,object_store=warn,hyper=warn,rustic_core=off"
    ))
    .map_err(|e| {
        Failure::new(
            2,
            format!("--log-level: {e}"),
            Some("use error, warn, info, debug or trace".into()),
        )
    })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    let (quiet, rest) = match goes_on {
        false => (None, None),
        true => {
            let cannot = |e| Failure::new(1, format!("cannot start the log: {e}"), None);
            let (quiet, rest) = layer::Quiet::start().map_err(cannot)?;
            (Some(quiet), Some(rest))
        }
    };
    match global.log_format {
        LogFormat::Text => log
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .finish()
            .with(quiet)
            .init(),
        LogFormat::Json => log
            .event_format(Json::of_process())
            .finish()
            .with(quiet)
            .init(),
    }
    Ok(Log { _rest: rest })
}

/// `timestamp`, `severity` and `message`, what belongs to the event, and where it runs.
struct Json {
    /// `service`, `environment`, `host`: those that Kamal names.
    tags: BTreeMap<&'static str, String>,
}

impl Json {
    fn of_process() -> Self {
        let tags = [
            ("service", "KAMAL_SERVICE"),
            ("environment", "KAMAL_DESTINATION"),
            ("host", "KAMAL_HOST"),
            ("version", "KAMAL_VERSION"),
        ];
        let set = |(tag, name)| {
            Some((
                tag,
                std::env::var(name)
                    .ok()
                    .filter(|v: &String| !v.is_empty())?,
            ))
        };
        Self {
            tags: tags.into_iter().filter_map(set).collect(),
        }
    }
}

/// Words that log collectors know.
fn severity(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        _ => "DEBUG",
    }
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = self.line(jiff::Timestamp::now(), *event.metadata().level(), fields.0);
        writeln!(writer, "{line}")
    }
}

impl Json {
    fn line(&self, at: jiff::Timestamp, level: Level, fields: Map<String, Value>) -> Value {
        let mut line = json!({ "timestamp": format!("{at:.3}"), "severity": severity(level) });
        for (tag, value) in &self.tags {
            line[*tag] = json!(value);
        }
        for (name, value) in fields {
            // An event's own words beat the tags.
            line[name] = value;
        }
        line
    }
}

/// Fields of an event with the types that they have.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        // `target` is a word of tracing's own.
        let name = match field.name() {
            "target_name" => "target",
            name => name,
        };
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, json!(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, json!(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, json!(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_stand_beside_the_words_of_the_event() {
        let log = Json {
            tags: BTreeMap::from([
                ("service", "myapp".to_owned()),
                ("version", "v42".to_owned()),
            ]),
        };
        let fields = Map::from_iter([
            ("message".to_owned(), json!("a \"quoted\" word")),
            ("version".to_owned(), json!(7)),
        ]);
        let at: jiff::Timestamp = "2026-11-21T10:00:00.1239Z".parse().unwrap();
        let line = log.line(at, Level::WARN, fields);
        let expected = json!({
            "timestamp": "2026-11-21T10:00:00.123Z", "severity": "WARNING", "service": "myapp",
            "version": 7, "message": "a \"quoted\" word",
        });
        assert_eq!(line, expected);
    }
}
