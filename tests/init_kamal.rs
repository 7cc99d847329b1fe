//! `init --kamal` in projects that are not as Kamal and Rails generate them, and over an older kit.
#![allow(missing_docs)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Place(tempfile::TempDir);

const DEPLOY: &str = "service: shop\nservers: [192.0.2.7]\nvolumes:\n  - data:/rails/storage\n  - /var/run/docker.sock:/var/run/docker.sock\n";
const SQLITE: &str =
    "production:\n  primary: { adapter: sqlite3, database: storage/production.sqlite3 }\n";

impl Place {
    fn new(files: &[(&str, &str)]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            let path = place.path(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn init(&self) -> Output {
        Command::new(env!("CARGO_BIN_EXE_lifeboat"))
            .args(["init", "--kamal"])
            .current_dir(self.0.path())
            .env_remove("DATABASE_URL")
            .output()
            .unwrap()
    }

    fn ok(&self) -> String {
        let out = self.init();
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{error}");
        String::from_utf8(out.stdout).unwrap()
    }
}

fn kit(name: &str) -> String {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(top.join(name)).unwrap()
}

/// Hooks where Kamal does not look for them never run: each deploy would go on without its label.
#[test]
fn hooks_and_secrets_go_where_this_project_has_them() {
    let deploy = format!("{DEPLOY}hooks_path: ops/hooks\nsecrets_path: ops/secrets\n");
    let place = Place::new(&[
        ("config/deploy.yml", &deploy),
        ("config/database.yml", SQLITE),
    ]);
    place.ok();
    for hook in ["lifeboat.sh", "pre-deploy", "pre-app-boot", "post-deploy"] {
        assert_eq!(
            place.read(&format!("ops/hooks/{hook}")),
            kit(&format!("config/kamal/hooks/{hook}"))
        );
    }
    assert!(
        place
            .read("ops/secrets")
            .contains("LIFEBOAT_ACCESS_KEY_ID=")
    );
    assert!(!place.path(".kamal").exists());
    // Docker's socket is nothing that a sidecar needs.
    let deploy = place.read("config/deploy.yml");
    assert_eq!(deploy.matches("docker.sock").count(), 2, "{deploy}");
}

#[test]
fn with_destinations_the_names_of_secrets_go_where_all_of_them_are_read() {
    let place = Place::new(&[
        ("config/deploy.yml", DEPLOY),
        ("config/database.yml", SQLITE),
        (".kamal/secrets.production", "A=b\n"),
    ]);
    place.ok();
    assert!(
        place
            .read(".kamal/secrets-common")
            .contains("LIFEBOAT_ACCESS_KEY_ID=")
    );
    assert!(!place.path(".kamal/secrets").exists());
    assert_eq!(place.read(".kamal/secrets.production"), "A=b\n");
}

/// Kamal does not boot an accessory with a secret that has no name in the file.
#[test]
fn every_secret_of_the_accessory_is_named() {
    let place = Place::new(&[
        ("config/deploy.yml", DEPLOY),
        (
            "config/database.yml",
            "production: { adapter: postgresql, host: <%= ENV['DB'] %> }\n",
        ),
    ]);
    place.ok();
    let deploy: serde_json::Value =
        serde_saphyr::from_str(&place.read("config/deploy.yml")).unwrap();
    let secrets = place.read(".kamal/secrets");
    let names = &deploy["accessories"]["lifeboat"]["env"]["secret"];
    assert_eq!(names.as_array().unwrap().len(), 3);
    for name in names.as_array().unwrap() {
        let name = name.as_str().unwrap();
        assert!(secrets.contains(&format!("{name}=${name}\n")), "{secrets}");
    }
}

#[test]
fn a_database_at_a_path_that_erb_gives_is_taken_with_its_volume() {
    let place = Place::new(&[
        ("config/deploy.yml", DEPLOY),
        (
            "config/database.yml",
            "production:\n  adapter: sqlite3\n  database: <%= ENV.fetch('DB', 'storage/production.sqlite3') %>\n",
        ),
    ]);
    let said = place.ok();
    assert!(said.contains("primary: ERB gives its path"), "{said}");
    let text = place.read("config/lifeboat.yml");
    assert!(
        text.contains("- dir: /rails/storage\n") && !text.contains("erb"),
        "{text}"
    );
}

#[test]
fn nothing_to_protect_is_no_success() {
    for files in [
        &[("config/deploy.yml", "service: shop\nservers: [192.0.2.7]\n")][..],
        &[
            ("config/deploy.yml", DEPLOY),
            ("config/database.yml", "production: { adapter: trilogy }\n"),
        ],
    ] {
        let place = Place::new(files);
        let out = place.init();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(3), "{said}");
        assert!(
            said.contains("nothing was written") && said.contains("hint: "),
            "{said}"
        );
        assert!(!place.path("config/lifeboat.yml").exists());
        assert_eq!(place.read("config/deploy.yml"), files[0].1);
    }
}

/// After an upgrade: the old kit works on, and it is said which files are of another version.
#[test]
fn an_older_kit_is_neither_replaced_nor_taken_for_somebody_elses() {
    let place = Place::new(&[
        ("config/deploy.yml", DEPLOY),
        ("config/database.yml", SQLITE),
    ]);
    place.ok();
    let mut changed = Vec::new();
    for name in [
        ".kamal/hooks/lifeboat.sh",
        ".kamal/hooks/pre-deploy",
        "bin/lifeboat-restore",
    ] {
        let text = place.read(name) + "# older, or changed\n";
        std::fs::write(place.path(name), &text).unwrap();
        changed.push((name, text));
    }
    // One lost the right to be run, without which Kamal refuses it.
    let hook = place.path(".kamal/hooks/post-deploy");
    std::fs::set_permissions(&hook, PermissionsExt::from_mode(0o644)).unwrap();
    let said = place.ok();
    for (name, text) in changed {
        assert_eq!(place.read(name), text);
        assert!(said.contains(&format!("{name} stays as it is")), "{said}");
    }
    assert!(!said.contains("hook of your own"), "{said}");
    assert_eq!(hook.metadata().unwrap().permissions().mode() & 0o111, 0o111);
    let hooks = std::fs::read_dir(place.path(".kamal/hooks")).unwrap();
    assert_eq!(hooks.count(), 4);
}

/// The words that are printed stop a deploy when Lifeboat's hook does.
#[test]
fn a_hook_of_ones_own_stops_with_lifeboats() {
    let place = Place::new(&[
        ("config/deploy.yml", DEPLOY),
        ("config/database.yml", SQLITE),
        (".kamal/hooks/pre-deploy", "#!/bin/sh\necho mine\n"),
    ]);
    let said = place.ok();
    let line = said
        .split_once("it fails: ")
        .and_then(|(_, rest)| rest.lines().next())
        .unwrap();
    std::fs::write(
        place.path(".kamal/hooks/pre-deploy"),
        format!("#!/bin/sh\n{line}\necho mine\n"),
    )
    .unwrap();
    let out = Command::new("sh")
        .arg(".kamal/hooks/pre-deploy")
        .current_dir(place.0.path())
        .env_remove("KAMAL_VERSION")
        .env("KAMAL", "false")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(!said.contains("mine"), "{said}");
    // Again: it is beside already, and the own one is not taken for Lifeboat's.
    let said = place.ok();
    assert!(said.ends_with("lifeboat: ok init written=0\n"), "{said}");
}
