//! What the copies do not depend on and people do: is the app there? Facts, and a pure verdict on them. A service that is down makes no
//! target unsafe, and a target that is unsafe takes no service down.

use std::time::Duration;

use serde::Serialize;

use super::app::{AppVerdict, Part};
use crate::config::ProbeConfig;
use crate::probe::Answer;
use crate::types::Millis;

/// A certificate that is renewed in time never has so little left: Let's Encrypt's are renewed a month before their end.
const CERTIFICATE_LOW: Duration = Duration::from_secs(14 * 86_400);
/// Beyond its interval and its limit, a busy machine may delay a look by so much.
const LATE_MS: i64 = 60_000;

/// One entry of `probes`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProbeFacts {
    /// Unique name.
    pub name: String,
    /// What is asked, without secrets.
    pub address: String,
    /// Between two looks.
    pub every: Duration,
    /// Limit of one.
    pub timeout: Duration,
    /// When the last one ended.
    pub at: Option<Millis>,
    /// What came of it; `None` before the first.
    pub answer: Option<Answer>,
    /// The end of the certificate that was found good last.
    pub certificate_expires: Option<Millis>,
    /// Since when it is as it is.
    pub since: Option<Millis>,
}

impl ProbeFacts {
    /// Before the first look.
    pub fn new(config: &ProbeConfig) -> Self {
        Self {
            name: config.name.clone(),
            address: config.shown(),
            every: config.every,
            timeout: config.timeout,
            ..Self::default()
        }
    }

    /// Takes in what came of a look.
    pub fn note(&mut self, answer: Answer, changed: bool, now: Millis) {
        self.at = Some(now);
        if changed {
            self.since = Some(now);
        }
        // A certificate that is refused is not shown to us: the last good one says when it ended.
        self.certificate_expires = answer.certificate_expires.or(self.certificate_expires);
        self.answer = Some(answer);
    }
}

/// The verdict on one service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Service {
    /// `probe`, `postgres`, `redis`, `clock`, `volume` or `queue`.
    pub kind: &'static str,
    /// Unique among those of its kind.
    pub name: String,
    /// Where it is, without secrets.
    pub address: String,
    /// `up`, `down`, or `unknown` before the first look and when looks do not end.
    pub state: &'static str,
    /// Since when, RFC 3339; as far as this process has seen.
    pub since: Option<String>,
    /// Why it is not up.
    pub reasons: Vec<String>,
    /// What will be wrong if nobody does anything.
    pub warnings: Vec<String>,
    /// What to do.
    pub hints: Vec<String>,
}

impl Service {
    /// It does what it should.
    pub fn is_up(&self) -> bool {
        self.state == "up"
    }

    /// It does not, or nobody can tell any more.
    pub fn is_bad(&self) -> bool {
        !self.reasons.is_empty()
    }
}

/// A queue of the app, where there is one. What of it is behind a database that cannot be read is that database's fault.
pub fn queue_service(app: &AppVerdict) -> Option<Service> {
    let (state, is_stuck) = match app.queue {
        Part::Ok => ("up", false),
        Part::Stuck => ("down", true),
        Part::Unknown | Part::Failed => ("unknown", false),
        Part::None => return None,
    };
    let when_stuck = |words: &[String]| if is_stuck { words.to_vec() } else { Vec::new() };
    Some(Service {
        kind: "queue",
        name: app.name.clone(),
        address: "Solid Queue".into(),
        state,
        since: None,
        reasons: when_stuck(&app.reasons),
        warnings: Vec::new(),
        hints: when_stuck(&app.hints),
    })
}

/// Why what was seen last says nothing any more, if so.
pub(super) fn stale(at: Millis, every: Duration, limit: Duration, now: Millis) -> Option<String> {
    let allowed = i64::try_from((every + limit).as_millis()).unwrap_or(i64::MAX);
    (now.since(at) > allowed.saturating_add(LATE_MS))
        .then(|| format!("it was looked at last at {at}"))
}

/// Judges one probe.
pub fn probe_verdict(f: &ProbeFacts, now: Millis) -> Service {
    let mut service = Service {
        kind: "probe",
        name: f.name.clone(),
        address: f.address.clone(),
        state: "unknown",
        since: f.since.map(|t| t.to_string()),
        reasons: Vec::new(),
        warnings: Vec::new(),
        hints: Vec::new(),
    };
    let (Some(at), Some(answer)) = (f.at, &f.answer) else {
        return service;
    };
    if let Some(late) = stale(at, f.every, f.timeout, now) {
        service.reasons.push(late);
        let hint = "restart lifeboat, and report it with its log";
        service.hints.push(hint.into());
        return service;
    }
    service.state = if answer.failure.is_none() {
        "up"
    } else {
        "down"
    };
    service.reasons.extend(answer.failure.clone());
    service.hints.extend(answer.hint.clone());
    if let Some(warning) = certificate(f, now) {
        service.warnings.push(warning);
        let hint = "renew the certificate: whatever renews it has stopped";
        service.hints.push(hint.into());
    }
    service
}

/// What to say of a certificate that ends soon.
fn certificate(f: &ProbeFacts, now: Millis) -> Option<String> {
    let end = f.certificate_expires?;
    let low = i64::try_from(CERTIFICATE_LOW.as_millis()).unwrap_or(i64::MAX);
    match end.since(now) {
        left if left < 0 => Some(format!("its certificate ended at {end}")),
        left if left < low => Some(format!("its certificate ends at {end}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_800_000_000_000);
    const DAY: i64 = 86_400_000;

    fn probe(failure: Option<&str>) -> ProbeFacts {
        let mut facts = ProbeFacts {
            name: "app".into(),
            every: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
            ..ProbeFacts::default()
        };
        let answer = Answer {
            failure: failure.map(str::to_owned),
            ..Answer::default()
        };
        facts.note(answer, true, NOW);
        facts
    }

    #[test]
    fn up_down_and_unknown() {
        let up = probe_verdict(&probe(None), NOW);
        assert!(up.is_up() && !up.is_bad() && up.since.is_some(), "{up:?}");
        let down = probe_verdict(&probe(Some("it answered 500")), NOW);
        assert_eq!((down.state, down.is_bad()), ("down", true));
        assert_eq!(down.reasons, ["it answered 500"]);
        let first = probe_verdict(&ProbeFacts::default(), NOW);
        assert_eq!((first.state, first.is_bad()), ("unknown", false));
        // A look that does not end is no good news.
        let later = |s: i64| probe_verdict(&probe(None), Millis(NOW.0 + s * 1000));
        assert!(later(90).is_up());
        let late = later(96);
        assert_eq!((late.state, late.is_bad()), ("unknown", true));
    }

    #[test]
    fn certificates_are_told_before_their_end() {
        let left = |ms: i64| {
            let mut facts = probe(None);
            facts.certificate_expires = Some(Millis(NOW.0 + ms));
            probe_verdict(&facts, NOW)
        };
        assert!(left(14 * DAY).warnings.is_empty());
        let soon = left(14 * DAY - 1);
        assert!(soon.is_up() && soon.warnings[0].contains("ends at"));
        assert!(left(-1).warnings[0].contains("ended at"));
        // The end of the last good one is known when it is refused.
        let mut facts = probe(None);
        facts.certificate_expires = Some(NOW);
        facts.note(Answer::default(), false, NOW);
        assert_eq!(facts.certificate_expires, Some(NOW));
    }
}
