use super::*;
use crate::notify::conditions::Condition;

const MINUTE: i64 = 60_000;

fn rules() -> Rules {
    Rules {
        kinds: None,
        after: Duration::from_secs(120),
        remind: Duration::from_secs(3600),
    }
}

fn seen(minute: i64, red: bool) -> Seen {
    let mut seen = Seen {
        now: Millis(minute * MINUTE),
        present: BTreeSet::from(["app".to_owned()]),
        ..Seen::default()
    };
    if red {
        let condition = Condition {
            kind: Kind::Unsafe,
            subject: "app".into(),
            reasons: vec!["lag".into()],
            hints: vec![],
            patience: Duration::ZERO,
        };
        seen.conditions.insert("unsafe app".into(), condition);
    }
    seen
}

/// Steps through moments; the phases that were told, with their minute.
fn told(ledger: &mut Ledger, moments: impl IntoIterator<Item = (i64, bool)>) -> Vec<(i64, Phase)> {
    let mut told = Vec::new();
    for (minute, red) in moments {
        ledger.step(&seen(minute, red), &rules(), || format!("{minute}"));
        while let Some(batch) = ledger.due(Millis(i64::MAX / 2)).cloned() {
            told.extend(batch.events.iter().map(|e| (minute, e.phase)));
            ledger.delivered();
        }
    }
    told
}

#[test]
fn once_when_it_starts_reminders_and_once_when_it_ends() {
    let red = (1..=130).map(|m| (m, true));
    let green = (131..=140).map(|m| (m, false));
    let told = told(&mut Ledger::default(), red.chain(green));
    let expected = [
        (3, Phase::Started),
        (63, Phase::Reminder),
        (123, Phase::Reminder),
        (132, Phase::Ended),
    ];
    assert_eq!(told, expected);
}

#[test]
fn short_troubles_and_flapping_are_not_told() {
    // On and off each minute is one trouble.
    let flapping = (0..60).map(|m| (m, m % 2 == 0));
    assert_eq!(
        told(&mut Ledger::default(), flapping),
        [(2, Phase::Started)]
    );
    let short = (0..100).map(|m| (m, m % 10 == 0));
    assert_eq!(told(&mut Ledger::default(), short), []);
}

#[test]
fn a_restart_neither_repeats_nor_ends_what_lasts() {
    let mut ledger = Ledger::default();
    assert_eq!(told(&mut ledger, (0..10).map(|m| (m, true))).len(), 1);
    let kept = serde_json::to_string(&ledger).unwrap();
    let mut ledger: Ledger = serde_json::from_str(&kept).unwrap();
    ledger.resumed(Millis(30 * MINUTE));
    // Nothing is known in the first minute.
    assert_eq!(told(&mut ledger, [(30, false), (31, true), (32, true)]), []);
    assert_eq!(
        told(&mut ledger, [(33, false), (35, false)]),
        [(35, Phase::Ended)]
    );
}

#[test]
fn a_clock_that_is_set_back_tells_within_the_usual_time() {
    let mut ledger = Ledger::default();
    assert_eq!(told(&mut ledger, (1000..1010).map(|m| (m, true))).len(), 1);
    assert_eq!(
        told(&mut ledger, (10..14).map(|m| (m, false))),
        [(12, Phase::Ended)]
    );
    let mut ledger = Ledger::default();
    ledger.step(&seen(1000, true), &rules(), String::new);
    assert_eq!(
        told(&mut ledger, (10..14).map(|m| (m, true))),
        [(12, Phase::Started)]
    );
    ledger.step(&seen(2000, false), &rules(), String::new);
    ledger.failed(Millis(2000 * MINUTE), false);
    ledger.step(&seen(10, true), &rules(), String::new);
}

#[test]
fn tries_are_bounded_and_so_is_the_outbox() {
    let mut ledger = Ledger::default();
    for minute in 0..500 {
        ledger.step(&seen(minute * 100, minute % 2 == 0), &rules(), String::new);
        ledger.step(
            &seen(minute * 100 + 50, minute % 2 == 0),
            &rules(),
            String::new,
        );
        ledger.overflow();
    }
    assert_eq!(ledger.pending(), OUTBOX);
    let mut now = 0;
    for _ in 0..TRIES {
        assert!(ledger.due(Millis(now)).is_some());
        assert_eq!(ledger.failed(Millis(now), false), Tried::Later);
        assert!(ledger.due(Millis(now)).is_none());
        assert!(
            ledger.next_try - now <= 3_600_000,
            "it hears of it within the hour"
        );
        now = ledger.next_try;
    }
    assert!((20..=26).contains(&(now / 3_600_000)), "for a day");
    assert_eq!(ledger.failed(Millis(now), false), Tried::GaveUp);
    assert_eq!(ledger.pending(), OUTBOX - 1);
    let begun = now;
    for _ in 0..TRIES_REFUSED {
        assert_eq!(ledger.failed(Millis(now), true), Tried::Later);
        now = ledger.next_try;
    }
    assert!(now - begun < 10 * MINUTE);
    assert_eq!(ledger.failed(Millis(now), true), Tried::GaveUp);
}

#[test]
fn a_first_copy_is_told_once_and_only_what_is_wanted() {
    let mut moment = seen(1, true);
    moment.copied.insert("app".into());
    let mut ledger = Ledger::default();
    assert!(ledger.step(&moment, &rules(), String::new));
    assert!(!ledger.step(&moment, &rules(), String::new));
    assert_eq!(
        ledger.due(moment.now).unwrap().events[0].kind,
        Kind::FirstSuccess
    );
    let only = Rules {
        kinds: Some(BTreeSet::from([Kind::DiskLow])),
        ..rules()
    };
    let mut ledger = Ledger::default();
    for minute in 0..10 {
        ledger.step(
            &Seen {
                now: Millis(minute * MINUTE),
                ..moment.clone()
            },
            &only,
            String::new,
        );
    }
    assert_eq!(ledger.pending(), 0);
}

/// The moment after a message that waits for its next try.
#[test]
fn news_does_not_wait_for_the_next_try_of_what_is_old() {
    let mut ledger = Ledger::default();
    let told = |ledger: &mut Ledger, minute: i64| {
        ledger.step(&seen(minute, true), &rules(), String::new);
        ledger.step(&seen(minute + 3, true), &rules(), String::new);
    };
    told(&mut ledger, 0);
    let mut now = 3 * MINUTE;
    for _ in 0..8 {
        now = ledger.next_try.max(now);
        ledger.failed(Millis(now), false);
    }
    let planned = ledger.next_try;
    assert_eq!(planned - now, 3_600_000);
    // Something else begins: an hour is too long for it.
    let mut other = seen(0, true);
    other.now = Millis(now + MINUTE);
    let condition = other.conditions.remove("unsafe app").unwrap();
    let condition = Condition {
        kind: Kind::DiskLow,
        subject: "/data".into(),
        ..condition
    };
    other.conditions.insert("disk".into(), condition);
    ledger.step(&other, &rules(), String::new);
    other.now = Millis(now + 4 * MINUTE);
    assert!(ledger.step(&other, &rules(), String::new));
    let soon = Millis(now + 5 * MINUTE);
    assert!(ledger.due(soon).is_some());
    // Once, and it costs none of the tries that were planned.
    let tries = ledger.tries;
    assert_eq!(ledger.failed(soon, false), Tried::Later);
    assert!(ledger.due(soon).is_none());
    assert_eq!((ledger.tries, ledger.next_try), (tries, planned));
}

fn with(mut moment: Seen, key: &str, kind: Kind) -> Seen {
    let condition = Condition {
        kind,
        subject: "app".into(),
        reasons: vec!["another".into()],
        hints: vec![],
        patience: Duration::ZERO,
    };
    moment.conditions.insert(key.into(), condition);
    moment
}

fn phases(ledger: &mut Ledger, moment: &Seen) -> Vec<(Kind, Phase)> {
    let mut told = Vec::new();
    ledger.step(moment, &rules(), String::new);
    while let Some(batch) = ledger.due(Millis(i64::MAX / 2)).cloned() {
        told.extend(batch.events.iter().map(|e| (e.kind, e.phase)));
        ledger.delivered();
    }
    told
}

/// Of two stores one works again; of a first copy that did not come, an upload fails: nothing is safe again by that.
#[test]
fn nothing_is_over_while_the_same_lasts_for_another_reason() {
    let mut ledger = Ledger::default();
    let mut all = Vec::new();
    for minute in 0..10 {
        all.extend(phases(&mut ledger, &seen(minute, true)));
    }
    assert_eq!(all, [(Kind::Unsafe, Phase::Started)]);
    let mut all = Vec::new();
    for minute in 10..30 {
        let moment = with(seen(minute, false), "unsafe first app", Kind::Unsafe);
        all.extend(phases(&mut ledger, &moment));
    }
    assert_eq!(all, [(Kind::Unsafe, Phase::Started)], "news, and no end");
    let mut all = Vec::new();
    for minute in 30..40 {
        all.extend(phases(&mut ledger, &seen(minute, false)));
    }
    assert_eq!(all, [(Kind::Unsafe, Phase::Ended)], "once");
    assert!(!ledger.is_open());
}

/// After a restart a dump that failed has not been tried again yet: nobody knows that dumps work.
#[test]
fn what_is_not_known_yet_is_not_over() {
    let mut ledger = Ledger::default();
    for minute in 0..10 {
        let moment = with(seen(minute, false), "dump", Kind::DumpFailed);
        phases(&mut ledger, &moment);
    }
    let kept = serde_json::to_string(&ledger).unwrap();
    let mut ledger: Ledger = serde_json::from_str(&kept).unwrap();
    ledger.resumed(Millis(10 * MINUTE));
    let mut unsure = seen(10, false);
    unsure.unsure.insert((Kind::DumpFailed, "app".into()));
    for minute in 10..60 {
        unsure.now = Millis(minute * MINUTE);
        assert_eq!(phases(&mut ledger, &unsure), []);
    }
    assert!(ledger.is_open());
    assert_eq!(
        phases(&mut ledger, &seen(60, false)),
        [(Kind::DumpFailed, Phase::Ended)]
    );
}

/// A database that was found in a folder is gone, also if that happened while nobody ran: it is told once.
#[test]
fn a_target_that_is_gone_is_told_once() {
    let mut ledger = Ledger::default();
    let mut both = seen(0, false);
    for name in ["app", "tenant", "pg", "pg/one"] {
        both.present.insert(name.into());
        both.copied.insert(name.into());
    }
    phases(&mut ledger, &both);
    let kept = serde_json::to_string(&ledger).unwrap();
    let mut ledger: Ledger = serde_json::from_str(&kept).unwrap();
    ledger.resumed(Millis(MINUTE));
    // Nothing was seen.
    let blind = Seen {
        now: Millis(MINUTE),
        ..Seen::default()
    };
    assert_eq!(phases(&mut ledger, &blind), []);
    let without = |minute: i64| {
        let mut moment = seen(minute, false);
        // A server that does not answer says nothing of its databases.
        moment.present.insert("pg".into());
        moment
    };
    let mut all = Vec::new();
    for minute in 1..30 {
        all.extend(
            phases(&mut ledger, &without(minute))
                .into_iter()
                .map(|e| (minute, e)),
        );
    }
    assert_eq!(all, [(11, (Kind::Gone, Phase::Once))]);
    // Away for a moment only.
    both.now = Millis(40 * MINUTE);
    assert_eq!(
        phases(&mut ledger, &both),
        [(Kind::FirstSuccess, Phase::Once)],
        "it is back"
    );
    for minute in 41..49 {
        assert_eq!(phases(&mut ledger, &without(minute)), []);
    }
    both.now = Millis(49 * MINUTE);
    assert_eq!(phases(&mut ledger, &both), []);
    for minute in 50..58 {
        assert_eq!(phases(&mut ledger, &without(minute)), []);
    }
}

/// A process that was started again attaches and lists for longer than `after`: that is not safe, only not known yet.
#[test]
fn a_start_that_takes_its_time_ends_nothing() {
    let mut ledger = Ledger::default();
    assert_eq!(told(&mut ledger, (0..10).map(|m| (m, true))).len(), 1);
    ledger.resumed(Millis(30 * MINUTE));
    let beginning = |minute| {
        let mut seen = seen(minute, true);
        let mut first = seen.conditions.remove("unsafe app").unwrap();
        first.patience = Duration::from_secs(3600);
        seen.conditions.insert("unsafe first app".into(), first);
        seen
    };
    for minute in 30..60 {
        ledger.step(&beginning(minute), &rules(), String::new);
        assert_eq!(ledger.pending(), 0, "minute {minute}");
    }
    assert!(ledger.is_open());
    // Known again: it lasts, and an hour after it was told that is said; then it is over.
    assert_eq!(
        told(&mut ledger, (60..63).map(|m| (m, true))),
        [(62, Phase::Reminder)]
    );
    assert_eq!(
        told(&mut ledger, (63..66).map(|m| (m, false))),
        [(64, Phase::Ended)]
    );
}
