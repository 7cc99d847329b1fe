//! Volumes and the host; the host's under the names of Prometheus' node_exporter.

use super::{Scrape, Spec};
use crate::observe::view::View;
use crate::observe::volume::{Host, Volume};

const VOLUME: &[&str] = &["path"];
const SIZE: Spec = (
    "lifeboat_volume_size_bytes",
    "Size of the file system that holds databases or local state",
    VOLUME,
);
const FREE: Spec = (
    "lifeboat_volume_free_bytes",
    "Bytes that can still be written there",
    VOLUME,
);
const MIN_FREE: Spec = (
    "lifeboat_volume_min_free_bytes",
    "Below this much free the spool is dropped: min-free of the configuration",
    VOLUME,
);
const INODES: Spec = (
    "lifeboat_volume_inodes",
    "Inodes of the file system; 0 if it has no fixed number",
    VOLUME,
);
const FREE_INODES: Spec = (
    "lifeboat_volume_free_inodes",
    "Inodes that are free",
    VOLUME,
);
const MEMORY: Spec = ("node_memory_MemTotal_bytes", "Memory of the host", &[]);
const AVAILABLE: Spec = (
    "node_memory_MemAvailable_bytes",
    "Memory of the host that programs can still get",
    &[],
);
const LOAD: Spec = (
    "node_load1",
    "Load average of the host over one minute",
    &[],
);
const CPU: Spec = (
    "node_cpu_seconds_total",
    "Seconds that the host's processors spent in each mode, all together",
    &["mode"],
);

const CLOCK_STEPS: Spec = (
    "lifeboat_clock_steps_total",
    "How often the clock was set by 10 s or more since this process began",
    &[],
);
const CLOCK_STEP: Spec = (
    "lifeboat_clock_step_seconds",
    "By how much it was set the last time; negative if back, 0 if never",
    &[],
);

impl Scrape {
    pub(super) fn host(&self, view: &View) -> prometheus::Result<()> {
        let paths: Vec<String> = view
            .volumes
            .iter()
            .map(|v| v.path.display().to_string())
            .collect();
        let volume = |spec: Spec, get: &dyn Fn(&Volume) -> u64| {
            let each = paths.iter().zip(&view.volumes);
            self.gauge(spec, each.map(|(p, v)| (vec![p.as_str()], get(v) as f64)))
        };
        volume(SIZE, &|v| v.total_bytes)?;
        volume(FREE, &|v| v.free_bytes)?;
        volume(MIN_FREE, &|v| {
            view.settings.min_free.bytes_of(v.total_bytes)
        })?;
        volume(INODES, &|v| v.inodes)?;
        volume(FREE_INODES, &|v| v.free_inodes)?;
        let host = |get: fn(&Host) -> f64| view.host.iter().map(move |h| (vec![], get(h)));
        self.gauge(MEMORY, host(|h| h.memory_total as f64))?;
        self.gauge(AVAILABLE, host(|h| h.memory_available as f64))?;
        self.gauge(LOAD, host(|h| h.load1))?;
        self.counter(CLOCK_STEPS, [(vec![], view.clock.steps)])?;
        let step = view.clock.last.map_or(0, |s| s.by_ms);
        self.gauge(CLOCK_STEP, [(vec![], step as f64 / 1000.0)])?;
        let cpu = view.host.iter().flat_map(|h| &h.cpu);
        self.counter_of_seconds(CPU, cpu.map(|(mode, seconds)| (vec![*mode], *seconds)))
    }
}
