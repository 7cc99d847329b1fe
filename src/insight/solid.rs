//! Solid Queue, Solid Cache and Solid Cable: one set of questions for SQLite and PostgreSQL. Pure.
//!
//! The tables are those that Rails 8 makes; each question leans on an index of theirs, or reads few rows. What could be large:
//! - ready jobs are counted exactly, through the index by queue: a million takes longer than a look may, and has no count then;
//! - scheduled, blocked, claimed and failed jobs are counted by queue among the oldest [`COUNTED`];
//! - Solid Cache spreads its keys evenly by a hash of 64 bits. Of more than [`SAMPLE`] entries that many neighbours are read, and the part
//!   of the hash space that they fill tells how many there are in all (to about one percent), and how many bytes;
//! - messages of Solid Cable are numbered without holes, so beyond [`SAMPLE`] the numbers of the first and the last tell.

use std::collections::{BTreeMap, BTreeSet};

use crate::observe::insight::{AppFacts, CableFacts, Jobs, QueueFacts};
use crate::types::Millis;

/// Jobs of one kind that are looked at to count them by queue.
pub const COUNTED: u64 = 10_000;
/// Neighbours in the hash space that stand for all of them, and messages that are counted one by one.
pub const SAMPLE: u64 = 10_000;
/// Queues with metrics of their own; an app that makes a queue for each of its customers must not make a series for each.
const QUEUES_MAX: usize = 40;
/// What the other queues are together.
pub const OTHER_QUEUES: &str = "(other)";
/// Characters of a name.
const NAME_MAX: usize = 100;

/// Names of the tables, to look for.
pub const TABLES: [&str; 9] = [
    "solid_queue_jobs",
    "solid_queue_ready_executions",
    "solid_queue_scheduled_executions",
    "solid_queue_blocked_executions",
    "solid_queue_claimed_executions",
    "solid_queue_failed_executions",
    "solid_queue_processes",
    "solid_cache_entries",
    "solid_cable_messages",
];

/// Something to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    /// Since when the oldest ready job of a queue that is not paused waits.
    OldestReady,
    /// When the next scheduled job is due.
    NextScheduled,
    /// Processes and their heartbeats.
    Processes,
    /// Queues that were paused.
    Paused,
    /// Jobs of one kind, by queue.
    Count(Jobs),
    /// Entries and bytes of the cache.
    CacheSize,
    /// Its oldest entry.
    CacheOldest,
    /// Messages of the cable.
    Cable,
}

impl Question {
    /// What matters most first: the time for all of them may not suffice.
    pub const ALL: [Self; 12] = [
        Self::OldestReady,
        Self::NextScheduled,
        Self::Processes,
        Self::Paused,
        Self::CacheOldest,
        Self::CacheSize,
        Self::Cable,
        Self::Count(Jobs::Ready),
        Self::Count(Jobs::Claimed),
        Self::Count(Jobs::Blocked),
        Self::Count(Jobs::Scheduled),
        Self::Count(Jobs::Failed),
    ];

    /// Asked where this table is.
    pub fn table(self) -> &'static str {
        match self {
            Self::OldestReady | Self::Paused | Self::Count(Jobs::Ready) => {
                "solid_queue_ready_executions"
            }
            Self::NextScheduled | Self::Count(Jobs::Scheduled) => {
                "solid_queue_scheduled_executions"
            }
            Self::Processes => "solid_queue_processes",
            Self::Count(Jobs::Blocked) => "solid_queue_blocked_executions",
            Self::Count(Jobs::Claimed) => "solid_queue_claimed_executions",
            Self::Count(Jobs::Failed) => "solid_queue_failed_executions",
            Self::CacheSize | Self::CacheOldest => "solid_cache_entries",
            Self::Cable => "solid_cable_messages",
        }
    }

    /// SQL that SQLite and PostgreSQL read alike; every time as text, in UTC as Rails stores it.
    pub fn sql(self) -> &'static str {
        match self {
            Self::OldestReady => {
                "SELECT CAST(created_at AS text) FROM solid_queue_ready_executions
                 WHERE queue_name NOT IN (SELECT queue_name FROM solid_queue_pauses) ORDER BY id LIMIT 1"
            }
            Self::NextScheduled => {
                "SELECT CAST(scheduled_at AS text) FROM solid_queue_scheduled_executions
                 ORDER BY scheduled_at, priority, job_id LIMIT 1"
            }
            Self::Processes => {
                "SELECT kind, CAST(last_heartbeat_at AS text) FROM solid_queue_processes
                 ORDER BY last_heartbeat_at DESC LIMIT 1000"
            }
            Self::Paused => "SELECT queue_name FROM solid_queue_pauses ORDER BY queue_name LIMIT 1000",
            Self::Count(Jobs::Ready) => {
                "SELECT queue_name, count(*) FROM solid_queue_ready_executions GROUP BY queue_name
                 ORDER BY count(*) DESC LIMIT 1000"
            }
            Self::Count(Jobs::Scheduled) => {
                "SELECT queue_name, count(*) FROM
                 (SELECT queue_name FROM solid_queue_scheduled_executions ORDER BY id LIMIT 10000) e
                 GROUP BY queue_name ORDER BY count(*) DESC LIMIT 1000"
            }
            Self::Count(Jobs::Blocked) => {
                "SELECT queue_name, count(*) FROM
                 (SELECT queue_name FROM solid_queue_blocked_executions ORDER BY id LIMIT 10000) e
                 GROUP BY queue_name ORDER BY count(*) DESC LIMIT 1000"
            }
            Self::Count(Jobs::Claimed) => {
                "SELECT j.queue_name, count(*) FROM
                 (SELECT job_id FROM solid_queue_claimed_executions ORDER BY job_id LIMIT 10000) e
                 JOIN solid_queue_jobs j ON j.id = e.job_id
                 GROUP BY j.queue_name ORDER BY count(*) DESC LIMIT 1000"
            }
            Self::Count(Jobs::Failed) => {
                "SELECT j.queue_name, count(*) FROM
                 (SELECT job_id FROM solid_queue_failed_executions ORDER BY job_id LIMIT 10000) e
                 JOIN solid_queue_jobs j ON j.id = e.job_id
                 GROUP BY j.queue_name ORDER BY count(*) DESC LIMIT 1000"
            }
            Self::CacheSize => {
                "SELECT count(*), sum(byte_size), max(key_hash) FROM
                 (SELECT key_hash, byte_size FROM solid_cache_entries ORDER BY key_hash LIMIT 10000) s"
            }
            Self::CacheOldest => {
                "SELECT CAST(created_at AS text) FROM solid_cache_entries ORDER BY id LIMIT 1"
            }
            Self::Cable => {
                "SELECT count(*), CAST(min(created_at) AS text),
                 (SELECT max(id) FROM solid_cable_messages) - (SELECT min(id) FROM solid_cable_messages) + 1
                 FROM (SELECT created_at FROM solid_cable_messages ORDER BY created_at LIMIT 10000) m"
            }
        }
    }
}

/// What to ask a database that has these tables, the most important first.
fn questions(tables: &BTreeSet<String>) -> Vec<Question> {
    let there = |q: &Question| tables.contains(q.table());
    Question::ALL.into_iter().filter(there).collect()
}

/// One answer: rows of values as text, `None` for NULL.
pub type Rows = Vec<Vec<Option<String>>>;
type Answer = [Vec<Option<String>>];
type Queues = BTreeMap<String, BTreeMap<Jobs, u64>>;

/// Asks a database that has these tables everything, and keeps what is answered. `None`: the question has no answer now, because that took too
/// long, or the table is another's.
pub fn read<E>(
    facts: &mut AppFacts,
    tables: &BTreeSet<String>,
    mut ask: impl FnMut(Question) -> Result<Option<Rows>, E>,
) -> Result<(), E> {
    for question in questions(tables) {
        match ask(question)? {
            Some(rows) => take(facts, question, &rows),
            None => facts.given_up += 1,
        }
    }
    if let Some(queue) = &mut facts.queue {
        bound(&mut queue.queues);
    }
    Ok(())
}

/// Keeps the names of the queues with the most jobs.
fn bound(queues: &mut Queues) {
    if queues.len() <= QUEUES_MAX {
        return;
    }
    let mut all: Vec<_> = std::mem::take(queues).into_iter().collect();
    all.sort_by_key(|(_, counts)| std::cmp::Reverse(counts.values().sum::<u64>()));
    let rest = all.split_off(QUEUES_MAX);
    queues.extend(all);
    let others = queues.entry(OTHER_QUEUES.to_owned()).or_default();
    for (jobs, count) in rest.into_iter().flat_map(|(_, counts)| counts) {
        *others.entry(jobs).or_default() += count;
    }
}

fn take(facts: &mut AppFacts, question: Question, rows: &Answer) {
    match question {
        Question::OldestReady => queue(facts).oldest_ready = Some(time(rows, 0)),
        Question::NextScheduled => queue(facts).next_scheduled = Some(time(rows, 0)),
        Question::Processes => {
            let all = queue(facts).processes.get_or_insert_default();
            for row in rows {
                let (Some(kind), Some(at)) = (text(row, 0), text(row, 1).and_then(parse)) else {
                    continue;
                };
                // Of a few kinds, and of a bounded number of processes.
                all.entry(name(kind)).or_default().push(at);
            }
        }
        Question::Paused => {
            let names = rows.iter().filter_map(|row| text(row, 0));
            queue(facts).paused = names.map(name).take(QUEUES_MAX).collect();
        }
        Question::Count(jobs) => {
            let queue = queue(facts);
            queue.counted.insert(jobs);
            for row in rows {
                let Some(name_of) = text(row, 0) else {
                    continue;
                };
                let count = number(row, 1).and_then(|n| u64::try_from(n).ok());
                let counts = queue.queues.entry(name(name_of)).or_default();
                *counts.entry(jobs).or_default() += count.unwrap_or(0);
            }
        }
        Question::CacheSize => {
            let row = rows.first().map_or(&[][..], Vec::as_slice);
            let (entries, bytes) = (number(row, 0).unwrap_or(0), number(row, 1).unwrap_or(0));
            let part = match number(row, 2) {
                Some(hash) if entries >= i128::from(SAMPLE) => filled(hash),
                _ => 1.0,
            };
            let cache = facts.cache.get_or_insert_default();
            cache.entries = Some(scaled(entries, part));
            cache.bytes = Some(scaled(bytes, part));
        }
        Question::CacheOldest => {
            facts.cache.get_or_insert_default().oldest = Some(time(rows, 0));
        }
        Question::Cable => {
            let row = rows.first().map_or(&[][..], Vec::as_slice);
            let counted = number(row, 0).unwrap_or(0);
            let numbered = number(row, 2).unwrap_or(0);
            let messages = if counted >= i128::from(SAMPLE) {
                counted.max(numbered)
            } else {
                counted
            };
            facts.cable = Some(CableFacts {
                messages: u64::try_from(messages).unwrap_or(0),
                oldest: text(row, 1).and_then(parse),
            });
        }
    }
}

fn queue(facts: &mut AppFacts) -> &mut QueueFacts {
    facts.queue.get_or_insert_default()
}

/// The part of the space of signed 64-bit hashes that lies below `hash`.
fn filled(hash: i128) -> f64 {
    let space = 2.0_f64.powi(64);
    ((hash - i128::from(i64::MIN)) as f64 / space).clamp(1.0 / space, 1.0)
}

fn scaled(sampled: i128, part: f64) -> u64 {
    let all = (sampled as f64 / part).round();
    // `as` saturates, and there is nothing below zero to show.
    all.max(0.0) as u64
}

fn text(row: &[Option<String>], column: usize) -> Option<&str> {
    row.get(column)?.as_deref()
}

/// A sum of PostgreSQL may be wider than 64 bits.
fn number(row: &[Option<String>], column: usize) -> Option<i128> {
    text(row, column)?.parse().ok()
}

fn time(rows: &Answer, column: usize) -> Option<Millis> {
    parse(text(rows.first()?, column)?)
}

fn name(text: &str) -> String {
    text.chars().take(NAME_MAX).collect()
}

/// Rails stores UTC without saying so; `timestamptz` says it.
fn parse(text: &str) -> Option<Millis> {
    let with_offset = text.parse::<jiff::Timestamp>();
    let at = with_offset.or_else(|_| {
        let civil: jiff::civil::DateTime = text.parse()?;
        Ok::<_, jiff::Error>(civil.to_zoned(jiff::tz::TimeZone::UTC)?.timestamp())
    });
    Some(Millis(at.ok()?.as_millisecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[&[&str]]) -> Vec<Vec<Option<String>>> {
        let row = |r: &&[&str]| r.iter().map(|v| Some((*v).to_owned())).collect();
        rows.iter().map(row).collect()
    }

    #[test]
    fn times_of_both_databases() {
        let at = Some(Millis(1_795_262_400_123));
        assert_eq!(parse("2026-11-21 12:00:00.123456"), at);
        assert_eq!(parse("2026-11-21 12:00:00.123456+00"), at);
        assert_eq!(parse("2026-11-21 13:00:00.123456+01"), at);
        assert_eq!(parse("2026-11-21T12:00:00.123Z"), at);
        assert_eq!(parse("soon"), None);
    }

    /// An app with a queue for each customer makes no series for each, and nothing is left out of the sums.
    #[test]
    fn names_are_bounded_and_sums_are_whole() {
        let names: Vec<String> = (0..500).map(|i| format!("customer-{i}")).collect();
        let many: Vec<Vec<Option<String>>> = names
            .iter()
            .map(|n| vec![Some(n.clone()), Some("3".into())])
            .collect();
        let failed = rows(&[&["customer-0", "7"], &["new", "900"]]);
        let tables = TABLES.map(str::to_owned).into();
        let mut facts = AppFacts::default();
        let answer = |question| {
            Ok::<_, ()>(match question {
                Question::Count(Jobs::Ready) => Some(many.clone()),
                Question::Count(Jobs::Failed) => Some(failed.clone()),
                _ => None,
            })
        };
        read(&mut facts, &tables, answer).unwrap();
        assert_eq!(facts.given_up, 10);
        let queue = facts.queue.unwrap();
        assert_eq!(queue.queues.len(), QUEUES_MAX + 1);
        let sum = |jobs: Jobs| -> u64 { queue.queues.values().filter_map(|q| q.get(&jobs)).sum() };
        assert_eq!((sum(Jobs::Ready), sum(Jobs::Failed)), (1_500, 907));
        assert_eq!(queue.queues["customer-0"][&Jobs::Failed], 7);
        assert_eq!(
            queue.queues["new"][&Jobs::Failed],
            900,
            "the largest keep their names"
        );
        assert!(queue.queues[OTHER_QUEUES][&Jobs::Ready] > 1_000);
    }

    #[test]
    fn a_sample_stands_for_the_whole_cache() {
        let mut facts = AppFacts::default();
        let few = rows(&[&["3", "900", "5"]]);
        take(&mut facts, Question::CacheSize, &few);
        let cache = facts.cache.clone().unwrap();
        assert_eq!((cache.entries, cache.bytes), (Some(3), Some(900)));
        // A quarter of the hash space holds 10,000: all of it holds 40,000.
        let quarter = (i64::MIN / 2).to_string();
        let many = rows(&[&["10000", "5000000", &quarter]]);
        take(&mut facts, Question::CacheSize, &many);
        let cache = facts.cache.unwrap();
        assert_eq!(
            (cache.entries, cache.bytes),
            (Some(40_000), Some(20_000_000))
        );
        // Nothing in it.
        let mut facts = AppFacts::default();
        let empty = vec![vec![Some("0".to_owned()), None, None]];
        take(&mut facts, Question::CacheSize, &empty);
        assert_eq!(facts.cache.unwrap().entries, Some(0));
    }

    #[test]
    fn messages_are_counted_and_then_numbered() {
        let mut facts = AppFacts::default();
        take(
            &mut facts,
            Question::Cable,
            &rows(&[&["12", "2026-11-21 12:00:00", "400"]]),
        );
        let cable = facts.cable.clone().unwrap();
        assert_eq!(
            (cable.messages, cable.oldest),
            (12, Some(Millis(1_795_262_400_000)))
        );
        take(
            &mut facts,
            Question::Cable,
            &rows(&[&["10000", "2026-11-21 12:00:00", "400000"]]),
        );
        assert_eq!(facts.cable.unwrap().messages, 400_000);
    }

    #[test]
    fn only_what_is_there_is_asked() {
        let tables: BTreeSet<String> = ["solid_cache_entries".to_owned()].into();
        let all = [Question::CacheOldest, Question::CacheSize];
        assert_eq!(questions(&tables), all);
        assert!(questions(&BTreeSet::new()).is_empty());
        for question in Question::ALL {
            assert!(TABLES.contains(&question.table()), "{question:?}");
        }
    }
}
