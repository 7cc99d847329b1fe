use super::*;
use crate::observe::facts::StoreFacts;
use std::collections::BTreeSet;
use std::io::Write;

fn sample() -> String {
    let store = StoreFacts {
        store: "s3://bucket/app".into(),
        drill: Some(DrillFacts {
            at: Millis(1),
            ok: true,
            failure: None,
            restore_seconds: 1.0,
            data_age_seconds: 2.0,
        }),
        stats: Some(Default::default()),
        base: Txid::new(1).map(|t| (t, Millis(1))),
        renewal_due: Some(Millis(2)),
        held: kept::sample(),
        ..StoreFacts::default()
    };
    let target = TargetFacts {
        name: "app".into(),
        state: State::Steady,
        stores: vec![store],
        ..TargetFacts::default()
    };
    let files = FilesFacts {
        name: "uploads".into(),
        store: "s3://bucket/uploads".into(),
        succeeded_at: Some(Millis(1)),
        ..FilesFacts::default()
    };
    let dumps = PostgresFacts {
        name: "main".into(),
        store: "s3://bucket/main".into(),
        succeeded_at: Some(Millis(1)),
        size_ratio: Some(1.0),
        ..PostgresFacts::default()
    };
    let cache = PostgresFacts {
        kind: Kind::Redis,
        name: "cache".into(),
        ..dumps.clone()
    };
    let mut probe = crate::observe::services::ProbeFacts {
        name: "app".into(),
        certificate_expires: Some(Millis(1)),
        ..Default::default()
    };
    probe.note(crate::probe::Answer::default(), true, Millis(1));
    let volume = crate::observe::volume::Volume {
        path: "/rails/storage".into(),
        total_bytes: 100,
        free_bytes: 50,
        inodes: 10,
        free_inodes: 5,
    };
    render(&View {
        now: Millis(1_000),
        targets: vec![(target, None)],
        files: vec![files],
        postgres: vec![cache, dumps],
        probes: vec![probe],
        clock: Default::default(),
        servers: servers::sample(),
        volumes: vec![volume],
        host: Some(crate::observe::volume::host()),
        settings: Default::default(),
        drills_known: true,
        drill_plan: Some(crate::observe::facts::DrillPlan {
            next: Millis(1),
            objective: Default::default(),
        }),
        insight: insight::sample(Millis(1_000)),
        told: [("slack".to_owned(), Default::default())].into(),
    })
    .unwrap()
}

fn names(text: &str) -> BTreeSet<&str> {
    text.lines()
        .filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next())
        .collect()
}

/// Other exporters' own names are what dashboards look for; promtool dislikes some of them.
#[test]
fn promtool_is_content() {
    let mut child = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("promtool is missing: run bin/install-dev");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(sample().as_bytes())
        .unwrap();
    let out = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    let theirs = |l: &&str| {
        ["node_memory_", "pg_", "redis_"]
            .iter()
            .any(|p| l.starts_with(p))
    };
    let ours: Vec<&str> = said.lines().filter(|l| !theirs(l)).collect();
    // 3: there are findings, and no fault in the format.
    assert!(matches!(out.status.code(), Some(0 | 3)), "{said}");
    assert!(ours.iter().all(|l| l.trim().is_empty()), "{ours:#?}");
}

/// Every metric is in the documentation, and nothing else is.
#[test]
fn documented() {
    let docs = include_str!("../../../docs/metrics.md");
    let documented: BTreeSet<&str> = docs
        .lines()
        .filter_map(|l| l.strip_prefix("| `")?.split('`').next())
        .collect();
    assert_eq!(names(&sample()), documented);
}

/// Labels of a sample.
fn labels(line: &str) -> BTreeSet<(&str, &str)> {
    let inside = line
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'));
    let pairs = inside.map_or("", |(labels, _)| labels).split(',');
    let pairs = pairs.filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (name, value.trim_matches('"')))
        .collect()
}

fn samples<'a>(text: &'a str, metric: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter(move |line| {
        let end = line.strip_prefix(metric).unwrap_or("-");
        let end = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| end.strip_prefix(suffix))
            .unwrap_or(end);
        end.starts_with(['{', ' '])
    })
}

/// Types, labels, and the values of those that have a fixed set, are what the documentation says.
#[test]
fn documented_with_types_and_labels() {
    let docs = include_str!("../../../docs/metrics.md");
    let text = sample();
    let rows = docs.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split(" | ").collect();
        let metric = cells.first()?.strip_prefix("| `")?.strip_suffix('`')?;
        Some((metric, cells))
    });
    let (mut described, mut fixed) = (0, 0);
    for (metric, cells) in rows {
        let words = |cell: &'static str| -> BTreeSet<&str> {
            let cell = cell.trim_end_matches(" |");
            cell.split(", ").filter(|word| *word != "none").collect()
        };
        if let [_, label, values] = cells[..] {
            let found = samples(&text, metric).flat_map(labels);
            let found = found.filter(|(name, _)| *name == label);
            let found: BTreeSet<&str> = found.map(|(_, value)| value).collect();
            assert_eq!(found, words(values), "{metric} {label}");
            fixed += 1;
            continue;
        }
        let kind = format!("# TYPE {metric} {}", cells[1]);
        assert!(text.lines().any(|line| line == kind), "{kind}");
        let names = samples(&text, metric)
            .flat_map(labels)
            .map(|(name, _)| name);
        let names: BTreeSet<&str> = names.filter(|name| *name != "le").collect();
        assert_eq!(names, words(cells[2]), "{metric}");
        described += 1;
    }
    assert!(described > 150 && fixed > 12, "{described} {fixed}");
}
