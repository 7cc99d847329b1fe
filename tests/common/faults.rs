//! What every test of the fault table does.

use std::time::{Duration, Instant};

use super::prometheus::Prometheus;
use super::receiver::Receiver;

/// Longer than anything takes on a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(90);

/// What says so.
pub struct Signs {
    /// Name, labels, and the value that it takes.
    pub metric: (&'static str, &'static str, fn(f64) -> bool),
    /// Words of a reason in the verdict.
    pub reason: &'static str,
    pub alert: &'static str,
    /// Kind of the notification.
    pub told: &'static str,
}

pub fn until(what: &str, log: &dyn Fn() -> String, mut done: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !done() {
        assert!(
            begun.elapsed() < DEADLINE,
            "waited in vain for {what}\n{}",
            log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    begun.elapsed()
}

/// Sum of a metric over its series whose labels contain `labels`.
pub fn metric(text: &str, name: &str, labels: &str) -> f64 {
    let mine = text.lines().filter(|l| {
        l.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(labels))
    });
    mine.filter_map(|l| l.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

/// How a page of the daemon is fetched, and its log.
pub type Reads<'a> = (&'a dyn Fn(&str) -> String, &'a dyn Fn() -> String);

/// Every sign appears; prints after how long.
pub fn shows(
    fault: &str,
    (get, log): Reads,
    (hook, prometheus): (&Receiver, &Prometheus),
    signs: &Signs,
) {
    let (name, labels, is) = signs.metric;
    let begun = Instant::now();
    let mut took = [None; 4];
    let what = format!(
        "{fault}: {name}, \"{}\", {}, {}",
        signs.reason, signs.alert, signs.told
    );
    let state = || format!("{}\n{:?}\n{}", get("/readyz"), hook.events(), log());
    until(&what, &state, || {
        let now = [
            is(metric(&get("/metrics"), name, labels)),
            get("/readyz").contains(signs.reason) || get("/up").contains(signs.reason),
            prometheus.raises(signs.alert),
            hook.phases(signs.told).contains(&"started".to_owned()),
        ];
        for (took, now) in took.iter_mut().zip(now) {
            if now && took.is_none() {
                *took = Some(begun.elapsed());
            }
        }
        took.iter().all(Option::is_some)
    });
    let took = took.map(|t| format!("{:.1} s", t.unwrap_or_default().as_secs_f64()));
    println!(
        "{fault}: metric {}, verdict {}, alert {}, told {}",
        took[0], took[1], took[2], took[3]
    );
    let up = get("/up");
    assert!(
        up.contains("\"status\""),
        "a red backup takes no app out of a proxy: {up}"
    );
}

pub fn positive(value: f64) -> bool {
    value > 0.0
}

pub fn one(value: f64) -> bool {
    value == 1.0
}
