//! Commands that look, and `claim` and `release`.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::args::{ConfigAction, Global};
use super::{Failure, counted, load, ok};
use crate::config::{Config, StoreConfig, TargetConfig};
use crate::daemon::control::once;
use crate::daemon::fleet::{open_replica, socket_path, system_now};
use crate::labels::{self, Label, Pin};
use crate::replica::owner::{self, Owner};
use crate::replica::upload::Replica;
use crate::restore::catalog;
use crate::restore::plan::{Catalog, Goal, plan};
use crate::retention;
use crate::store::{PutMode, Store};
use crate::types::Lineage;

pub(super) fn chosen<'a>(
    config: &'a Config,
    names: &[String],
) -> Result<Vec<&'a TargetConfig>, Failure> {
    if names.is_empty() {
        return Ok(config.targets.iter().collect());
    }
    let found = |name: &String| {
        find(config, name).ok_or_else(|| {
            Failure::new(
                2,
                format!("no target is named \"{name}\""),
                Some("`lifeboat config show` lists the targets".into()),
            )
        })
    };
    names.iter().map(found).collect()
}

/// By name, or by the path of the database.
fn find<'a>(config: &'a Config, name: &str) -> Option<&'a TargetConfig> {
    let path = std::path::absolute(name).ok();
    let is = |t: &&TargetConfig| t.name == name || Some(&t.path) == path.as_ref();
    config.targets.iter().find(is)
}

/// Paths of databases become the names of their targets, each once; what is unknown stays as it is.
pub(super) fn by_name(config: &Config, names: Vec<String>) -> Vec<String> {
    let name = |n: String| find(config, &n).map_or(n, |t| t.name.clone());
    once(names.into_iter().map(name))
}

pub(super) async fn health(config: Config) -> Result<(), Failure> {
    if config.http.is_none() {
        return Err(Failure::new(
            1,
            "http is off: liveness cannot be asked",
            Some("set http: { listen: 127.0.0.1:9464 }".into()),
        ));
    }
    get(&config, None, "/healthz").await?;
    ok("health");
    Ok(())
}

/// One HTTP/1.0 request on loopback: too little for a client library.
pub(super) async fn get(
    config: &Config,
    address: Option<String>,
    path: &str,
) -> Result<String, Failure> {
    // A server on every interface answers on loopback, too.
    let own = config.http.map(|a| match a.ip() {
        ip if ip.is_unspecified() => format!("127.0.0.1:{}", a.port()),
        _ => a.to_string(),
    });
    let address = address.or(own);
    let hint = Some("is `lifeboat run` running with this configuration?".to_owned());
    let Some(address) = address else {
        return Err(Failure::new(
            1,
            format!(
                "no daemon answers on {}, and http is off",
                socket_path(config).display()
            ),
            hint,
        ));
    };
    let token = config.http_token.as_ref();
    let token = token.map_or_else(String::new, |t| {
        format!("Authorization: Bearer {}\r\n", t.reveal())
    });
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(&address).await?;
        stream
            .write_all(format!("GET {path} HTTP/1.0\r\n{token}\r\n").as_bytes())
            .await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok::<_, std::io::Error>(text)
    };
    let text = match tokio::time::timeout(std::time::Duration::from_secs(5), ask).await {
        Ok(Ok(text)) => text,
        Ok(Err(e)) => {
            return Err(Failure::new(
                1,
                format!("the daemon at {address} cannot be reached: {e}"),
                hint,
            ));
        }
        Err(_) => {
            return Err(Failure::new(
                1,
                format!("the daemon at {address} does not answer"),
                hint,
            ));
        }
    };
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    if head.split_whitespace().nth(1) == Some("200") {
        return Ok(body.to_owned());
    }
    Err(Failure::new(
        1,
        format!(
            "the daemon at {address} answers {}",
            head.lines().next().unwrap_or_default()
        ),
        hint,
    ))
}

pub(super) async fn list(
    config: Config,
    target: Option<String>,
    as_json: bool,
) -> Result<(), Failure> {
    let mut values = Vec::new();
    let mut failed: Vec<Failure> = Vec::new();
    for target in chosen(&config, &Vec::from_iter(target))? {
        for store in &target.options.stores {
            let replica = open_replica(store, &target.name).await?;
            let catalog = match catalog(&replica, Goal::Newest).await {
                Ok(catalog) => catalog,
                // The other stores may be all that is left: they are listed first, then this is said.
                Err(error) => {
                    let failure = Failure::from(error);
                    if as_json {
                        values.push(json!({ "target": target.name, "store": replica.display(), "error": failure.message, "hint": failure.hint }));
                    }
                    failed.push(failure);
                    continue;
                }
            };
            let points = catalog.points();
            let known = labels::list(&replica).await?;
            let unfinished = super::labels::unfinished(&known, &config).await;
            let bytes: u64 = catalog.entries().iter().map(|e| e.size).sum();
            if as_json {
                let points: Vec<_> = points
                    .iter()
                    .map(|p| json!({ "txid": p.txid.to_string(), "at": p.at.to_string() }))
                    .collect();
                values.push(json!({ "target": target.name, "store": replica.display(), "objects": catalog.entries().len(), "bytes": bytes, "points": points, "labels": super::labels::json_of(&known, &catalog, &unfinished) }));
                continue;
            }
            println!(
                "{} in {}: {} in {}, {bytes} bytes",
                target.name,
                replica.display(),
                counted(points.len() as u64, "point"),
                counted(catalog.entries().len() as u64, "object")
            );
            for point in points.iter().rev().take(20).rev() {
                println!("  TXID {}  {}", point.txid, point.at);
            }
            super::labels::show(&known, &catalog, &unfinished, system_now());
        }
    }
    if as_json {
        println!("{}", Value::Array(values));
    }
    failed.into_iter().next().map_or(Ok(()), Err)
}

fn prune_failed(error: retention::PruneError) -> Failure {
    match error {
        retention::PruneError::Refused(e) => Failure::new(4, &e, Some(e.hint())),
        retention::PruneError::Upload(e) => Failure::new(1, &e, e.hint()),
        e @ retention::PruneError::Label(_) => Failure::new(
            1,
            &e,
            Some("look at the object; only if it is beyond repair, delete it".into()),
        ),
    }
}

/// Plans for each store of each target, prints, and (unless dry) deletes. The owner is read before anything is deleted.
pub(super) async fn prune(
    config: Config,
    names: Vec<String>,
    dry_run: bool,
    as_json: bool,
) -> Result<(), Failure> {
    let targets = chosen(&config, &names)?;
    let mut deleted = 0;
    for target in &targets {
        let policy = target.options.retention;
        for store in &target.options.stores {
            let store = open_replica(store, &target.name).await?;
            let owner = match owner::read(&store).await? {
                Some(Ok(owner)) => owner,
                Some(Err(damage)) => return Err(Failure::new(1, &damage, Some(damage.hint()))),
                None => {
                    let message = format!(
                        "{} in {} has no owner; nothing was deleted",
                        target.name,
                        store.display()
                    );
                    return Err(Failure::new(
                        3,
                        message,
                        Some("`lifeboat run` makes this instance the owner".into()),
                    ));
                }
            };
            if owner.instance != config.instance && !dry_run {
                let message = format!(
                    "{} in {} belongs to {}; nothing was deleted",
                    target.name,
                    store.display(),
                    owner.instance
                );
                return Err(Failure::new(
                    4,
                    message,
                    Some("prune where it is written".into()),
                ));
            }
            let catalog = Replica::list(&store).await?;
            let mut replica = Replica::open(store, catalog, owner).await?;
            let mut pins = retention::Pins::default();
            let planned = retention::prepare(&mut replica, &policy, &mut pins, system_now()).await;
            let planned = planned.map_err(prune_failed)?;
            super::labels::show_ending(&target.name, &planned, as_json);
            for decision in &planned.plan.decisions {
                if as_json {
                    let reasons: Vec<String> =
                        decision.reasons.iter().map(ToString::to_string).collect();
                    println!(
                        "{}",
                        json!({ "target": target.name, "store": replica.store().display(), "file": decision.entry.span.to_string(), "bytes": decision.entry.size, "keep": decision.keep, "reasons": reasons })
                    );
                } else if dry_run || !decision.keep {
                    println!("{}: {decision}", target.name);
                }
            }
            if !dry_run {
                let done = retention::run(&mut replica, &policy, &mut pins, system_now()).await;
                deleted += done.map_err(prune_failed)?.objects;
            }
        }
    }
    ok(&format!(
        "prune targets={} deleted={deleted}{}",
        targets.len(),
        if dry_run { " dry-run" } else { "" }
    ));
    Ok(())
}

/// `claim` makes this instance the owner; `release` lets any instance with page proof become it. No names: every target.
pub(super) async fn claim(config: Config, names: Vec<String>, take: bool) -> Result<(), Failure> {
    let word = if take { "claim" } else { "release" };
    let names = by_name(&config, names);
    let targets = chosen(&config, &names)?;
    if targets.is_empty() {
        return Err(Failure::new(
            3,
            format!("there is no target to {word}"),
            Some("`lifeboat config show` lists the targets".into()),
        ));
    }
    // Each for itself: one that fails keeps no other from its new owner.
    let (mut done, mut failed) = (Vec::new(), None);
    for target in &targets {
        for store in &target.options.stores {
            match hand_over(&config, target, store, take).await {
                Ok(true) => done.push(target.name.as_str()),
                Ok(false) if names.is_empty() => {}
                Ok(false) => {
                    return Err(Failure::new(
                        3,
                        format!("{} has no owner", target.name),
                        None,
                    ));
                }
                Err(failure) => {
                    if targets.len() > 1 {
                        eprintln!("{}: {}", target.name, failure.message);
                    }
                    failed.get_or_insert((&target.name, failure));
                }
            }
        }
    }
    done.dedup();
    if let Some((name, failure)) = failed {
        if targets.len() == 1 {
            return Err(failure);
        }
        let done = if done.is_empty() {
            "none".to_owned()
        } else {
            done.join(", ")
        };
        return Err(Failure {
            message: format!("{name}: {}; {word} is done for: {done}", failure.message),
            ..failure
        });
    }
    ok(&match names.as_slice() {
        [name] => format!("{word} target={name}"),
        _ => format!("{word} targets={}", done.len()),
    });
    Ok(())
}

/// In one store. `false`: nobody owns it, so there is nothing to release.
async fn hand_over(
    config: &Config,
    target: &TargetConfig,
    store: &StoreConfig,
    take: bool,
) -> Result<bool, Failure> {
    let replica = open_replica(store, &target.name).await?;
    let current = match owner::read(&replica).await? {
        Some(Ok(owner)) => Some(owner),
        Some(Err(damage)) if !take => {
            return Err(Failure::new(1, &damage, Some(damage.hint())));
        }
        Some(Err(_)) | None => None,
    };
    let owner = match current {
        Some(owner) if take => Owner {
            instance: config.instance.clone(),
            epoch: owner.epoch.saturating_add(1),
            since: system_now().to_string(),
            claimed: true,
            released: false,
            ..owner
        },
        Some(owner) => Owner {
            released: true,
            claimed: false,
            ..owner
        },
        None if take => {
            let lineage = Lineage::new(rand::random()).unwrap_or(Lineage::ONE);
            Owner {
                claimed: true,
                ..Owner::new(lineage, &config.instance, 1, system_now())
            }
        }
        None => {
            println!(
                "{} has no owner in {}: nothing to release",
                target.name,
                replica.display()
            );
            return Ok(false);
        }
    };
    let pinned = if take {
        pin_old_history(&replica, &config.instance).await?
    } else {
        None
    };
    owner::write(&replica, &owner, PutMode::Overwrite).await?;
    println!(
        "{} in {}: {} (epoch {}){}; nothing else was changed",
        target.name,
        replica.display(),
        if take { "claimed" } else { "released" },
        owner.epoch,
        pinned.map_or_else(String::new, |label| format!(
            "; its newest point is pinned as {label}"
        ))
    );
    Ok(true)
}

/// Pins the newest point of a replica that is about to get another owner. A replica without one has nothing to pin.
async fn pin_old_history(store: &Store, instance: &str) -> Result<Option<String>, Failure> {
    let catalog = Catalog::new(Replica::list(store).await?.into_values());
    let Ok(plan) = plan(&catalog, Goal::Newest) else {
        return Ok(None);
    };
    let now = system_now();
    let name = labels::auto("before-claim", now);
    let label = Label {
        format: 1,
        label: name.clone(),
        at: now.to_string(),
        pin: Pin::sqlite(plan.reaches),
        version: None,
        instance: instance.to_owned(),
        set: None,
        written: None,
    };
    Ok(Some(labels::create(&name, &[(store, label)]).await?))
}

pub(super) fn config(global: &Global, action: ConfigAction) -> Result<(), Failure> {
    match action {
        ConfigAction::Schema => println!("{:#}", crate::config::schema()),
        ConfigAction::Show => println!("{:#}", load(global, Vec::new())?.show()),
        ConfigAction::Check => {
            let config = load(global, Vec::new())?;
            config.notices.iter().for_each(|n| println!("{n}"));
            ok(&format!(
                "config targets={}",
                config.targets.len() + config.files.len()
            ));
        }
    }
    Ok(())
}
