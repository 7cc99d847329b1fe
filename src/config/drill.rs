//! `drill`: when backups are restored to prove them, and where.

use std::path::PathBuf;

use serde_json::{Value, json};
use serde_saphyr::Spanned;

use super::build::Builder;
use super::checked::show_path;
use super::error::ConfigError;
use super::expand::Text;
use super::paths;
use super::raw::{RawDrill, ScalarOr};

/// Drills of every target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrillConfig {
    /// When, as a cron expression; `None`: only by hand.
    pub schedule: Option<String>,
    /// Folder for restored copies; in the state directory if `None`.
    pub scratch_dir: Option<PathBuf>,
}

impl Builder<'_, '_> {
    pub(super) fn drill_of(
        &self,
        raw: Spanned<ScalarOr<RawDrill>>,
    ) -> Result<DrillConfig, ConfigError> {
        let v = self.values;
        let raw_drill = match raw.value {
            ScalarOr::Scalar(text) => RawDrill {
                schedule: Some(Text::new(text, raw.referenced, raw.defined)),
                ..RawDrill::default()
            },
            ScalarOr::Map(map) => map,
        };
        let schedule = match raw_drill.schedule {
            Some(text) => {
                let expr = v.text("schedule", &text)?;
                crate::schedule::Schedule::parse(&expr, &jiff::tz::TimeZone::UTC)
                    .map_err(|e| v.invalid("schedule", &text, e.to_string()))?;
                Some(expr)
            }
            None => None,
        };
        let scratch_dir = match raw_drill.scratch_dir {
            Some(text) => Some(paths::resolved(
                v.text("scratch-dir", &text)?.as_ref(),
                v.host,
            )),
            None => None,
        };
        Ok(DrillConfig {
            schedule,
            scratch_dir,
        })
    }
}

/// For `config show`.
pub(super) fn show_drill(drill: &DrillConfig) -> Value {
    json!({
        "schedule": drill.schedule,
        "scratch-dir": drill.scratch_dir.as_deref().map(show_path),
    })
}
