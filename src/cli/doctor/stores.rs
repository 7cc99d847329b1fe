//! Stores: can they be written, read, listed and deleted from; what a replica there holds, and whose it is.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::bill::{Bill, Facts};
use super::{Findings, host, probe};
use crate::config::{Config, StoreConfig, StoreKind, TargetConfig};
use crate::daemon::fleet::{open_replica, state_path, system_now};
use crate::replica::owner;
use crate::restore::plan::{Catalog, Goal};
use crate::restore::{RestoreError, planned};
use crate::store::{Store, StoreError};

pub(super) fn fix(error: &StoreError) -> String {
    let hint = error.hint();
    hint.unwrap_or_else(|| "look at the URL, the keys and their rights (docs/stores.md)".into())
}

/// Opens a target's place in a store, and tries the store unless that was done.
pub(super) async fn open(
    found: &mut Findings,
    name: &str,
    config: &StoreConfig,
    probed: &mut BTreeSet<String>,
) -> Option<Store> {
    let url = config.url.to_string();
    let store = match open_replica(config, name).await {
        Ok(store) => store,
        Err(error) => {
            found.fail("store", &url, &error, fix(&error));
            return None;
        }
    };
    let key = format!("{url} {:?} {:?}", config.endpoint, config.access_key_id);
    if !probed.insert(key) {
        return Some(store);
    }
    in_transit(found, &url, config);
    if !probe::rights(found, &url, &store).await {
        return None;
    }
    probe::bucket(found, config, &store).await;
    Some(store)
}

fn in_transit(found: &mut Findings, url: &str, config: &StoreConfig) {
    let plain = |e: &str| e.starts_with("http://");
    if config.endpoint.as_deref().is_some_and(plain) {
        found.warn(
            "encryption",
            url,
            "its endpoint is plain http: everybody on the way reads the data and can use the requests",
            "use https, or a network of its own",
        );
    } else if config.skip_verify {
        found.warn(
            "encryption",
            url,
            "its certificate is not verified: anybody on the way can pose as the store",
            "give the certificate authority with AWS_CA_BUNDLE or SSL_CERT_FILE, and take `skip-verify` out",
        );
    }
}

/// A SQLite target in one store.
pub(super) async fn replica(
    found: &mut Findings,
    config: &Config,
    target: &TargetConfig,
    store_config: &StoreConfig,
    probed: &mut BTreeSet<String>,
) -> Option<Bill> {
    same_device(found, target, store_config, probed);
    let store = open(found, &target.name, store_config, probed).await?;
    let subject = format!("{} in {}", target.name, store.display());
    let catalog = match planned(&store, Goal::Newest).await {
        Ok((plan, catalog)) => {
            let at = plan.as_of();
            let age = crate::labels::age(at, system_now());
            found.ok(
                "replica",
                &subject,
                format!("restorable up to {at}, {age} ago"),
            );
            catalog
        }
        Err(RestoreError::Plan(_)) => {
            found.warn(
                "replica",
                &subject,
                "no restore point yet",
                "`lifeboat run` replicates continuously, `lifeboat sync` once",
            );
            Catalog::new([])
        }
        Err(error) => {
            let fix = error.hint();
            let fix = fix.unwrap_or_else(|| format!("`lifeboat verify {}`", target.name));
            found.fail("replica", &subject, error, fix);
            return None;
        }
    };
    whose(found, config, target, &store, &subject).await;
    let database = std::fs::metadata(&target.path).map_or(0, |m| m.len());
    Some(Bill::of(&Facts {
        target: &target.name,
        store: &store.display(),
        options: &target.options,
        store_check: config.store_check,
        database,
        catalog: &catalog,
        now: system_now(),
    }))
}

fn same_device(
    found: &mut Findings,
    target: &TargetConfig,
    store: &StoreConfig,
    told: &mut BTreeSet<String>,
) {
    if store.kind() != StoreKind::File {
        return;
    }
    let Ok(path) = store.url.to_file_path() else {
        return;
    };
    let device = |path: &Path| {
        let there = path.ancestors().find(|p| p.exists())?;
        Some(std::fs::metadata(there).ok()?.dev())
    };
    let together = device(&path).is_some_and(|d| device(host::folder(&target.path)) == Some(d));
    if together && told.insert(format!("disk of {}", store.url)) {
        found.warn(
            "store",
            store.url.as_str(),
            format!(
                "it is on the same disk as {}: both are lost together",
                target.path.display()
            ),
            "use object storage, or a disk of another machine",
        );
    }
}

/// Whether this instance may go on with the replica.
async fn whose(
    found: &mut Findings,
    config: &Config,
    target: &TargetConfig,
    store: &Store,
    subject: &str,
) {
    let has_state = state_path(config, target).exists();
    match owner::read(store).await {
        Ok(Some(Ok(owner)))
            if owner.instance != config.instance && !owner.released && !has_state =>
        {
            found.warn(
                "owner",
                subject,
                format!("it belongs to {} since {}; this is {}, and nothing here continues it", owner.instance, owner.since, config.instance),
                format!("if that one is gone for good: `lifeboat claim {}`; else give this one a store path of its own", target.name),
            );
        }
        Ok(Some(Ok(owner))) => found.ok("owner", subject, owner.instance),
        Ok(None) => {}
        Ok(Some(Err(refusal))) => {
            found.fail("owner", subject, format!("{refusal:?}"), refusal.hint())
        }
        Err(error) => {
            let fix = fix(&error);
            found.fail("owner", subject, error, fix);
        }
    }
}
