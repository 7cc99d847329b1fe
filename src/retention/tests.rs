use super::*;
use crate::restore::plan::plan as plan_restore;
use proptest::prelude::*;

const POLICY: RetentionConfig = RetentionConfig {
    point_in_time: Duration::from_secs(7 * 86_400),
    hourly: 0,
    daily: 30,
    weekly: 8,
    monthly: 12,
    yearly: 0,
    ..RetentionConfig::plain(Duration::ZERO)
};

fn entry(level: u8, min: u64, max: u64, at: i64) -> Entry {
    let t = |n| Txid::new(n).unwrap();
    Entry {
        span: Span::new(Level::new(level).unwrap(), t(min), t(max)).unwrap(),
        size: 10,
        created: Millis(at),
    }
}

fn catalogs() -> impl Strategy<Value = (Catalog, Millis)> {
    let file = (0u8..=9, 1u64..60, 0u64..20);
    (prop::collection::vec(file, 1..60), 1i64..200).prop_map(|(files, step)| {
        let minutes = 60_000 * step;
        let entries = files.into_iter().map(|(l, min, n)| {
            let min = if l == 9 { 1 } else { min };
            entry(l, min, min + n, (min + n) as i64 * minutes)
        });
        (Catalog::new(entries), Millis(90 * minutes))
    })
}

proptest! {
    /// After any number of deletions, in any order, every kept point is restorable; the newest is among them; and what remains
    /// is kept by the next run too.
    #[test]
    fn nothing_kept_is_lost((catalog, now) in catalogs(), order in any::<u64>()) {
        let result = plan(&catalog, &[], &POLICY, now, None).unwrap();
        if let Some(newest) = catalog.points().last() {
            prop_assert!(result.kept.contains(&newest.txid));
        }
        let mut gone = BTreeSet::new();
        let mut deletions: Vec<Span> = result.deletions().map(|e| e.span).collect();
        deletions.sort_by_key(|s| (*s).max().get().wrapping_mul(order | 1));
        for span in deletions {
            gone.insert(span);
            let left = catalog.without(&gone);
            for txid in &result.kept {
                prop_assert!(plan_restore(&left, Goal::Txid(*txid)).is_ok(), "TXID {txid} after {span}");
            }
        }
        let again = plan(&catalog.without(&gone), &[], &POLICY, now, None).unwrap();
        prop_assert_eq!(again.deletions().count(), 0);
    }

    /// The proof sees every sabotage: dropping any file that a kept point cannot do without.
    #[test]
    fn the_proof_sees_sabotage((catalog, now) in catalogs()) {
        let result = plan(&catalog, &[], &POLICY, now, None).unwrap();
        for i in 0..result.decisions.len() {
            let mut broken = result.clone();
            broken.decisions[i].keep = false;
            let left = Catalog::new(broken.decisions.iter().filter(|d| d.keep).map(|d| d.entry));
            let points: BTreeSet<Txid> = left.points().iter().map(|p| p.txid).collect();
            let whole = catalog.points().last().is_none_or(|p| points.contains(&p.txid));
            let newest = |c: &Catalog| c.entries().iter().filter(|e| e.span.level() == Level::CAPTURE).map(|e| e.span.max()).max();
            let right = broken.kept.is_subset(&points) && whole && newest(&left) == newest(&catalog);
            prop_assert_eq!(prove(&broken).is_ok(), right);
        }
    }
}

/// Captures, roll-ups, bases and retention over simulated days, at any pace of retention: what is promised stays, and objects stay countable.
#[test]
fn a_simulated_month_keeps_what_it_promises() {
    for prune_every_min in [30, 6 * 60, 60 * 24] {
        let mut catalog = Catalog::new([entry(9, 1, 1, 0)]);
        let (mut txid, mut peak) = (1_u64, 0);
        let minute = 60_000;
        let mut promised: BTreeMap<i64, u64> = BTreeMap::new();
        for m in 1..=(31 * 24 * 60_i64) {
            let now = m * minute;
            let busy = (m / 60) % 24 < 3 && m % 7 == 0;
            if !busy && m % 60 != 0 {
                continue;
            }
            let mut entries = catalog.entries().to_vec();
            if busy {
                for s in 0..3 {
                    txid += 1;
                    entries.push(entry(0, txid, txid, now + s * 1000));
                }
                promised.insert(now / DAY_MS, txid);
            }
            for (level, window) in [(1, 1), (2, 5), (3, 60), (4, 24 * 60)] {
                if m % window == 0 {
                    roll_up(&mut entries, level);
                }
            }
            if m % (7 * 24 * 60) == 0 {
                entries.push(entry(9, 1, txid, now));
            }
            if busy || m % 60 == 0 {
                catalog = Catalog::new(entries);
            }
            if m % prune_every_min == 0 {
                let result = plan(&catalog, &[], &POLICY, Millis(now + 3000), None).unwrap();
                let gone = result.deletions().map(|e| e.span).collect();
                catalog = catalog.without(&gone);
            }
            peak = peak.max(catalog.entries().len());
        }
        println!(
            "prune every {prune_every_min} min: {peak} objects at most, {} at the end",
            catalog.entries().len()
        );
        assert!(peak < 6_000, "{peak} objects");
        let points: BTreeSet<u64> = catalog.points().iter().map(|p| p.txid.get()).collect();
        let today = 31;
        for (day, last) in promised.iter().filter(|(d, _)| **d > today - 29) {
            assert!(
                points.contains(last),
                "the last point of day {day}, pruned every {prune_every_min} min"
            );
        }
    }
}

/// Rolls up everything of the level below that no file of this level has yet, as compaction does.
fn roll_up(entries: &mut Vec<Entry>, level: u8) {
    let of = |l: u8| move |e: &&Entry| e.span.level() == Level::new(l).unwrap();
    let done = entries
        .iter()
        .filter(of(level))
        .map(|e| e.span.max().get())
        .max()
        .unwrap_or(1);
    let fresh: Vec<&Entry> = entries
        .iter()
        .filter(of(level - 1))
        .filter(|e| e.span.min().get() > done)
        .collect();
    let (Some(first), Some(last)) = (
        fresh.iter().min_by_key(|e| e.span.min()),
        fresh.iter().max_by_key(|e| e.span.max()),
    ) else {
        return;
    };
    let merged = entry(
        level,
        first.span.min().get(),
        last.span.max().get(),
        last.created.0,
    );
    entries.push(merged);
}

#[test]
fn labels_and_tiers_are_reasons() {
    let day = DAY_MS;
    let catalog = Catalog::new([
        entry(9, 1, 1, 0),
        entry(4, 2, 5, 10 * day),
        entry(0, 6, 6, 11 * day),
        entry(0, 7, 7, 11 * day + 1),
        entry(0, 8, 8, 80 * day),
        entry(9, 1, 8, 80 * day),
        entry(0, 9, 9, 100 * day),
    ]);
    let none = RetentionConfig {
        point_in_time: Duration::ZERO,
        hourly: 0,
        daily: 0,
        weekly: 0,
        monthly: 0,
        yearly: 0,
        ..POLICY
    };
    let labels = [(Txid::new(6).unwrap(), "before-v42".to_owned())];
    let kept = |policy, labels: &[(Txid, String)]| {
        let result = plan(&catalog, labels, &policy, Millis(100 * day), None).unwrap();
        result.kept.iter().map(|t| t.get()).collect::<Vec<_>>()
    };
    assert_eq!(kept(none, &[]), [9]);
    assert_eq!(kept(none, &labels), [6, 9]);
    assert_eq!(kept(RetentionConfig { daily: 2, ..none }, &[]), [8, 9]);
    assert_eq!(kept(RetentionConfig { monthly: 3, ..none }, &[]), [7, 8, 9]);
    let window = RetentionConfig {
        point_in_time: Duration::from_secs(30 * 86_400),
        ..none
    };
    assert_eq!(
        kept(window, &[]),
        [7, 8, 9],
        "the state at the start of the window is TXID 7"
    );
    let result = plan(&catalog, &labels, &none, Millis(100 * day), None).unwrap();
    let text: Vec<String> = result.decisions.iter().map(ToString::to_string).collect();
    assert!(
        text.iter()
            .any(|t| t.starts_with("keep 4/") && t.contains("label before-v42")),
        "{text:?}"
    );
    assert!(
        text.iter()
            .any(|t| t.starts_with("delete 0/") && t.contains("no kept point")),
        "{text:?}"
    );
}

#[test]
fn a_wrong_clock_deletes_nothing() {
    let catalog = Catalog::new([entry(9, 1, 1, DAY_MS)]);
    let refused = |now, store| plan(&catalog, &[], &POLICY, Millis(now), store).is_err();
    assert!(refused(DAY_MS - 600_000, None), "behind the newest capture");
    assert!(
        refused(DAY_MS, Some(Millis(DAY_MS + 600_000))),
        "far from the store's"
    );
    assert!(!refused(DAY_MS, Some(Millis(DAY_MS + 1000))));
    assert!(
        plan(&Catalog::default(), &[], &POLICY, Millis(0), None)
            .unwrap()
            .decisions
            .is_empty()
    );
}

/// One file from the future must not hold everything up, nor count as a day of its own.
#[test]
fn a_file_from_the_future_holds_nothing_up() {
    let day = DAY_MS;
    let year = 365 * day;
    let catalog = Catalog::new([
        entry(9, 1, 1, 0),
        entry(0, 2, 2, day),
        entry(0, 3, 3, 10 * year),
        entry(0, 4, 4, 2 * day),
        entry(0, 5, 5, 300 * day),
    ]);
    let daily = RetentionConfig {
        point_in_time: Duration::ZERO,
        hourly: 0,
        daily: 3,
        weekly: 0,
        monthly: 0,
        yearly: 0,
        ..POLICY
    };
    let result = plan(&catalog, &[], &daily, Millis(300 * day), None).unwrap();
    let kept: Vec<u64> = result.kept.iter().map(|t| t.get()).collect();
    assert_eq!(kept, [2, 4, 5], "TXID 3 was captured no later than TXID 4");
    // The newest capture of all is another matter: only the store's clock can say who is wrong.
    let late = Catalog::new([entry(9, 1, 1, 0), entry(0, 2, 2, 10 * year)]);
    assert!(plan(&late, &[], &daily, Millis(day), None).is_err());
    assert!(plan(&late, &[], &daily, Millis(day), Some(Millis(day))).is_ok());
}

/// The clock was two years ahead, then three years behind: all of it was captured within the hour, and within the hour every capture stays.
#[test]
fn a_clock_that_jumped_makes_nothing_look_old() {
    let now = 4000 * DAY_MS;
    let year = 365 * DAY_MS;
    let catalog = Catalog::new([
        entry(9, 1, 1, now - 5000),
        entry(0, 2, 2, now - 4000),
        entry(0, 3, 3, now + 2 * year),
        entry(0, 4, 4, now + 2 * year + 1),
        entry(0, 5, 5, now - 3 * year),
        entry(0, 6, 6, now - 3 * year + 1),
        entry(0, 7, 7, now),
    ]);
    let result = plan(&catalog, &[], &POLICY, Millis(now), Some(Millis(now))).unwrap();
    assert_eq!(result.deletions().count(), 0, "{:?}", result.kept);
}

/// A clock that was slow for one capture: the state at the beginning of the window is still what was captured last before it.
#[test]
fn a_slow_clock_does_not_cost_the_begin_of_the_window() {
    let day = DAY_MS;
    let catalog = Catalog::new([
        entry(9, 1, 1, 0),
        entry(0, 2, 2, 80 * day),
        entry(0, 3, 3, 98 * day),
        entry(0, 4, 4, 0),
        entry(0, 5, 5, 99 * day),
    ]);
    let window = RetentionConfig {
        point_in_time: Duration::from_secs(7 * 86_400),
        hourly: 0,
        daily: 0,
        weekly: 0,
        monthly: 0,
        yearly: 0,
        ..POLICY
    };
    let result = plan(&catalog, &[], &window, Millis(100 * day), None).unwrap();
    let kept: Vec<u64> = result.kept.iter().map(|t| t.get()).collect();
    // TXID 4 was captured no earlier than TXID 3: of the two the later stays.
    assert_eq!(kept, [2, 4, 5]);
}

#[test]
fn deletes_from_the_highest_txid_down() {
    let entries = (2..40)
        .map(|n| entry(0, n, n, 1))
        .chain([entry(9, 1, 1, 0), entry(9, 1, 40, 2)]);
    let none = RetentionConfig {
        point_in_time: Duration::ZERO,
        hourly: 0,
        daily: 0,
        weekly: 0,
        monthly: 0,
        yearly: 0,
        ..POLICY
    };
    let result = plan(&Catalog::new(entries), &[], &none, Millis(5), None).unwrap();
    let gone: Vec<u64> = result.deletions().map(|e| e.span.max().get()).collect();
    assert!(
        gone.len() > 30 && gone.is_sorted_by(|a, b| a >= b),
        "{gone:?}"
    );
}

/// A file that is missing for now must not cost those behind it.
#[test]
fn nothing_beyond_a_hole_is_deleted() {
    let catalog = Catalog::new([
        entry(9, 1, 1, 0),
        entry(0, 2, 2, 1),
        entry(1, 4, 8, 2),
        entry(0, 9, 9, 3),
        entry(0, 10, 10, 4),
    ]);
    let result = plan(&catalog, &[], &POLICY, Millis(5), None).unwrap();
    assert_eq!(result.deletions().count(), 0, "{result:?}");
}
