//! What is told: kinds, phases, words.

use serde::{Deserialize, Serialize};

use crate::types::Millis;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A target is not safe.
    Unsafe,
    /// A dump failed, of PostgreSQL or Redis.
    DumpFailed,
    /// A backup of files failed or was not complete.
    FilesFailed,
    /// A drill failed.
    DrillFailed,
    /// A dump looks odd beside the one before it.
    SizeAnomaly,
    /// A volume is nearly full.
    DiskLow,
    /// Another instance owns the replica.
    Ownership,
    /// The app's database cannot be read.
    DatabaseDown,
    /// Jobs of the app wait, and nobody takes them.
    QueueStuck,
    /// A store cannot be reached, or refuses.
    StoreUnreachable,
    /// Retention deletes nothing because something is wrong.
    Retention,
    /// The app does not answer as it should.
    AppDown,
    /// A certificate of the app ends soon.
    Certificate,
    /// The clock of this host was set.
    Clock,
    /// A labelled snapshot was taken, or failed.
    Snapshot,
    /// A target has its first complete copy.
    FirstSuccess,
    /// What had a copy is no target any more.
    Gone,
    /// `lifeboat notify test`.
    Test,
}

impl Kind {
    /// Everything that can be chosen.
    pub const ALL: [Kind; 17] = [
        Self::Unsafe,
        Self::DumpFailed,
        Self::FilesFailed,
        Self::DrillFailed,
        Self::SizeAnomaly,
        Self::DiskLow,
        Self::Ownership,
        Self::DatabaseDown,
        Self::QueueStuck,
        Self::StoreUnreachable,
        Self::Retention,
        Self::AppDown,
        Self::Certificate,
        Self::Clock,
        Self::Snapshot,
        Self::FirstSuccess,
        Self::Gone,
    ];

    /// The word in the configuration and in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unsafe => "unsafe",
            Self::DumpFailed => "dump-failed",
            Self::FilesFailed => "files-failed",
            Self::DrillFailed => "drill-failed",
            Self::SizeAnomaly => "size-anomaly",
            Self::DiskLow => "disk-low",
            Self::Ownership => "ownership",
            Self::DatabaseDown => "database-down",
            Self::QueueStuck => "queue-stuck",
            Self::StoreUnreachable => "store-unreachable",
            Self::Retention => "retention",
            Self::AppDown => "app-down",
            Self::Certificate => "certificate",
            Self::Clock => "clock",
            Self::Snapshot => "snapshot",
            Self::FirstSuccess => "first-success",
            Self::Gone => "gone",
            Self::Test => "test",
        }
    }

    /// The kind of a word.
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.word() == word)
    }

    /// What holds while it lasts, and what when it is over.
    fn words(self, subject: &str, over: bool) -> String {
        let (lasts, ended) = match self {
            Self::Unsafe => ("{} is not safe", "{} is safe again"),
            Self::DumpFailed => ("dumps of {} fail", "dumps of {} work again"),
            Self::FilesFailed => (
                "backups of the files {} are not complete",
                "backups of the files {} are complete again",
            ),
            Self::DrillFailed => ("the drill of {} failed", "the drill of {} passed again"),
            Self::SizeAnomaly => (
                "the newest dump of {} looks odd",
                "the newest dump of {} looks as it should again",
            ),
            Self::DiskLow => (
                "the volume of {} is nearly full",
                "the volume of {} has room again",
            ),
            Self::Ownership => (
                "{} belongs to another instance: nothing is uploaded",
                "{} is uploaded again",
            ),
            Self::DatabaseDown => (
                "the database {} cannot be read",
                "the database {} can be read again",
            ),
            Self::QueueStuck => ("the queue in {} is stuck", "the queue in {} moves again"),
            Self::StoreUnreachable => ("uploads of {} fail", "uploads of {} work again"),
            Self::Retention => (
                "retention of {} deletes nothing",
                "retention of {} works again",
            ),
            Self::AppDown => (
                "{} does not answer as it should",
                "{} answers as it should again",
            ),
            Self::Certificate => (
                "the certificate of {} ends soon",
                "the certificate of {} was renewed",
            ),
            Self::Clock => (
                "the {} of the host was set",
                "the {} of the host was not set again",
            ),
            Self::Snapshot => ("snapshot {}", "snapshot {}"),
            Self::FirstSuccess => ("{} has its first complete copy", ""),
            Self::Gone => ("{} is not kept any more", ""),
            Self::Test => ("a test from {}: notifications arrive", ""),
        };
        if over { ended } else { lasts }.replace("{}", subject)
    }
}

/// Where in its life an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It began.
    Started,
    /// It still lasts.
    Reminder,
    /// It is over.
    Ended,
    /// It happened once.
    Once,
}

/// One thing to tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// What.
    pub kind: Kind,
    /// Begin, reminder or end.
    pub phase: Phase,
    /// Target, folder or label.
    pub subject: String,
    /// In one sentence.
    pub title: String,
    /// Why, in words.
    pub reasons: Vec<String>,
    /// What to do.
    pub hints: Vec<String>,
    /// Since when.
    #[serde(with = "rfc3339")]
    pub since: Millis,
}

impl Event {
    /// One that holds, or is over.
    pub fn new(kind: Kind, phase: Phase, subject: &str, since: Millis) -> Self {
        Self {
            kind,
            phase,
            subject: subject.to_owned(),
            title: kind.words(subject, phase == Phase::Ended),
            reasons: Vec::new(),
            hints: Vec::new(),
            since,
        }
    }

    /// What had a copy is no target any more, since then.
    pub fn gone(subject: &str, since: Millis) -> Self {
        Self {
            reasons: vec![
                "it is not found any more, or the configuration does not name it: nothing new of it is kept; what was copied stays in the store".into(),
            ],
            hints: vec![format!(
                "if nobody meant that: is its volume mounted, does its server have it? `lifeboat restore {subject}` brings it back"
            )],
            ..Self::new(Kind::Gone, Phase::Once, subject, since)
        }
    }

    /// The word that a line begins with.
    pub fn mark(&self) -> &'static str {
        match (self.phase, self.kind) {
            (Phase::Started, _) => "PROBLEM",
            (Phase::Reminder, _) => "STILL",
            (Phase::Ended, _) => "OK",
            (Phase::Once, _) if self.is_bad() => "PROBLEM",
            (Phase::Once, _) => "INFO",
        }
    }

    /// Somebody has to do something.
    pub fn is_bad(&self) -> bool {
        match self.phase {
            Phase::Started | Phase::Reminder => true,
            Phase::Ended => false,
            Phase::Once => !self.reasons.is_empty(),
        }
    }
}

/// What goes out together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// Unique: a receiver that gets one twice knows it by this.
    pub id: String,
    /// When it was put together.
    #[serde(with = "rfc3339")]
    pub at: Millis,
    /// At least one.
    pub events: Vec<Event>,
}

/// Times as text in JSON, for people and programs alike.
mod rfc3339 {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::types::Millis;

    pub(super) fn serialize<S: Serializer>(at: &Millis, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(at)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Millis, D::Error> {
        let text = String::deserialize(from)?;
        let at: jiff::Timestamp = text.parse().map_err(serde::de::Error::custom)?;
        Ok(Millis(at.as_millisecond()))
    }
}
