//! Notifications: whether somebody would be told.

use super::{Scrape, Spec};
use crate::observe::view::View;

const TOLD: Spec = (
    "lifeboat_notifications_total",
    "Notifications and pings by result: sent, failed (one try), dropped",
    &["channel", "result"],
);
const PENDING: Spec = (
    "lifeboat_notifications_pending",
    "Notifications that wait to be sent",
    &["channel"],
);

const RESULTS: [&str; 3] = ["sent", "failed", "dropped"];

impl Scrape {
    pub(super) fn told(&self, view: &View) -> prometheus::Result<()> {
        let counts = view.told.iter().flat_map(|(channel, told)| {
            RESULTS.into_iter().map(move |result| {
                let count = told.results.get(result).copied().unwrap_or(0);
                (vec![channel.as_str(), result], count)
            })
        });
        self.counter(TOLD, counts)?;
        let pending = view.told.iter();
        self.gauge(
            PENDING,
            pending.map(|(c, t)| (vec![c.as_str()], t.pending as f64)),
        )
    }
}
