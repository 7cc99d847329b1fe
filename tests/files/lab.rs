//! A target in memory, whose store does as it is told.

use std::path::PathBuf;
use std::sync::Arc;

use lifeboat::config::{Config, Environment, LoadArgs, load};
use lifeboat::files::{self, Backup, FilesError, Goal, LeftOut, Output, Target};
use lifeboat::store::testing::{Faults, Faulty};
use lifeboat::store::{Kind, Store};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};

use crate::site::{cheap_key, picture, sealed, unsealed};

/// Its data, its store, and the faults in between.
pub(crate) struct Lab {
    pub(crate) dir: Arc<tempfile::TempDir>,
    pub(crate) memory: Arc<InMemory>,
    pub(crate) faults: Faults,
    pub(crate) target: Target,
    /// The repository's key, where it is known.
    master: Option<[u8; 64]>,
    pub(crate) runtime: Arc<tokio::runtime::Runtime>,
}

impl Lab {
    pub(crate) fn new(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let text = format!(
            "store: file:///nowhere\nhttp: off\nfiles: [{{ name: uploads, paths: [{}], password: secret, create: true{more} }}]\n",
            dir.path().join("data").display()
        );
        let file = dir.path().join("lifeboat.yml");
        std::fs::write(&file, text).unwrap();
        let config = config(file);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let memory = Arc::new(InMemory::new());
        let (client, faults) = Faulty::wrap(Arc::clone(&memory) as Arc<dyn ObjectStore>);
        let target = Target {
            config: Arc::new(config.files[0].clone()),
            store: Store::from_object_store(Kind::Memory, client, "".into()),
            instance: "lab".into(),
            left_out: LeftOut::default(),
            runtime: runtime.handle().clone(),
        };
        Self {
            dir: Arc::new(dir),
            memory,
            faults,
            target,
            master: None,
            runtime: Arc::new(runtime),
        }
    }

    /// With a key that costs nothing to open: for thousands of runs.
    pub(crate) fn quick(more: &str) -> Self {
        let mut lab = Self::new(more);
        let (name, key, master) = cheap_key("secret");
        lab.master = Some(master);
        lab.put(&name, Some(&key));
        lab
    }

    /// The same folder, and a copy of the store.
    pub(crate) fn fork(&self) -> Self {
        let memory = Arc::new(self.memory.fork());
        let (client, faults) = Faulty::wrap(Arc::clone(&memory) as Arc<dyn ObjectStore>);
        let store = Store::from_object_store(Kind::Memory, client, "".into());
        Self {
            dir: Arc::clone(&self.dir),
            memory,
            faults,
            target: Target {
                store,
                ..self.target.clone()
            },
            master: self.master,
            runtime: Arc::clone(&self.runtime),
        }
    }

    /// The repository's key, of a quick one.
    pub(crate) fn key(&self) -> [u8; 64] {
        self.master.expect("a quick one")
    }

    /// Files of the index with their names, decoded.
    fn index(&self) -> Vec<(String, serde_json::Value)> {
        let key = self.key();
        let decoded = |name: String| {
            let plain = unsealed(&key, &self.get(&name));
            // Behind the version of the format it is compressed.
            let text = match plain.split_first() {
                Some((2, compressed)) => zstd::stream::decode_all(compressed).unwrap(),
                _ => plain,
            };
            let index = serde_json::from_slice(&text).unwrap();
            (name, index)
        };
        self.objects("index/").into_iter().map(decoded).collect()
    }

    fn put_index(&self, index: &serde_json::Value) {
        let file = sealed(&self.key(), &serde_json::to_vec(index).unwrap());
        let hash: String = Sha256::digest(&file)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        self.put(&format!("index/{hash}"), Some(&file));
    }

    /// Packs are marked for deletion.
    pub(crate) fn has_marks(&self) -> bool {
        let index = self.index();
        index
            .iter()
            .any(|(_, i)| i["packs_to_delete"].as_array().is_some())
    }

    /// As if two days had gone by since packs were marked for deletion.
    pub(crate) fn marked_long_ago(&self) {
        let mut marked = 0;
        self.change_index(|index| {
            for pack in marks(index) {
                let time: jiff::Timestamp = pack["time"].as_str().unwrap().parse().unwrap();
                let time = time - jiff::SignedDuration::from_hours(48);
                pack["time"] = time.to_string().into();
                marked += 1;
            }
        });
        assert!(marked > 0, "nothing was marked");
    }

    /// Every file of the index anew.
    pub(crate) fn change_index(&self, mut change: impl FnMut(&mut serde_json::Value)) {
        for (name, mut index) in self.index() {
            let before = index.clone();
            change(&mut index);
            if index != before {
                self.put_index(&index);
                self.put(&name, None);
            }
        }
    }

    /// A pack in a second file of the index.
    pub(crate) fn list_again(&self) {
        let (_, mut index) = self.index().pop().unwrap();
        if let Some(packs) = index["packs"].as_array_mut() {
            packs.truncate(1);
        }
        index.as_object_mut().unwrap().remove("packs_to_delete");
        self.put_index(&index);
    }

    /// Packs that are in use, with their names.
    pub(crate) fn packs(&self) -> Vec<(String, serde_json::Value)> {
        let index = self.index();
        let packs = index
            .iter()
            .flat_map(|(_, i)| i["packs"].as_array().unwrap());
        packs
            .map(|pack| (pack["id"].as_str().unwrap().to_owned(), pack.clone()))
            .collect()
    }

    /// Type and id of everything in them.
    pub(crate) fn pieces(&self) -> Vec<(String, String)> {
        let text = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
        let pieces = self.packs().into_iter().flat_map(|(_, pack)| {
            let pieces = pack["blobs"].as_array().unwrap().clone();
            pieces
                .into_iter()
                .map(move |p| (text(&p["type"]), text(&p["id"])))
        });
        pieces.collect()
    }

    /// The text of every folder.
    pub(crate) fn folders(&self) -> Vec<Vec<u8>> {
        let key = self.key();
        let mut texts = Vec::new();
        for (id, pack) in self.packs() {
            let content = self.get(&format!("data/{}/{id}", &id[..2]));
            for piece in pack["blobs"].as_array().unwrap() {
                if piece["type"] == "tree" {
                    let number = |name: &str| piece[name].as_u64().unwrap() as usize;
                    let (at, length) = (number("offset"), number("length"));
                    let text = unsealed(&key, &content[at..at + length]);
                    texts.push(match piece["uncompressed_length"].is_null() {
                        true => text,
                        false => zstd::stream::decode_all(&text[..]).unwrap(),
                    });
                }
            }
        }
        texts
    }

    /// Stock restic reads everything that is in the store, and finds nothing wrong.
    pub(crate) fn referee(&self) {
        let copy = tempfile::tempdir().unwrap();
        for name in self.objects("") {
            let path = copy.path().join(&name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, self.get(&name)).unwrap();
        }
        let out = std::process::Command::new("restic")
            .args(["--no-cache", "--no-lock", "check", "--read-data", "-r"])
            .arg(copy.path())
            .env("RESTIC_PASSWORD", "secret")
            .output()
            .expect("restic is missing: apt-get install restic");
        let text = crate::site::words(&out);
        assert!(out.status.success(), "{text}");
    }

    pub(crate) fn write(&self, name: &str, content: &[u8]) {
        let path = self.dir.path().join("data").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub(crate) fn backup(&self) -> Result<Backup, FilesError> {
        files::backup(&self.target, None, drop)
    }

    pub(crate) fn picture(&self) -> Vec<String> {
        picture(&self.dir.path().join("data"))
    }

    /// Restores a snapshot; how it looks.
    pub(crate) fn restored(&self, goal: &Goal) -> Result<Vec<String>, FilesError> {
        let to = tempfile::tempdir().unwrap();
        let folder = to.path().join("back");
        let output = Output::Folder(folder.clone());
        let done = files::restore(&self.target, goal, None, &output, false)?;
        assert_eq!(done.differences, Vec::<String>::new());
        Ok(picture(&folder))
    }

    /// Names of all objects but locks and records of drills.
    pub(crate) fn objects(&self, below: &str) -> Vec<String> {
        use futures::TryStreamExt;
        let listed = self.memory.list(None).try_collect::<Vec<_>>();
        let listed = self.runtime.block_on(listed).unwrap();
        let names = listed.into_iter().map(|o| o.location.to_string());
        let mut names: Vec<String> = names
            .filter(|n| n.starts_with(below))
            .filter(|n| !n.starts_with("locks/") && !n.starts_with("lifeboat/"))
            .collect();
        names.sort();
        names
    }

    pub(crate) fn get(&self, name: &str) -> Vec<u8> {
        let path = object_store::path::Path::from(name);
        let got = async { self.memory.get(&path).await?.bytes().await };
        self.runtime.block_on(got).unwrap().to_vec()
    }

    pub(crate) fn put(&self, name: &str, content: Option<&[u8]>) {
        let path = object_store::path::Path::from(name);
        let done = async {
            match content {
                Some(content) => self
                    .memory
                    .put(&path, content.to_vec().into())
                    .await
                    .map(drop),
                None => self.memory.delete(&path).await,
            }
        };
        self.runtime.block_on(done).unwrap();
    }
}

/// Packs that a file of the index marks.
pub(crate) fn marks(index: &mut serde_json::Value) -> Vec<&mut serde_json::Value> {
    let marked = index.get_mut("packs_to_delete");
    let marked = marked.and_then(|m| m.as_array_mut());
    marked.into_iter().flatten().collect()
}

fn config(file: PathBuf) -> Config {
    let args = LoadArgs {
        config: Some(file),
        ..LoadArgs::default()
    };
    load(&args, &Environment::of_process()).unwrap()
}
