//! Servers that are dumped, as the app finds them: facts, and a pure verdict on them.

use std::time::Duration;

use super::services::{Service, stale};
use crate::postgres::{self, Kind};
use crate::redis;
use crate::types::Millis;

/// What a server said of itself.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// PostgreSQL.
    Postgres(Box<postgres::ServerStats>),
    /// Redis.
    Redis(Box<redis::ServerStats>),
}

/// One entry of `postgres` or `redis`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerFacts {
    /// Which of them.
    pub kind: Kind,
    /// The target's name.
    pub name: String,
    /// Where it is, without user and password.
    pub address: String,
    /// Between two looks.
    pub every: Duration,
    /// Limit of one.
    pub limit: Duration,
    /// When the last look ended that says something of the server.
    pub at: Option<Millis>,
    /// What it said then; `None` if it was not reached.
    pub said: Option<Said>,
    /// Why it was not reached, in words.
    pub failure: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// Since when it is as it is.
    pub since: Option<Millis>,
}

impl ServerFacts {
    /// It answered at the last look; `None` before the first.
    pub fn up(&self) -> Option<bool> {
        self.at.map(|_| self.said.is_some())
    }
}

/// Judges one server.
pub fn server_verdict(f: &ServerFacts, now: Millis) -> Service {
    let mut service = Service {
        kind: f.kind.word(),
        name: f.name.clone(),
        address: f.address.clone(),
        state: "unknown",
        since: f.since.map(|t| t.to_string()),
        reasons: Vec::new(),
        warnings: Vec::new(),
        hints: Vec::new(),
    };
    let Some(at) = f.at else {
        // Its client program is missing, for example: nobody knows.
        service.reasons.extend(f.failure.clone());
        service.hints.extend(f.hint.clone());
        return service;
    };
    if let Some(late) = stale(at, f.every, f.limit, now) {
        service.reasons.push(late);
        let hint = "restart lifeboat, and report it with its log";
        service.hints.push(hint.into());
        return service;
    }
    service.hints.extend(f.hint.clone());
    match &f.said {
        None => {
            service.state = "down";
            let why = f.failure.clone();
            service
                .reasons
                .push(why.unwrap_or_else(|| "no answer".into()));
        }
        Some(said) => {
            service.state = "up";
            service.warnings = warnings(said);
        }
    }
    service
}

fn warnings(said: &Said) -> Vec<String> {
    match said {
        Said::Postgres(_) => Vec::new(),
        Said::Redis(stats) => {
            let is = |key: &str, value: f64| stats.number(key) == Some(value);
            let loading = is("loading", 1.0).then(|| "it is loading its data".to_owned());
            let unsaved = is("rdb_last_bgsave_status", 0.0)
                .then(|| "its last save to disk failed: see its log".to_owned());
            loading.into_iter().chain(unsaved).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_down_and_unknown() {
        let now = Millis(1_800_000_000_000);
        let facts = ServerFacts {
            every: Duration::from_secs(30),
            limit: Duration::from_secs(10),
            ..ServerFacts::default()
        };
        let first = server_verdict(&facts, now);
        assert_eq!((first.state, first.is_bad()), ("unknown", false));
        let down = ServerFacts {
            at: Some(now),
            failure: Some("Connection refused".into()),
            ..facts.clone()
        };
        let down = server_verdict(&down, now);
        assert_eq!((down.state, down.is_bad()), ("down", true));
        assert_eq!(down.reasons, ["Connection refused"]);
        let stats = redis::ServerStats::parse("redis_version:7\nrdb_last_bgsave_status:err\n");
        let up = ServerFacts {
            at: Some(now),
            said: stats.map(|s| Said::Redis(Box::new(s))),
            ..facts
        };
        let judged = server_verdict(&up, now);
        assert_eq!((judged.state, judged.is_bad()), ("up", false));
        assert!(judged.warnings[0].contains("save to disk failed"));
        let late = server_verdict(&up, Millis(now.0 + 101_000));
        assert_eq!((late.state, late.is_bad()), ("unknown", true));
    }
}
