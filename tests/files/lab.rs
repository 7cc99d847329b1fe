//! A target in memory, whose store does as it is told.

use std::path::PathBuf;
use std::sync::Arc;

use lifeboat::config::{Config, Environment, LoadArgs, load};
use lifeboat::files::{self, Backup, FilesError, Goal, LeftOut, Output, Target};
use lifeboat::store::testing::{Faults, Faulty};
use lifeboat::store::{Kind, Store};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::site::picture;

/// Its data, its store, and the faults in between.
pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) memory: Arc<InMemory>,
    pub(crate) faults: Faults,
    pub(crate) target: Target,
    pub(crate) runtime: tokio::runtime::Runtime,
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
            dir,
            memory,
            faults,
            target,
            runtime,
        }
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

fn config(file: PathBuf) -> Config {
    let args = LoadArgs {
        config: Some(file),
        ..LoadArgs::default()
    };
    load(&args, &Environment::of_process()).unwrap()
}
