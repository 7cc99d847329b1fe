//! `/up`: what of the app and its backup works, target by target. Always 200: nothing in it may take an app out of a proxy.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::observe::app::{AppVerdict, Part};
use crate::observe::health::Verdict;
use crate::observe::services::Service;

/// Everything, or without reasons, stores and paths for whoever may not see them.
pub(super) fn up_json(
    verdicts: &[Verdict],
    apps: &[AppVerdict],
    services: &[Service],
    all: bool,
) -> Value {
    let mut targets: BTreeMap<&str, Vec<&Verdict>> = BTreeMap::new();
    for verdict in verdicts {
        targets.entry(&verdict.name).or_default().push(verdict);
    }
    let one = |(name, verdicts): (&&str, &Vec<&Verdict>)| {
        let app = apps.iter().find(|a| a.name == **name);
        target(name, verdicts, app, all)
    };
    let service = |s: &Service| {
        if all {
            json!(s)
        } else {
            json!({ "kind": s.kind, "name": s.name, "state": s.state })
        }
    };
    let worst = |part: fn(&AppVerdict) -> Part| apps.iter().map(part).max().unwrap_or(Part::None);
    let safe = !verdicts.is_empty() && verdicts.iter().all(|v| v.safe);
    json!({
        "status": if safe { "safe" } else { "unsafe" },
        "database": worst(|a| a.database),
        "queue": worst(|a| a.queue),
        "cache": worst(|a| a.cache),
        "targets": targets.iter().map(one).collect::<Vec<_>>(),
        "services": services.iter().map(service).collect::<Vec<_>>(),
    })
}

/// One target; its backup has a verdict for each store, or one for all.
fn target(name: &str, verdicts: &[&Verdict], app: Option<&AppVerdict>, all: bool) -> Value {
    let part = |get: fn(&AppVerdict) -> Part| app.map_or(Part::None, get);
    let mut shown = json!({
        "name": name,
        "database": part(|a| a.database),
        "queue": part(|a| a.queue),
        "cache": part(|a| a.cache),
        "backup": backup(verdicts, all),
    });
    if let Some(app) = app.filter(|_| all) {
        shown["reasons"] = json!(app.reasons);
        shown["hints"] = json!(app.hints);
    }
    shown
}

fn backup(verdicts: &[&Verdict], all: bool) -> Value {
    let worst = verdicts.iter().find(|v| !v.safe).or(verdicts.first());
    let lag = verdicts.iter().map(|v| v.lag_seconds).fold(0.0, f64::max);
    let mut shown = Map::new();
    shown.insert("safe".into(), json!(verdicts.iter().all(|v| v.safe)));
    shown.insert("state".into(), json!(worst.map(|v| v.state)));
    shown.insert("lag_seconds".into(), json!(lag));
    let objective = worst.map(|v| v.objective_seconds);
    shown.insert("objective_seconds".into(), json!(objective));
    if all {
        let reasons: Vec<&String> = verdicts.iter().flat_map(|v| &v.reasons).collect();
        let hints: Vec<&String> = verdicts.iter().flat_map(|v| &v.hints).collect();
        shown.insert("reasons".into(), json!(reasons));
        shown.insert("hints".into(), json!(hints));
    }
    shown.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(name: &str, safe: bool, lag_seconds: f64) -> Verdict {
        Verdict {
            name: name.into(),
            path: "/secret/path".into(),
            safe,
            state: if safe { "steady" } else { "failed" },
            lag_seconds,
            objective_seconds: 30.0,
            captured_txid: None,
            reasons: if safe {
                vec![]
            } else {
                vec!["s3://secret: away".into()]
            },
            hints: Vec::new(),
            stores: Vec::new(),
        }
    }

    #[test]
    fn one_entry_a_target_and_the_worst_of_all() {
        let verdicts = [
            verdict("pg", true, 5.0),
            verdict("pg", false, 90.0),
            verdict("app", true, 0.1),
        ];
        let app = |name: &str, queue| AppVerdict {
            name: name.into(),
            database: Part::Ok,
            queue,
            cache: Part::None,
            reasons: vec!["queue stuck: secret".into()],
            hints: Vec::new(),
        };
        let apps = [app("app", Part::Stuck), app("pg", Part::Ok)];
        let up = up_json(&verdicts, &apps, &[], true);
        assert_eq!(
            (&up["status"], &up["queue"], &up["cache"]),
            (&json!("unsafe"), &json!("stuck"), &json!("none"))
        );
        let (first, second) = (&up["targets"][0], &up["targets"][1]);
        assert_eq!(
            (&first["name"], &first["queue"]),
            (&json!("app"), &json!("stuck"))
        );
        assert_eq!(second["backup"]["safe"], false);
        assert_eq!(second["backup"]["state"], "failed");
        assert_eq!(second["backup"]["lag_seconds"], 90.0);
        assert_eq!(second["backup"]["reasons"], json!(["s3://secret: away"]));
        let few = up_json(&verdicts, &apps, &[], false).to_string();
        assert!(!few.contains("secret"), "{few}");
        assert_eq!(
            up_json(&[], &[], &[], true)["status"],
            "unsafe",
            "nothing is kept at all"
        );
    }
}
