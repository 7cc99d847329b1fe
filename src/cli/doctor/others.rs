//! Servers that are dumped, and folders of files.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::bill::{Bill, Copies};
use super::{Findings, stores};
use crate::config::{Config, FilesConfig};
use crate::daemon::fleet::system_now;
use crate::daemon::postgres::{Ask, Database, open};
use crate::files;
use crate::labels::age;
use crate::postgres::{self, PostgresError};
use crate::store::Store;
use crate::types::Millis;

fn postgres_fix(error: &PostgresError) -> String {
    let hint = error.hint();
    hint.unwrap_or_else(|| {
        "look at the URL and at the rights of its role (docs/postgresql.md, docs/redis.md)".into()
    })
}

pub(super) async fn dumps(
    found: &mut Findings,
    config: &Config,
    probed: &mut BTreeSet<String>,
) -> Vec<Bill> {
    let mut bills = Vec::new();
    for server in &config.postgres {
        for store in &server.stores {
            stores::open(found, &server.name, store, probed).await;
        }
        let databases = match open(config, server, Ask::Server).await {
            Ok(databases) => databases,
            Err(error) => {
                found.fail("server", &server.name, &error, postgres_fix(&error));
                continue;
            }
        };
        for database in &databases {
            match look(database).await {
                Ok(words) => found.ok("server", &database.name, words),
                Err(error) => {
                    found.fail("server", &database.name, &error, postgres_fix(&error));
                }
            }
            bills.extend(newest_dump(found, database).await);
        }
    }
    bills
}

/// Everything that a dump needs.
async fn look(database: &Database) -> Result<String, PostgresError> {
    database.preflight().await?;
    Ok(format!(
        "{} answers, and everything in it may be read",
        database.origin.display()
    ))
}

async fn newest_dump(found: &mut Findings, database: &Database) -> Vec<Bill> {
    let mut bills = Vec::new();
    for store in &database.stores {
        let subject = format!("{} in {}", database.name, store.display());
        match postgres::list(store).await {
            Ok(dumps) => match dumps.last() {
                Some(m) => {
                    let ago = age(Millis(m.began.as_millisecond()), system_now());
                    found.ok(
                        "dumps",
                        &subject,
                        format!("the newest is {}, {ago} ago", m.id),
                    );
                    let copies = Copies {
                        target: &database.name,
                        store: &store.display(),
                        kind: database.origin.kind().word(),
                        schedule: &database.server.schedule,
                        time_zone: &database.server.time_zone,
                        retention: database.server.retention,
                        points: dumps.len(),
                        bytes_now: dumps.iter().map(postgres::Manifest::stored_bytes).sum(),
                        each: m.stored_bytes(),
                    };
                    bills.extend(copies.bill(Timestamp::now()));
                }
                None => found.warn(
                    "dumps",
                    &subject,
                    "no dump yet",
                    format!(
                        "`lifeboat run` makes them by schedule, `lifeboat snapshot {}` now",
                        database.name
                    ),
                ),
            },
            Err(error) => found.fail("dumps", &subject, &error, postgres_fix(&error)),
        }
    }
    bills
}

pub(super) async fn folders(
    found: &mut Findings,
    config: &Config,
    probed: &mut BTreeSet<String>,
) -> Vec<Bill> {
    let mut bills = Vec::new();
    for target in &config.files {
        for path in target.paths.iter().filter(|p| !p.is_dir()) {
            found.fail(
                "files",
                &target.name,
                format!("{} is not there", path.display()),
                "mount the volume, or take the folder out of `paths`",
            );
        }
        for store in &target.stores {
            stores::open(found, &target.name, store, probed).await;
            // One that cannot be opened was told just now.
            if let Ok(opened) = crate::daemon::files::open_in(config, target, store).await {
                bills.extend(repository(found, opened, &config.time_zone).await);
            }
        }
    }
    bills
}

async fn repository(found: &mut Findings, target: files::Target, zone: &TimeZone) -> Option<Bill> {
    let subject = format!("{} in {}", target.config.name, target.store.display());
    let (name, create) = (target.config.name.clone(), target.config.create);
    let (config, store) = (target.config.clone(), target.store.clone());
    let mut bill = None;
    let listed = tokio::task::spawn_blocking(move || files::list(&target)).await;
    let now = format!("`lifeboat run` makes them by schedule, `lifeboat snapshot {name}` now");
    match listed {
        Ok(Ok(points)) => match points.iter().rfind(|p| !p.partial) {
            Some(p) => {
                let ago = age(Millis(p.time.as_millisecond()), system_now());
                found.ok(
                    "files",
                    &subject,
                    format!("the newest whole snapshot is {ago} old"),
                );
                bill = repository_bill((&config, zone), &store, &points).await;
            }
            None => found.warn("files", &subject, "no whole snapshot yet", now),
        },
        Ok(Err(files::FilesError::NoRepository(_))) if create => {
            found.warn("files", &subject, "no snapshot yet", now);
        }
        Ok(Err(error)) => {
            let fix = error.hint();
            let fix = fix.unwrap_or_else(|| format!("`lifeboat verify {name}`"));
            found.fail("files", &subject, error, fix);
        }
        Err(error) => found.fail("files", &subject, error, "report this, please"),
    }
    bill
}

async fn repository_bill(
    (config, zone): (&FilesConfig, &TimeZone),
    store: &Store,
    points: &[files::Point],
) -> Option<Bill> {
    // That it can be listed was said above; the bill is no check.
    let objects = store.list("").await.ok()?;
    // The first snapshot holds everything, the others what changed.
    let changes = points.iter().skip(1).map(|p| p.added).sum::<u64>();
    let others = (points.len() as u64).saturating_sub(1);
    let copies = Copies {
        target: &config.name,
        store: &store.display(),
        kind: "files",
        schedule: &config.schedule,
        time_zone: zone,
        retention: config.retention,
        points: points.len(),
        bytes_now: objects.iter().map(|o| o.size).sum(),
        each: changes.checked_div(others).unwrap_or(0),
    };
    copies.bill(Timestamp::now())
}
