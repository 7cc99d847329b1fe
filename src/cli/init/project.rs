//! What a Rails project says of itself: `config/deploy.yml` and `config/database.yml`, on the machine of a developer.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// A Kamal project.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Project {
    pub(super) service: String,
    /// Of the web role, or of all.
    pub(super) hosts: Vec<String>,
    /// Other roles, each on a server that is none of these.
    pub(super) elsewhere: Vec<(String, String)>,
    /// Named volumes or folders of the server, and where the app mounts them.
    pub(super) volumes: Vec<(String, PathBuf)>,
    /// Names of accessories, and whether one is of PostgreSQL.
    pub(super) accessories: Vec<String>,
    pub(super) has_postgres_accessory: bool,
    /// Its production databases.
    pub(super) databases: Vec<Database>,
    /// Where Kamal looks for hooks.
    pub(super) hooks: PathBuf,
    /// The file in which Kamal reads secrets whatever the destination is.
    pub(super) secrets: PathBuf,
    /// Uploads are files on the volume.
    pub(super) uploads_on_disk: bool,
    /// `database.yml` was read.
    pub(super) has_database_yml: bool,
}

/// One of production's databases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Database {
    /// `primary`, `cache`, ...
    pub(super) role: String,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// In the container: absolute.
    Sqlite(PathBuf),
    /// SQLite, at a path that only ERB knows.
    Somewhere,
    /// Whatever ERB says.
    Unknown,
    Postgres,
    /// Another adapter.
    Other(String),
}

/// Reads the project in `folder`; `None` if it has no `config/deploy.yml`.
///
/// # Errors
/// In words: a file that is there and cannot be read.
pub(super) fn read(folder: &Path) -> Result<Option<Project>, String> {
    let Some(text) = text(&folder.join("config/deploy.yml"))? else {
        return Ok(None);
    };
    let mut project = of_deploy(&parse(&text).map_err(|e| format!("config/deploy.yml: {e}"))?);
    if let Some(text) = self::text(&folder.join("config/database.yml"))? {
        let value = parse(&text).map_err(|e| format!("config/database.yml: {e}"))?;
        project.databases = databases(&value["production"]);
        project.has_database_yml = true;
    }
    project.secrets = secrets_file(folder, project.secrets);
    let service = text_of(folder, "config/storage.yml")?;
    let production = text_of(folder, "config/environments/production.rb")?;
    project.uploads_on_disk = disk_services(&service)
        .iter()
        .any(|name| production.contains(&format!("active_storage.service = :{name}")));
    Ok(Some(project))
}

fn text(path: &Path) -> Result<Option<String>, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(format!("{}: {e}", path.display())),
    }
}

fn text_of(folder: &Path, name: &str) -> Result<String, String> {
    Ok(text(&folder.join(name))?.unwrap_or_default())
}

/// With a destination Kamal reads `secrets-common` and `secrets.<destination>`, and not `secrets`.
fn secrets_file(folder: &Path, path: PathBuf) -> PathBuf {
    let with = |suffix: &str| {
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    };
    let common = with("-common");
    let begin = with(".");
    let begin = begin.file_name().unwrap_or_default().as_encoded_bytes();
    let beside = folder.join(path.parent().unwrap_or(Path::new("")));
    let of_destination = || {
        let entries = std::fs::read_dir(&beside).into_iter().flatten().flatten();
        let mut names = entries.map(|e| e.file_name());
        names.any(|n| n.as_encoded_bytes().starts_with(begin))
    };
    let is_common =
        folder.join(&common).exists() || !folder.join(&path).exists() && of_destination();
    if is_common { common } else { path }
}

/// What ERB would put in is not known here.
const UNKNOWN: &str = "from-erb";

/// YAML with ERB: what ERB would print becomes a word, lines that only control it go.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut plain = String::new();
    for line in text.lines() {
        let mut out = String::new();
        let (mut rest, mut prints, mut had) = (line, false, false);
        while let Some(start) = rest.find("<%") {
            had = true;
            out += &rest[..start];
            let end = rest[start..]
                .find("%>")
                .map_or(rest.len(), |e| start + e + 2);
            if rest[start..].starts_with("<%=") {
                prints = true;
                out += UNKNOWN;
            }
            rest = &rest[end..];
        }
        out += rest;
        if !had || prints || !out.trim().is_empty() {
            plain += &out;
            plain.push('\n');
        }
    }
    serde_saphyr::from_str(&plain)
        .map_err(|e| e.to_string().lines().next().unwrap_or_default().to_owned())
}

fn words(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.filter_map(|v| match v {
        Value::String(s) => Some(s.clone()),
        // `- 192.0.2.10: [tag]`
        Value::Object(map) => map.keys().next().cloned(),
        other => Some(other.to_string()),
    })
    .collect()
}

/// A list, or `hosts` or `host` of a map.
fn hosts_of(role: &Value) -> Vec<String> {
    let mut hosts = words(role);
    if hosts.is_empty() {
        hosts = words(&role["hosts"]);
    }
    if hosts.is_empty()
        && let Some(host) = role["host"].as_str()
    {
        hosts.push(host.to_owned());
    }
    hosts
}

fn of_deploy(deploy: &Value) -> Project {
    let servers = &deploy["servers"];
    let web = match &servers["web"] {
        Value::Null => servers,
        web => web,
    };
    let hosts = hosts_of(web);
    let roles = servers.as_object().into_iter().flatten();
    let elsewhere = roles
        .filter(|(role, _)| *role != "web")
        .flat_map(|(role, of)| {
            let others = hosts_of(of).into_iter().filter(|h| !hosts.contains(h));
            others.map(|host| (role.clone(), host)).collect::<Vec<_>>()
        });
    let elsewhere = elsewhere.collect();
    let volumes = words(&deploy["volumes"]);
    let volumes = volumes.iter().filter_map(|v| {
        let mut parts = v.splitn(3, ':');
        let (source, target) = (parts.next()?, parts.next()?);
        // Docker's own, for example, which a sidecar has no business with.
        (!target.ends_with(".sock")).then(|| (source.to_owned(), PathBuf::from(target)))
    });
    let path = |key: &str, usual: &str| match deploy[key].as_str() {
        Some(path) if !path.contains(UNKNOWN) => PathBuf::from(path),
        _ => PathBuf::from(usual),
    };
    let accessories = deploy["accessories"].as_object();
    let is_postgres = |v: &Value| {
        v["image"].as_str().is_some_and(|i| {
            i.contains("postgres") || i.contains("postgis") || i.contains("pgvector")
        })
    };
    Project {
        service: deploy["service"].as_str().unwrap_or("myapp").to_owned(),
        hosts,
        elsewhere,
        volumes: volumes.collect(),
        hooks: path("hooks_path", ".kamal/hooks"),
        secrets: path("secrets_path", ".kamal/secrets"),
        has_postgres_accessory: accessories.is_some_and(|a| a.values().any(is_postgres)),
        accessories: accessories.map_or(Vec::new(), |a| a.keys().cloned().collect()),
        ..Project::default()
    }
}

/// Where Rails images have the app.
const ROOT: &str = "/rails";

/// One database, or several by role.
fn databases(production: &Value) -> Vec<Database> {
    let is_one = production["adapter"].is_string() || production["url"].is_string();
    if is_one
        && !production
            .as_object()
            .is_some_and(|m| m.values().any(Value::is_object))
    {
        return database("primary", production).into_iter().collect();
    }
    let roles = production.as_object().into_iter().flatten();
    roles
        .filter(|(_, v)| v.is_object())
        .filter_map(|(role, v)| database(role, v))
        .collect()
}

fn database(role: &str, value: &Value) -> Option<Database> {
    let url = value["url"].as_str().unwrap_or_default();
    let adapter = match value["adapter"].as_str() {
        Some(adapter) => adapter,
        None => url.split(':').next().unwrap_or_default(),
    };
    let kind = match adapter {
        "sqlite3" | "litedb" => match value["database"].as_str().or(sqlite_url(url)) {
            Some(path) if !path.contains(UNKNOWN) => Kind::Sqlite(Path::new(ROOT).join(path)),
            _ => Kind::Somewhere,
        },
        "postgresql" | "postgres" | "postgis" => Kind::Postgres,
        "" => return None,
        other if other.contains(UNKNOWN) => Kind::Unknown,
        other => Kind::Other(other.to_owned()),
    };
    let role = role.to_owned();
    Some(Database { role, kind })
}

/// The path in `sqlite3:storage/a.sqlite3` or `sqlite3:///data/a.sqlite3`.
fn sqlite_url(url: &str) -> Option<&str> {
    let path = url.strip_prefix("sqlite3:")?.split('?').next()?;
    let path = path.strip_prefix("//").unwrap_or(path);
    (!path.is_empty()).then_some(path)
}

/// Names of Active Storage services that keep files on disk.
fn disk_services(storage: &str) -> Vec<String> {
    let Ok(value) = parse(storage) else {
        return Vec::new();
    };
    let services = value.as_object().into_iter().flatten();
    services
        .filter(|(_, v)| v["service"] == "Disk")
        .map(|(name, _)| name.clone())
        .collect()
}

impl Project {
    /// SQLite databases, each with its role.
    pub(super) fn sqlite(&self) -> Vec<(&str, &Path)> {
        self.databases
            .iter()
            .filter_map(|d| match &d.kind {
                Kind::Sqlite(path) => Some((d.role.as_str(), path.as_path())),
                _ => None,
            })
            .collect()
    }

    pub(super) fn has_postgres(&self) -> bool {
        self.databases.iter().any(|d| d.kind == Kind::Postgres)
            || self.has_postgres_accessory && !self.has_database_yml
    }

    /// The volume that holds a path of the container.
    pub(super) fn volume_of(&self, path: &Path) -> Option<&(String, PathBuf)> {
        self.volumes.iter().find(|(_, at)| path.starts_with(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rails_8_and_kamal_generate() {
        let deploy = r##"
service: myapp
image: your-user/myapp
servers:
  web:
    - 192.168.0.1
  # job:
proxy:
  ssl: true
registry:
  password:
    - KAMAL_REGISTRY_PASSWORD
env:
  secret: [RAILS_MASTER_KEY]
  clear:
    SOLID_QUEUE_IN_PUMA: true
<% if ENV["X"] %>
aliases:
  console: app exec --interactive --reuse "bin/rails console"
<% end %>
volumes:
  - "myapp_storage:/rails/storage"
builder:
  arch: <%= ENV.fetch("ARCH", "amd64") %>
"##;
        let project = of_deploy(&parse(deploy).unwrap());
        assert_eq!(project.service, "myapp");
        assert_eq!(project.hosts, ["192.168.0.1"]);
        assert_eq!(
            project.volumes,
            [("myapp_storage".to_owned(), "/rails/storage".into())]
        );
        let database = r#"
default: &default
  adapter: sqlite3
  pool: <%= ENV.fetch("RAILS_MAX_THREADS") { 5 } %>
  timeout: 5000
production:
  primary:
    <<: *default
    database: storage/production.sqlite3
  queue:
    <<: *default
    database: storage/production_queue.sqlite3
    migrations_paths: db/queue_migrate
"#;
        let found = databases(&parse(database).unwrap()["production"]);
        let sqlite = |role: &str, path: &str| Database {
            role: role.into(),
            kind: Kind::Sqlite(path.into()),
        };
        assert_eq!(
            found,
            [
                sqlite("primary", "/rails/storage/production.sqlite3"),
                sqlite("queue", "/rails/storage/production_queue.sqlite3")
            ]
        );
    }

    #[test]
    fn other_ways_to_say_it() {
        let servers = |text: &str| of_deploy(&parse(text).unwrap()).hosts;
        assert_eq!(servers("servers: [a, b]"), ["a", "b"]);
        assert_eq!(
            servers("servers: { web: { hosts: [a], options: {} } }"),
            ["a"]
        );
        assert_eq!(servers("servers: { web: { host: a } }"), ["a"]);
        assert_eq!(servers("servers:\n  - a: [eu]\n  - b"), ["a", "b"]);
        let kinds = |text: &str| -> Vec<Kind> {
            let found = databases(&parse(text).unwrap());
            found.into_iter().map(|d| d.kind).collect()
        };
        assert_eq!(
            kinds("{ adapter: sqlite3, database: /data/a.db }"),
            [Kind::Sqlite("/data/a.db".into())]
        );
        assert_eq!(kinds("{ url: 'postgres://x/y' }"), [Kind::Postgres]);
        for (url, path) in [
            ("sqlite3:storage/a.sqlite3", "/rails/storage/a.sqlite3"),
            ("sqlite3:///data/a.sqlite3?pool=5", "/data/a.sqlite3"),
        ] {
            let text = format!("{{ url: '{url}' }}");
            assert_eq!(kinds(&text), [Kind::Sqlite(path.into())]);
        }
        assert_eq!(
            kinds("{ adapter: sqlite3, database: 'storage/<%= name %>.sqlite3' }"),
            [Kind::Somewhere]
        );
        assert_eq!(kinds("{ url: <%= ENV['URL'] %> }"), [Kind::Unknown]);
        assert_eq!(
            kinds("{ url: <%= ENV['DATABASE_URL'] %>, adapter: postgresql }"),
            [Kind::Postgres]
        );
        assert_eq!(
            kinds("{ adapter: trilogy, database: x }"),
            [Kind::Other("trilogy".into())]
        );
        assert_eq!(
            kinds(
                "primary: { adapter: postgresql }\ncache: { adapter: sqlite3, database: storage/c.sqlite3 }"
            ),
            [
                Kind::Sqlite("/rails/storage/c.sqlite3".into()),
                Kind::Postgres
            ]
        );
        assert!(parse("a: [").is_err());
        assert_eq!(
            disk_services(
                "local:\n  service: Disk\n  root: <%= Rails.root.join('storage') %>\ns3:\n  service: S3\n"
            ),
            ["local"]
        );
    }
}
