use super::*;
use crate::observe::insight::{AppFacts, QueueFacts};
use crate::types::Txid;

const NOW: Millis = Millis(1_800_000_000_000);

fn view() -> View {
    let store = StoreFacts {
        store: "s3://b/app".into(),
        durable: Txid::new(3),
        pruned_at: Some(NOW),
        ..StoreFacts::default()
    };
    let target = TargetFacts {
        name: "app".into(),
        state: State::Steady,
        objective: Duration::from_secs(30),
        captured: Txid::new(3),
        last_look: Some(NOW),
        stores: vec![store],
        ..TargetFacts::default()
    };
    let dumps = PostgresFacts {
        name: "pg".into(),
        store: "s3://b/pg".into(),
        objective: Duration::from_secs(7200),
        succeeded_at: Some(Millis(NOW.0 - 1000)),
        dump: Some("1".into()),
        pruned_at: Some(NOW),
        next: Some(Millis(NOW.0 + 1000)),
        ..PostgresFacts::default()
    };
    View {
        now: NOW,
        targets: vec![(target, None)],
        postgres: vec![dumps],
        drills_known: true,
        ..View::default()
    }
}

fn unsure(change: impl FnOnce(&mut View)) -> Vec<(Kind, String)> {
    let mut view = view();
    change(&mut view);
    Seen::of(&view).unsure.into_iter().collect()
}

#[test]
fn after_a_restart_nothing_is_known_before_it_was_seen() {
    assert_eq!(unsure(|_| ()), []);
    let app = |kind| (kind, "app".to_owned());
    let pg = |kind| (kind, "pg".to_owned());
    let store = unsure(|v| v.targets[0].0.stores[0].durable = None);
    let kinds = [Kind::Unsafe, Kind::Ownership, Kind::StoreUnreachable];
    assert_eq!(store, kinds.map(app));
    let pruned = unsure(|v| v.targets[0].0.stores[0].pruned_at = None);
    assert_eq!(pruned, [app(Kind::Retention)]);
    let drills = unsure(|v| v.drills_known = false);
    assert_eq!(drills, [app(Kind::DrillFailed), pg(Kind::DrillFailed)]);
    // A run that was missed is under way, or about to be.
    let dumps = [Kind::Unsafe, Kind::DumpFailed].map(pg);
    assert_eq!(unsure(|v| v.postgres[0].next = Some(NOW)), dumps);
    assert_eq!(unsure(|v| v.postgres[0].running_since = Some(NOW)), dumps);
    let tried = unsure(|v| {
        v.postgres[0].next = Some(NOW);
        v.postgres[0].runs = 1;
    });
    assert_eq!(tried, []);
}

#[test]
fn a_queue_that_cannot_be_read_does_not_move() {
    let stuck = unsure(|v| {
        let facts = AppFacts {
            at: Some(Millis(NOW.0 - 10_000_000)),
            queue: Some(QueueFacts::default()),
            ..AppFacts::default()
        };
        v.insight.insert("app".into(), facts);
    });
    assert_eq!(stuck, [(Kind::QueueStuck, "app".to_owned())]);
    let failed = unsure(|v| {
        let facts = AppFacts {
            failed: Some("gone".into()),
            queue: Some(QueueFacts::default()),
            ..AppFacts::default()
        };
        v.insight.insert("app".into(), facts);
    });
    assert_eq!(failed, [(Kind::QueueStuck, "app".to_owned())]);
}
