//! From files and environment to checked values.
//!
//! [`load`] finds the configuration, `raw` holds the files as they are written, `build` and `litestream` turn them
//! into a [`Config`], which is valid by construction. Nothing here is changed after loading, and nothing here opens
//! a database: [`discover`] goes by names.

mod build;
mod build_store;
mod build_targets;
mod checked;
mod discover;
mod drill;
mod error;
mod expand;
mod files;
mod insight;
mod litestream;
mod litestream_replica;
mod load;
mod notify;
mod paths;
mod postgres;
mod probe;
mod provider;
mod raw;
mod schema;
mod store;
mod units;
mod values;

#[cfg(test)]
mod bad_files_tests;
#[cfg(test)]
mod litestream_tests;
#[cfg(test)]
mod tests;

pub use checked::{
    Config, ConfigSource, DirConfig, MinFree, RetentionConfig, SqliteOptions, TargetConfig,
};
pub use discover::{Discovery, absent, discover, why_left};
pub use drill::DrillConfig;
pub use error::{ConfigError, Place};
pub use expand::Environment;
pub use files::FilesConfig;
pub use insight::InsightConfig;
pub use load::{LoadArgs, known_variables, load};
pub use notify::{ChannelConfig, NotifyConfig, SmtpConfig, SmtpSecurity};
pub use postgres::{Databases, OnDeploy, Origin, PostgresConfig};
pub use probe::{ProbeConfig, Statuses};
pub use schema::schema;
pub use store::{Secret, StoreConfig, StoreKind};
pub use units::{UnitError, format_duration, parse_duration, parse_size, parse_time};
