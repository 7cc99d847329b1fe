//! Services that people depend on; probes under the names of Prometheus' blackbox_exporter.

use super::{Scrape, Spec, seconds};
use crate::observe::services::{ProbeFacts, probe_verdict};
use crate::observe::view::View;

const PROBE: &[&str] = &["probe"];
const SUCCESS: Spec = (
    "probe_success",
    "1 if the last answer was what was expected, and is not too old",
    PROBE,
);
const DURATION: Spec = (
    "probe_duration_seconds",
    "How long the last answer took, from the first look-up to the last byte",
    PROBE,
);
const STATUS: Spec = (
    "probe_http_status_code",
    "Its status code; 0 for no answer",
    PROBE,
);
const CERTIFICATE: Spec = (
    "probe_ssl_earliest_cert_expiry",
    "When the server's certificate ends; the last one that was found good",
    PROBE,
);
const AT: Spec = (
    "lifeboat_probe_timestamp_seconds",
    "When it was asked last",
    PROBE,
);

impl Scrape {
    /// No series before the first answer: 0 would be a fault.
    pub(super) fn services(&self, view: &View) -> prometheus::Result<()> {
        let asked: Vec<_> = view.probes.iter().filter(|p| p.answer.is_some()).collect();
        let probe = |spec: Spec, get: &dyn Fn(&ProbeFacts) -> Option<f64>| {
            let each = asked.iter();
            let values = each.filter_map(|p| Some((vec![p.name.as_str()], get(p)?)));
            self.gauge(spec, values)
        };
        probe(SUCCESS, &|p| {
            Some(f64::from(u8::from(probe_verdict(p, view.now).is_up())))
        })?;
        probe(DURATION, &|p| p.answer.as_ref().map(|a| a.seconds))?;
        probe(STATUS, &|p| {
            p.answer.as_ref().map(|a| a.status.map_or(0.0, f64::from))
        })?;
        probe(CERTIFICATE, &|p| {
            p.certificate_expires.map(|t| seconds(Some(t)))
        })?;
        probe(AT, &|p| Some(seconds(p.at)))
    }
}
