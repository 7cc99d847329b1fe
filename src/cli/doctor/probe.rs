//! What the keys may do in a store, each right by itself; and what its bucket does to objects without being asked.

use super::Findings;
use super::stores::fix;
use crate::config::StoreConfig;
use crate::daemon::fleet::system_now;
use crate::store::{
    Answer, BucketRules, Class, Kind, ObjectInfo, PutMode, Rule, Store, StoreError,
};
use crate::types::Millis;

/// Clocks further apart confuse points in time; S3 refuses requests at 15 minutes.
const SKEW_MAX_MS: i64 = 60_000;
const FOLDER: &str = "lifeboat/doctor";
const BODY: &[u8] = b"lifeboat doctor";

/// What is lost without a right.
#[derive(Clone, Copy)]
enum Right {
    Write,
    Read,
    List,
    Delete,
}

impl Right {
    fn without(self) -> &'static str {
        match self {
            Self::Write => "nothing can be backed up there",
            Self::Read => "what is backed up there cannot be restored with these keys",
            Self::List => "restore points cannot be found with these keys",
            Self::Delete => {
                "retention cannot delete, so that the bill grows; the scratch object of this check stays"
            }
        }
    }

    /// As S3's policies name it, and on what.
    fn in_policy(self) -> (&'static str, bool) {
        match self {
            Self::Write => ("s3:PutObject", true),
            Self::Read => ("s3:GetObject", true),
            Self::List => ("s3:ListBucket", false),
            Self::Delete => ("s3:DeleteObject", true),
        }
    }

    fn fix(self, store: &Store, error: &StoreError) -> String {
        if error.class() != Class::Denied || error.reason().contains("TimeTooSkewed") {
            return fix(error);
        }
        if store.kind() != Kind::S3 {
            return fix(error);
        }
        let (action, on_objects) = self.in_policy();
        let bucket = store.display();
        let bucket = bucket.trim_start_matches("s3://").split('/').next();
        let bucket = bucket.unwrap_or_default();
        let objects = if on_objects { "/*" } else { "" };
        format!(
            "allow {action} on arn:aws:s3:::{bucket}{objects} in the policy of the keys or of the bucket (docs/security.md); if all four are refused, the keys are wrong"
        )
    }
}

fn refused(found: &mut Findings, url: &str, store: &Store, right: Right, error: &StoreError) {
    let detail = format!("{error}: {}", right.without());
    found.fail("store", url, detail, right.fix(store, error));
}

/// Writes a scratch object, reads, lists and deletes it. Whether all of it worked.
pub(super) async fn rights(found: &mut Findings, url: &str, store: &Store) -> bool {
    let now = system_now();
    let key = format!("{FOLDER}/{}-{}", now.0, std::process::id());
    let body = || bytes::Bytes::from_static(BODY);
    let written = store.put(&key, body(), PutMode::Overwrite, None).await;
    if let Err(error) = &written {
        refused(found, url, store, Right::Write, error);
        if error.class() != Class::Denied {
            // Away, full or not there: the other requests would only wait for the same.
            return false;
        }
    }
    let written = written.is_ok();
    let listed = store.list(FOLDER).await;
    if let Err(error) = &listed {
        refused(found, url, store, Right::List, error);
    }
    let read = store.get(&key).await;
    match &read {
        // Without its own object there is nothing that must be there; S3 answers 403 for a missing one if listing is refused.
        Err(error) if written || (error.class() == Class::Denied && listed.is_ok()) => {
            refused(found, url, store, Right::Read, error);
        }
        _ => {}
    }
    if !written {
        return false;
    }
    let again = store.put(&key, body(), PutMode::Create, None).await;
    let deleted = store.delete(&key).await;
    if let Err(error) = &deleted {
        refused(found, url, store, Right::Delete, error);
    }
    let (Ok(read), Ok(listed), Ok(())) = (read, listed, deleted) else {
        return false;
    };
    let object = listed.iter().find(|o| o.key == key);
    let Some(object) = object.filter(|_| read == body()) else {
        found.fail(
            "store",
            url,
            "what was written is not what is read or listed at once",
            "use a store with strong consistency",
        );
        return false;
    };
    found.ok(
        "store",
        url,
        "an object was written, read, listed and deleted",
    );
    conditional(found, url, again);
    clock(found, url, object, now);
    true
}

fn conditional(found: &mut Findings, url: &str, again: Result<(), StoreError>) {
    match again {
        Err(e) if e.is_exists() => {
            found.ok("store", url, "conditional creates are honoured");
        }
        Ok(()) => found.warn(
            "store",
            url,
            "it ignores conditional creates: two writers are told apart by reading `owner.json`, seconds later",
            "make sure that only one sidecar writes to each replica",
        ),
        Err(e) => {
            let fix = fix(&e);
            found.fail("store", url, e, fix);
        }
    }
}

fn clock(found: &mut Findings, url: &str, object: &ObjectInfo, now: Millis) {
    let skew = object.modified.0.saturating_sub(now.0);
    if skew.abs() > SKEW_MAX_MS {
        found.warn(
            "clock",
            url,
            format!("this machine's clock is {} s off the store's", -skew / 1000),
            "let the machine keep its clock by NTP: points in time are by this clock",
        );
    }
}

/// Rules of an S3 bucket, as far as the keys may read them.
pub(super) async fn bucket(found: &mut Findings, config: &StoreConfig, store: &Store) {
    let Some(rules) = store.bucket_rules().await else {
        return;
    };
    let url = config.url.to_string();
    let root = config.url.path().trim_start_matches('/').to_owned();
    judge(found, &url, &root, &rules);
}

fn unknown<T>(answer: &Answer<T>, setting: &str, action: &str) -> Option<String> {
    match answer {
        Answer::Known(_) => None,
        Answer::Denied => Some(format!("{setting} (the keys may not {action})")),
        Answer::Unknown(why) => Some(format!("{setting} ({why})")),
    }
}

fn judge(found: &mut Findings, url: &str, root: &str, rules: &BucketRules) {
    lifecycle(found, url, root, rules);
    versions(found, url, root, rules);
    let unknown: Vec<String> = [
        unknown(
            &rules.lifecycle,
            "lifecycle rules",
            "s3:GetLifecycleConfiguration",
        ),
        unknown(&rules.versioning, "versioning", "s3:GetBucketVersioning"),
        unknown(
            &rules.lock,
            "Object Lock",
            "s3:GetBucketObjectLockConfiguration",
        ),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !unknown.is_empty() {
        // Keys without these rights are good keys: no warning that never goes away.
        let what = unknown.join(", ");
        let detail = format!("not known, look at it once with other keys: {what}");
        found.ok("bucket", url, detail);
    }
}

/// A rule for `my` is also about `myapp/`; one for `myapp/tmp` is about a part of it.
fn concerns(rule: &Rule, root: &str) -> bool {
    !rule.tagged && (root.starts_with(&rule.prefix) || rule.prefix.starts_with(root))
}

fn lifecycle(found: &mut Findings, url: &str, root: &str, rules: &BucketRules) {
    let Answer::Known(all) = &rules.lifecycle else {
        return;
    };
    let mut harmless = true;
    for rule in all.iter().filter(|r| concerns(r, root)) {
        let id = &rule.id;
        if let Some(when) = &rule.deletes {
            harmless = false;
            found.fail(
                "bucket",
                url,
                format!("its lifecycle rule \"{id}\" deletes objects {when}, backups with them: old objects are needed to restore new points"),
                "take the rule off, or keep it away with a prefix; Lifeboat's retention deletes what no restore needs",
            );
        }
        if let Some(class) = &rule.freezes {
            harmless = false;
            found.fail(
                "bucket",
                url,
                format!("its lifecycle rule \"{id}\" moves objects to {class}: they cannot be read at once, and a restore fails"),
                "take the rule off; STANDARD_IA and GLACIER_IR can be read at once",
            );
        }
    }
    if harmless {
        found.ok(
            "bucket",
            url,
            "no lifecycle rule deletes or freezes backups",
        );
    }
}

fn versions(found: &mut Findings, url: &str, root: &str, rules: &BucketRules) {
    let swept = match &rules.lifecycle {
        Answer::Known(all) => all.iter().any(|r| r.old_versions && concerns(r, root)),
        // Not known: then there may be such a rule.
        _ => true,
    };
    if let Answer::Known(Some(lock)) = &rules.lock {
        let detail = format!(
            "Object Lock keeps each version ({lock}): what is deleted can be brought back so long"
        );
        found.ok("bucket", url, detail);
    }
    match &rules.versioning {
        Answer::Known(true) if swept => found.ok(
            "bucket",
            url,
            "it keeps old versions: what is deleted can be brought back until a rule ends them",
        ),
        Answer::Known(true) => found.warn(
            "bucket",
            url,
            "it keeps old versions, and no lifecycle rule ends them: what retention deletes is paid for ever",
            "a lifecycle rule with NoncurrentVersionExpiration, for example after 30 days",
        ),
        Answer::Known(false) => found.ok(
            "bucket",
            url,
            "it keeps no old versions: who has keys that delete can delete every backup (docs/security.md)",
        ),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn rule(id: &str, prefix: &str) -> Rule {
        Rule {
            id: id.into(),
            prefix: prefix.into(),
            tagged: false,
            deletes: None,
            freezes: None,
            old_versions: false,
        }
    }

    fn deletes(id: &str, prefix: &str) -> Rule {
        let mut rule = rule(id, prefix);
        rule.deletes = Some("after 30 days".into());
        rule
    }

    fn failed(rules: Vec<Rule>) -> Vec<String> {
        let mut found = Findings::default();
        let rules = BucketRules {
            versioning: Answer::Known(false),
            lock: Answer::Known(None),
            lifecycle: Answer::Known(rules),
        };
        judge(&mut found, "s3://b/myapp", "myapp", &rules);
        let wrong = found.checks.into_iter();
        wrong
            .filter(|c| c.status == Status::Failed)
            .map(|c| c.detail)
            .collect()
    }

    #[test]
    fn a_rule_for_other_objects_is_none_of_ours() {
        let mut tagged = deletes("tagged", "");
        tagged.tagged = true;
        assert!(failed(vec![tagged, deletes("logs", "logs/"), rule("idle", "")]).is_empty());
        for prefix in ["", "my", "myapp/", "myapp/production/"] {
            let wrong = failed(vec![deletes("old", prefix)]);
            assert!(
                wrong.len() == 1 && wrong[0].contains("\"old\" deletes objects after 30 days"),
                "{prefix}: {wrong:?}"
            );
        }
    }
}
