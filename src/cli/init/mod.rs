//! `lifeboat init`: looks around and writes what it found out, asking nothing.
//!
//! In a Kamal project it reads `config/deploy.yml` and `config/database.yml`; elsewhere it looks for databases in folders. It never overwrites
//! a file that it did not write, but for `--force` and its own `lifeboat.yml`.

mod kamal;
mod project;
mod render;
mod scan;

use std::path::{Path, PathBuf};

use serde_json::json;

use self::kamal::Script;
use self::project::{Kind, Project};
use self::render::Plan;
use super::args::{Global, InitArgs};
use super::{Failure, ok};
use crate::config::Environment;

/// What is told at the end.
#[derive(Default)]
struct Told {
    written: Vec<PathBuf>,
    kept: Vec<String>,
    /// Databases that were found and are not protected, and why.
    left: Vec<String>,
    warnings: Vec<String>,
    next: Vec<String>,
}

pub(super) fn run(global: &Global, args: &InitArgs) -> Result<(), Failure> {
    let here = Path::new(".");
    let project = match args.folders.is_empty() {
        true => project::read(here).map_err(|e| {
            Failure::new(
                2,
                format!("{e}; nothing was written"),
                Some("mend it, or name the folders of the databases: lifeboat init FOLDER".into()),
            )
        })?,
        false => None,
    };
    if args.kamal && project.is_none() {
        return Err(Failure::new(
            2,
            "--kamal is for a project with config/deploy.yml; nothing was written",
            Some("run it in the project's folder, without folders".into()),
        ));
    }
    let mut told = Told::default();
    let mut plan = match &project {
        Some(project) => of_project(project, &mut told)?,
        None => of_folders(args, &mut told)?,
    };
    plan.store.clone_from(&args.store);
    let output = args.output.clone().unwrap_or_else(|| match &project {
        Some(_) => "config/lifeboat.yml".into(),
        None => "lifeboat.yml".into(),
    });
    let needs_keys = args.store.as_deref().is_none_or(|s| s.starts_with("s3://"));
    if plan.store.is_none() {
        told.next
            .push(format!("put your bucket into {}", output.display()));
    }
    let changes = changes(
        args,
        project.as_ref(),
        &output,
        &plan,
        needs_keys,
        &mut told,
    )?;
    if args.dry_run {
        for (path, text, _) in &changes {
            println!("# {}\n{text}", path.display());
        }
    } else {
        for (path, text, is_script) in &changes {
            write(path, text, *is_script)?;
            told.written.push(path.clone());
        }
    }
    if let Some(project) = project.as_ref().filter(|_| !args.kamal) {
        by_hand(global, project, needs_keys, &mut told);
    }
    next(project.is_some(), &mut told);
    tell(global, args, &plan, &told);
    Ok(())
}

fn of_project(project: &Project, told: &mut Told) -> Result<Plan, Failure> {
    let plan = Plan::of_project(project);
    for database in &project.databases {
        let role = &database.role;
        told.warnings.push(match &database.kind {
            Kind::Other(adapter) => format!("{role} is on {adapter}, which Lifeboat does not back up"),
            Kind::Unknown => format!(
                "{role}: ERB gives its adapter, which is not known here: if it is PostgreSQL or SQLite, add it to the configuration"
            ),
            Kind::Somewhere => format!(
                "{role}: ERB gives its path, which is not known here: every database of the volumes is taken; `lifeboat doctor` on the server says whether it is among them"
            ),
            Kind::Sqlite(_) | Kind::Postgres => continue,
        });
    }
    if plan.is_empty() {
        let also = told.warnings.iter().map(|w| format!("; {w}"));
        return Err(Failure::new(
            3,
            format!(
                "nothing to protect was found: config/deploy.yml mounts no volume with a database, and config/database.yml names none that Lifeboat knows{}; nothing was written",
                also.collect::<String>()
            ),
            Some("mount the folder of the databases as a volume of the app; or name the folders where databases are: lifeboat init FOLDER".into()),
        ));
    }
    for (role, path) in project.sqlite() {
        if project.volume_of(path).is_none() {
            told.warnings.push(format!(
                "{role} is {} in the container, and config/deploy.yml mounts no volume there: its data goes with the container, and a sidecar cannot see it",
                path.display()
            ));
        }
    }
    if !project.has_database_yml {
        told.warnings.push(
            "config/database.yml is not there: every database of the volumes is taken".into(),
        );
    }
    if project.hosts.len() > 1 && !plan.dirs.is_empty() {
        told.warnings.push(format!(
            "the app has {} servers: each has databases of its own, and one sidecar writes one replica; this is for {}",
            project.hosts.len(),
            project.hosts[0]
        ));
    }
    let of_this_server = !plan.dirs.is_empty() || !plan.databases.is_empty();
    for (role, host) in project.elsewhere.iter().filter(|_| of_this_server) {
        told.warnings.push(format!(
            "role {role} runs on {host}: SQLite databases there are its own, and nothing protects them: this is for {}",
            project.hosts.first().map_or("the web server", String::as_str)
        ));
    }
    Ok(plan)
}

fn of_folders(args: &InitArgs, told: &mut Told) -> Result<Plan, Failure> {
    let mut folders = args.folders.clone();
    if folders.is_empty() {
        folders.extend(scan::USUAL.iter().map(PathBuf::from).filter(|p| p.is_dir()));
    }
    if folders.is_empty() {
        folders.push(".".into());
    }
    let mut found = scan::Scan::default();
    for folder in &folders {
        let real = folder.canonicalize().map_err(|e| {
            Failure::new(
                2,
                format!("{}: {e}; nothing was written", folder.display()),
                Some("name a folder that is there".into()),
            )
        })?;
        scan::look(&real, &mut found);
    }
    let environment = Environment::of_process();
    let url = environment.get("DATABASE_URL").unwrap_or_default();
    let postgres = url.starts_with("postgres://") || url.starts_with("postgresql://");
    let shown: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
    if found.databases.is_empty() && !postgres {
        return Err(Failure::new(
            3,
            format!(
                "no SQLite database is in {}, and DATABASE_URL names no PostgreSQL server; nothing was written",
                shown.join(", ")
            ),
            Some("name the folder of the app's volume: lifeboat init /rails/storage".into()),
        ));
    }
    let state = environment.get("LIFEBOAT_STATE_DIR").map(PathBuf::from);
    let usual = Path::new("/var/lib/lifeboat");
    let mut plan = Plan {
        from: match postgres {
            true => format!("{} and DATABASE_URL", shown.join(", ")),
            false => shown.join(", "),
        },
        service: hostname(),
        postgres,
        state_dir: state.or_else(|| usual.is_dir().then(|| usual.to_owned())),
        ..Plan::default()
    };
    for (path, why) in plan.take(&found) {
        told.left.push(format!("{}: {why}", path.display()));
    }
    for path in &found.impostors {
        told.warnings.push(format!(
            "{} is named like a database and is none (or encrypted): databases of its folder are listed one by one, new ones are not found",
            path.display()
        ));
    }
    if plan.state_dir.is_none() {
        told.warnings.push(
            "no folder for local state was found: it will be in .lifeboat beside the databases"
                .into(),
        );
    }
    Ok(plan)
}

fn hostname() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    match name.is_empty() {
        true => "myapp".into(),
        false => name,
    }
}

type Change = (PathBuf, String, bool);

/// Every file that is to be written, none of them written yet.
fn changes(
    args: &InitArgs,
    project: Option<&Project>,
    output: &Path,
    plan: &Plan,
    needs_keys: bool,
    told: &mut Told,
) -> Result<Vec<Change>, Failure> {
    let mut changes = Vec::new();
    let yaml = plan.yaml();
    match std::fs::read_to_string(output) {
        Ok(own) if own == yaml => told
            .kept
            .push(format!("{} is as it would be written", output.display())),
        // The user's bucket is in it.
        Ok(_) if args.kamal && !args.force => told.kept.push(format!(
            "{} is there and stays as it is (--force replaces it)",
            output.display()
        )),
        Ok(_) if !args.force && !args.dry_run => {
            return Err(Failure::new(
                4,
                format!("{} is there and says something else; nothing was written", output.display()),
                Some("`--dry-run` shows what it would be, `--force` replaces it, `--output` writes another".into()),
            ));
        }
        _ => changes.push((output.to_owned(), yaml, false)),
    }
    let Some(project) = project.filter(|_| args.kamal) else {
        return Ok(changes);
    };
    let deploy = PathBuf::from("config/deploy.yml");
    let text = std::fs::read_to_string(&deploy)
        .map_err(|e| Failure::new(1, format!("{}: {e}", deploy.display()), None))?;
    match kamal::deploy_yml(&text, project, needs_keys) {
        Ok(Some(text)) => changes.push((deploy, text, false)),
        Ok(None) => told
            .kept
            .push("config/deploy.yml has the accessory and the aliases".into()),
        Err(why) => {
            return Err(Failure::new(
                1,
                format!("{why}; nothing was written"),
                Some("without --kamal the accessory and the aliases are printed: put them there by hand".into()),
            ));
        }
    }
    for script in kamal::scripts(project) {
        match script {
            Script::Same(path) => told
                .kept
                .push(format!("{} is as it would be written", path.display())),
            Script::New(path, text) => changes.push((path, text.to_owned(), true)),
            Script::Beside(path, text) => {
                told.warnings.push(format!(
                    "you have a hook of your own: call Lifeboat's from it, so that it stops the deploy if it fails: sh {} || exit 1",
                    path.display()
                ));
                changes.push((path, text.to_owned(), true));
            }
            Script::Changed(path) => told.warnings.push(format!(
                "{} stays as it is: it is Lifeboat's, but of another version, or changed by you; for this version's delete it and run this again",
                path.display()
            )),
        }
    }
    let path = project.secrets.clone();
    let own = std::fs::read_to_string(&path).unwrap_or_default();
    let missing = kamal::secrets(&own, project, needs_keys);
    if !missing.is_empty() {
        let gap = if own.is_empty() || own.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        changes.push((path, format!("{own}{gap}{missing}"), false));
    }
    Ok(changes)
}

fn write(path: &Path, text: &str, is_script: bool) -> Result<(), Failure> {
    let failed = |e: std::io::Error| {
        Failure::new(
            1,
            format!("{}: {e}; files before it were written", path.display()),
            Some(
                "make it writable and run `lifeboat init` again: it goes on where it stopped"
                    .into(),
            ),
        )
    };
    if is_script {
        return kamal::write_script(path, text).map_err(failed);
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(failed)?;
    // Whole or not at all: deploy.yml is the user's.
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    std::io::Write::write_all(&mut file, text.as_bytes()).map_err(failed)?;
    let mode = std::fs::metadata(path).map(|m| m.permissions());
    let plain = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file()
        .set_permissions(mode.unwrap_or(plain))
        .map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

/// Without `--kamal`, what has to go into `deploy.yml` is shown.
fn by_hand(global: &Global, project: &Project, needs_keys: bool, told: &mut Told) {
    told.next.push("let it write the accessory, the aliases, the hooks and bin/lifeboat-restore: lifeboat init --kamal".into());
    if global.json {
        return;
    }
    println!(
        "For config/deploy.yml (`lifeboat init --kamal` writes it there):\n\naccessories:\n{}\naliases:\n{}",
        kamal::accessory(project, needs_keys),
        kamal::aliases()
    );
}

fn next(is_project: bool, told: &mut Told) {
    let more: &[&str] = match is_project {
        true => &[
            "put the image's name and the values of the secrets where they belong",
            "kamal accessory boot lifeboat",
            "kamal accessory exec lifeboat --reuse \"lifeboat doctor\"",
        ],
        false => &["lifeboat doctor", "lifeboat run"],
    };
    told.next.extend(more.iter().map(|s| (*s).to_owned()));
}

fn tell(global: &Global, args: &InitArgs, plan: &Plan, told: &Told) {
    if global.json {
        let databases: Vec<_> = plan.databases.iter().map(|d| &d.path).collect();
        println!(
            "{}",
            json!({
                "written": told.written, "kept": told.kept, "left_out": told.left, "warnings": told.warnings, "next": told.next,
                "databases": databases, "folders": plan.dirs, "postgres": plan.postgres,
            })
        );
    } else {
        told.warnings.iter().for_each(|w| println!("WARNING: {w}"));
        told.left.iter().for_each(|l| println!("left out {l}"));
        told.kept.iter().for_each(|k| println!("kept: {k}"));
        told.written
            .iter()
            .for_each(|w| println!("wrote {}", w.display()));
        println!("Next:");
        for (n, step) in told.next.iter().enumerate() {
            println!("  {}. {step}", n + 1);
        }
    }
    let note = if args.dry_run { " dry-run" } else { "" };
    ok(&format!("init written={}{note}", told.written.len()));
}
