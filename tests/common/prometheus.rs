//! A real Prometheus with the project's own rules.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::daemon::free_port;

/// A file of the project.
pub fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A Prometheus with the project's own rules.
pub struct Prometheus {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    pub fn start(target: &str) -> Self {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let own = std::fs::read_to_string(project("config/prometheus/prometheus.yml")).unwrap();
        let config = own
            .replace("30s", "1s")
            .replace("myapp-lifeboat:9464", target);
        assert_ne!(own, config);
        std::fs::write(dir.path().join("prometheus.yml"), config).unwrap();
        let rules = project("config/prometheus/alerts.yml");
        std::fs::copy(rules, dir.path().join("alerts.yml")).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--config.file=prometheus.yml")
            .arg("--storage.tsdb.path=data")
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .expect("prometheus is missing: run bin/install-dev");
        let mut prometheus = Self { child, port, dir };
        prometheus.has_its_rules();
        prometheus
    }

    /// It runs, and has taken the rules: one that refuses them raises nothing, and silence would look like health.
    fn has_its_rules(&mut self) {
        let text = std::fs::read_to_string(project("config/prometheus/alerts.yml")).unwrap();
        let written = text.matches("- alert:").count();
        assert!(written > 20, "{written}");
        let begun = Instant::now();
        loop {
            let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "Prometheus ended: {ended:?}\n{}", log());
            let answer = self.ask("/api/v1/rules", "").unwrap_or_default();
            let groups = answer["data"]["groups"].as_array().cloned();
            let taken: usize = groups
                .iter()
                .flatten()
                .map(|g| g["rules"].as_array().map_or(0, Vec::len))
                .sum();
            if taken == written {
                return;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "{taken} of {written} rules were taken\n{}",
                log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn ask(&self, path: &str, query: &str) -> Option<Value> {
        let out = Command::new("curl")
            .args(["-s", "-m", "10", "-G", "--data-urlencode"])
            .arg(format!("query={query}"))
            .arg(format!("http://127.0.0.1:{}{path}", self.port))
            .output()
            .expect("curl is missing: run bin/install-dev");
        serde_json::from_slice(&out.stdout).ok()
    }

    /// The result of an instant query, which must at least be one.
    pub fn query(&self, query: &str) -> Vec<Value> {
        let Some(answer) = self.ask("/api/v1/query", query) else {
            return Vec::new();
        };
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"].as_array().cloned().unwrap()
    }

    /// An alert that waits for its time, or fires.
    pub fn raises(&self, alert: &str) -> bool {
        let query = format!("ALERTS{{alertname=\"{alert}\",alertstate=~\"pending|firing\"}}");
        !self.query(&query).is_empty()
    }
}
