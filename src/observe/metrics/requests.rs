//! What the stores were asked. The counters are the store layer's own, read when Prometheus asks.

use std::collections::HashMap;
use std::time::Instant;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::{STORE, Scrape, Spec};
use crate::observe::view::View;
use crate::store::{Class, LATENCY_BOUNDS_SECONDS, Op, Stats};

const REQUESTS: Spec = (
    "lifeboat_store_requests_total",
    "Requests by kind",
    &["target", "store", "kind"],
);
const FAILED: Spec = (
    "lifeboat_store_errors_total",
    "Failed requests by class of failure",
    &["target", "store", "class"],
);
const SENT: Spec = (
    "lifeboat_store_sent_bytes_total",
    "Bytes that the store acknowledged",
    STORE,
);
const RECEIVED: Spec = (
    "lifeboat_store_received_bytes_total",
    "Bytes read from the store",
    STORE,
);
const MONTHLY_REQUESTS: Spec = (
    "lifeboat_store_monthly_requests",
    "Requests in a month that is like the last day",
    STORE,
);
const MONTHLY_BYTES: Spec = (
    "lifeboat_store_monthly_sent_bytes",
    "Bytes sent in a month that is like the last day",
    STORE,
);
const LATENCY: Spec = (
    "lifeboat_store_request_seconds",
    "How long requests took",
    STORE,
);

/// A target's share of a store: its labels and counters.
type Asked<'a> = (Vec<&'a str>, &'a Stats);

impl Scrape {
    pub(super) fn requests(&self, view: &View) -> prometheus::Result<()> {
        let databases = view.targets.iter().flat_map(|(t, _)| {
            let stores = t.stores.iter();
            stores.map(|s| (&t.name, &s.store, &s.stats))
        });
        let files = view.files.iter().map(|f| (&f.name, &f.store, &f.stats));
        let dumps = view.postgres.iter().map(|f| (&f.name, &f.store, &f.stats));
        let asked = databases.chain(files).chain(dumps);
        let asked: Vec<Asked> = asked
            .filter_map(|(name, store, stats)| {
                Some((vec![name.as_str(), store.as_str()], stats.as_deref()?))
            })
            .collect();
        let by = |spec: Spec, words: &[&'static str], get: &dyn Fn(&Stats, usize) -> u64| {
            let series = asked.iter().flat_map(|(labels, stats)| {
                words.iter().enumerate().map(move |(i, word)| {
                    let mut labels = labels.clone();
                    labels.push(word);
                    (labels, get(stats, i))
                })
            });
            self.counter(spec, series)
        };
        by(REQUESTS, &Op::ALL.map(Op::as_str), &|s, i| {
            s.requests(Op::ALL[i])
        })?;
        by(FAILED, &Class::ALL.map(Class::as_str), &|s, i| {
            s.errors(Class::ALL[i])
        })?;
        let each = |get: fn(&Stats) -> u64| asked.iter().map(move |(l, s)| (l.clone(), get(s)));
        self.counter(SENT, each(Stats::bytes_out))?;
        self.counter(RECEIVED, each(Stats::bytes_in))?;
        let now = Instant::now();
        let monthly = asked.iter().map(|(l, s)| (l, s.monthly(now)));
        let monthly: Vec<_> = monthly.collect();
        let requests = monthly.iter().map(|(l, m)| ((*l).clone(), m.requests));
        self.gauge(MONTHLY_REQUESTS, requests)?;
        let bytes = monthly.iter().map(|(l, m)| ((*l).clone(), m.bytes_out));
        self.gauge(MONTHLY_BYTES, bytes)?;
        self.0.register(Box::new(Latencies::new(&asked)?))
    }
}

/// Histograms that were counted elsewhere.
struct Latencies {
    desc: Desc,
    family: MetricFamily,
}

impl Latencies {
    fn new(asked: &[Asked]) -> prometheus::Result<Self> {
        let names = LATENCY.2.iter().map(|&l| l.to_owned()).collect();
        let desc = Desc::new(LATENCY.0.into(), LATENCY.1.into(), names, HashMap::new())?;
        let mut family = MetricFamily::default();
        family.set_name(LATENCY.0.into());
        family.set_help(LATENCY.1.into());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(asked.iter().map(metric).collect());
        Ok(Self { desc, family })
    }
}

fn metric((labels, stats): &Asked) -> Metric {
    let latency = stats.latency();
    let bounds = LATENCY_BOUNDS_SECONDS.iter().zip(latency.cumulative);
    let buckets = bounds.map(|(bound, count)| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(count);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_sample_count(latency.count);
    histogram.set_sample_sum(latency.seconds);
    histogram.set_bucket(buckets.collect());
    // Labels stand in the order of their names.
    let mut pairs: Vec<_> = LATENCY.2.iter().zip(labels).collect();
    pairs.sort_unstable();
    let pairs = pairs.into_iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    });
    let mut metric = Metric::from_label(pairs.collect());
    metric.set_histogram(histogram);
    metric
}

impl Collector for Latencies {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        vec![self.family.clone()]
    }
}
