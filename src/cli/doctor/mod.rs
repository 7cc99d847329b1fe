//! `lifeboat doctor`: looks at everything that has to be right, says what is not, and how to mend it. Changes nothing but for one
//! scratch object in each store, which it deletes again.

mod bill;
mod host;
mod others;
mod probe;
mod stores;
mod unprotected;

use std::path::PathBuf;

pub(super) use bill::size;
pub(super) use host::is_sqlite;

use serde::Serialize;
use serde_json::json;

use super::args::Global;
use super::{Failure, counted, ok};
use crate::config::Config;

/// Version of the answer.
const FORMAT: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warning,
    Failed,
}

#[derive(Debug, Serialize)]
struct Check {
    check: &'static str,
    /// A target, a store, a folder.
    subject: String,
    status: Status,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

/// What was found so far. Whatever is not right comes with a fix.
#[derive(Debug, Default)]
struct Findings {
    checks: Vec<Check>,
}

impl Findings {
    fn add(
        &mut self,
        check: &'static str,
        subject: &str,
        status: Status,
        detail: impl ToString,
        fix: Option<String>,
    ) {
        self.checks.push(Check {
            check,
            subject: subject.to_owned(),
            status,
            detail: detail.to_string(),
            fix,
        });
    }

    fn ok(&mut self, check: &'static str, subject: &str, detail: impl ToString) {
        self.add(check, subject, Status::Ok, detail, None);
    }

    fn warn(
        &mut self,
        check: &'static str,
        subject: &str,
        detail: impl ToString,
        fix: impl Into<String>,
    ) {
        self.add(check, subject, Status::Warning, detail, Some(fix.into()));
    }

    fn fail(
        &mut self,
        check: &'static str,
        subject: &str,
        detail: impl ToString,
        fix: impl Into<String>,
    ) {
        self.add(check, subject, Status::Failed, detail, Some(fix.into()));
    }

    fn count(&self, status: Status) -> usize {
        self.checks.iter().filter(|c| c.status == status).count()
    }
}

pub(super) async fn run(global: &Global, volumes: Vec<PathBuf>) -> Result<(), Failure> {
    let mut found = Findings::default();
    let config = match super::load(global, Vec::new()) {
        Ok(config) => config,
        Err(failure) => {
            let fix = failure.hint.clone();
            let fix = fix.unwrap_or_else(|| "`lifeboat init` writes a new one".into());
            found.fail("configuration", "", &failure.message, fix);
            show(global, &found, &[], None);
            return Err(failure);
        }
    };
    about_config(&mut found, &config);
    about_people(&mut found, &config);
    let bills = everything(&mut found, &config).await;
    let volume = unprotected::look(&config, volumes);
    unprotected::judge(&mut found, &volume);
    show(global, &found, &bills, Some(&volume));
    let (failed, warnings) = (found.count(Status::Failed), found.count(Status::Warning));
    if failed > 0 {
        return Err(Failure::new(
            1,
            format!(
                "{failed} of {} checks failed; nothing was changed",
                found.checks.len()
            ),
            Some("mend what is marked FAILED above, from the top, and run it again".into()),
        ));
    }
    if !global.json {
        ok(&format!(
            "doctor checks={} warnings={warnings}",
            found.checks.len()
        ));
    }
    Ok(())
}

fn about_config(found: &mut Findings, config: &Config) {
    let targets = config.targets.len() + config.postgres.len() + config.files.len();
    found.ok(
        "configuration",
        "",
        format!(
            "{}, instance {}",
            counted(targets as u64, "target"),
            config.instance
        ),
    );
    for notice in &config.notices {
        found.ok("configuration", "", notice);
    }
    if config.drill.schedule.is_none() {
        found.warn(
            "drills",
            "",
            "no drill is scheduled: nobody restores these copies until they are needed",
            "drill: { schedule: \"0 4 * * *\" }",
        );
    }
    for server in config.postgres.iter().filter(|s| s.lacks_drills()) {
        found.warn(
            "drills",
            &server.name,
            "it has no `drill-url`: nobody restores its dumps until they are needed",
            crate::cli::drill::ADD_DRILL_URL,
        );
    }
}

fn about_people(found: &mut Findings, config: &Config) {
    match config.notify.len() {
        0 => found.warn(
            "notify",
            "",
            "nobody is told of trouble",
            "notify: [{ slack: \"${SLACK_WEBHOOK_URL}\" }] (docs/notifications.md)",
        ),
        n => found.ok("notify", "", format!("{n} receivers are told of trouble")),
    }
}

async fn everything(found: &mut Findings, config: &Config) -> Vec<bill::Bill> {
    let mut bills = Vec::new();
    let mut probed = std::collections::BTreeSet::new();
    for target in &config.targets {
        host::database(found, config, target);
        for store in &target.options.stores {
            let bill = stores::replica(found, config, target, store, &mut probed).await;
            bills.extend(bill);
        }
    }
    host::state(found, config);
    bills.extend(others::dumps(found, config, &mut probed).await);
    bills.extend(others::folders(found, config, &mut probed).await);
    bills
}

fn show(
    global: &Global,
    found: &Findings,
    bills: &[bill::Bill],
    volume: Option<&unprotected::Volume>,
) {
    if global.json {
        let all = json!({
            "format": FORMAT,
            "ok": found.count(Status::Failed) == 0,
            "checks": found.checks,
            "unprotected": volume,
            "bill": bills,
            "prices": bill::PRICES,
        });
        println!("{all:#}");
        return;
    }
    for check in &found.checks {
        let word = match check.status {
            Status::Ok => "ok     ",
            Status::Warning => "WARNING",
            Status::Failed => "FAILED ",
        };
        let subject = match check.subject.as_str() {
            "" => String::new(),
            subject => format!("{subject}: "),
        };
        println!("{word} {:<13} {subject}{}", check.check, check.detail);
        if let Some(fix) = &check.fix {
            println!("{:21} fix: {fix}", "");
        }
    }
    if !bills.is_empty() {
        println!("\nExpected bill of a month:");
        bills.iter().for_each(|bill| println!("  {}", bill.words()));
        if bills.iter().any(bill::Bill::costs) {
            println!("  {}", bill::explanation());
        }
    }
}
