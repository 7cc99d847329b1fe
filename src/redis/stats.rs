//! What a server says about itself with INFO. Pure but for [`stats`].

use std::collections::BTreeMap;
use std::path::Path;

use super::Connection;
use super::dump::{failed, say_info};
use crate::postgres::{Clients, PostgresError, Stop};

/// Statistics of a server: the numbers of INFO, and the keys of each database.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerStats {
    /// As the server writes it.
    pub version: String,
    /// By the name in INFO; words that mean yes and no are 1 and 0.
    pub numbers: BTreeMap<String, f64>,
    /// Keys, and those of them that expire, by database (`db0`). Redis has 16 of them unless told otherwise.
    pub keys: BTreeMap<String, (f64, f64)>,
}

impl ServerStats {
    /// From the text of INFO; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let mut found = Self::default();
        for (key, value) in text.lines().filter_map(|l| l.trim().split_once(':')) {
            let number = match value {
                "ok" | "up" => Some(1.0),
                "err" | "down" => Some(0.0),
                value => value.parse().ok().filter(|n: &f64| n.is_finite()),
            };
            if key == "redis_version" {
                value.clone_into(&mut found.version);
            } else if key.strip_prefix("db").is_some_and(is_number) {
                let part = |name: &str| {
                    let mut parts = value.split(',');
                    let part = parts.find_map(|p| p.strip_prefix(name)?.strip_prefix('='));
                    part.and_then(|n| n.parse().ok()).unwrap_or(0.0)
                };
                if found.keys.len() < DATABASES_MAX {
                    found
                        .keys
                        .insert(key.to_owned(), (part("keys"), part("expires")));
                }
            } else if let Some(number) = number {
                found.numbers.insert(key.to_owned(), number);
            }
        }
        (!found.version.is_empty()).then_some(found)
    }

    /// A number of INFO.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.numbers.get(key).copied()
    }
}

/// Databases with metrics of their own.
const DATABASES_MAX: usize = 50;

fn is_number(text: &str) -> bool {
    text.parse::<u32>().is_ok()
}

/// Asks. Blocks until `stop`.
///
/// # Errors
/// [`PostgresError::Failed`] if the server does not answer; [`PostgresError::Client`] without `redis-cli`.
pub fn stats(
    connection: &Connection,
    bin_dir: Option<&Path>,
    stop: &Stop,
) -> Result<ServerStats, PostgresError> {
    let text = say_info(&Clients::any(bin_dir).stopped_by(stop), connection)?;
    ServerStats::parse(&text).ok_or_else(|| failed(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_is_read_and_what_is_none_is_refused() {
        let text = "# Server\r\nredis_version:7.0.15\r\nused_memory:1048576\r\nused_memory_human:1.00M\r\nrdb_last_bgsave_status:err\r\n\
            mem_fragmentation_ratio:nan\r\n# Keyspace\r\ndb0:keys=5,expires=2,avg_ttl=7\r\ndb11:keys=1,expires=0\r\ndbfilename:x\r\n";
        let stats = ServerStats::parse(text).unwrap();
        assert_eq!(stats.version, "7.0.15");
        assert_eq!(stats.number("used_memory"), Some(1_048_576.0));
        assert_eq!(stats.number("used_memory_human"), None);
        assert_eq!(stats.number("mem_fragmentation_ratio"), None);
        assert_eq!(stats.number("rdb_last_bgsave_status"), Some(0.0));
        assert_eq!(stats.keys["db0"], (5.0, 2.0));
        assert_eq!(stats.keys.len(), 2);
        for none in ["", "NOAUTH Authentication required.", "-ERR x"] {
            assert_eq!(ServerStats::parse(none), None);
        }
        let many: String = (0..1000).map(|n| format!("db{n}:keys=1\n")).collect();
        let many = ServerStats::parse(&format!("redis_version:7\n{many}")).unwrap();
        assert_eq!(many.keys.len(), DATABASES_MAX);
    }
}
