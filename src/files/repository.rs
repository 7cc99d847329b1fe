//! Opening and making the restic repository of a target.

use std::sync::Arc;
use std::time::Duration;

use aes256ctr_poly1305aes::Aes256CtrPoly1305Aes;
use aes256ctr_poly1305aes::aead::{Aead, Nonce};
use bytes::Bytes;
use rand::{Rng, RngExt};
use rustic_core::repofile::{KeyFile, MasterKey};
use rustic_core::{
    ConfigOptions, Credentials, KeyOptions, OpenStatus, Repository, RepositoryBackends,
    RepositoryOptions, RusticError,
};
use sha2::{Digest, Sha256};

use super::backend::{Asked, Backend};
use super::error::FilesError;
use crate::config::Secret;
use crate::store::PutMode;

/// scrypt's cost for new keys, as restic chooses it: 32 MiB for each try. rustic_core's own choice takes 128 MiB at every start.
const SCRYPT_LOG_N: u8 = 15;
const SCRYPT_R: u32 = 8;
const SCRYPT_P: u32 = 4;
/// Size at which a pack is uploaded: half of restic's, because several are in memory at once.
pub(super) const DATA_PACK_BYTES: u64 = 4 << 20;
/// The same for folders.
pub(super) const TREE_PACK_BYTES: u64 = 2 << 20;

/// How often the making of a repository is tried while others make it, too.
const MAKERS_PATIENCE: usize = 10;
/// Between two tries, in milliseconds.
const MAKERS_PAUSE: std::ops::Range<u64> = 200..2000;

/// An open repository.
pub(super) type Repo = Repository<OpenStatus>;

/// Opens the repository.
///
/// # Errors
/// [`FilesError::NoRepository`], [`FilesError::Password`], [`FilesError::Key`], [`FilesError::Damaged`], and the store's.
pub(super) fn open(backend: &Backend, password: &Secret) -> Result<Repo, FilesError> {
    opened(backend, password).map(|(repo, _)| repo)
}

/// The repository, and keys that the password opens, too, but that are not its own: two processes made it at once.
fn opened(backend: &Backend, password: &Secret) -> Result<(Repo, Vec<String>), FilesError> {
    if !is_made(backend)? {
        return Err(FilesError::NoRepository(backend.store().display()));
    }
    let failed = |e: Box<RusticError>| FilesError::of("opening", backend, &e);
    let mut keys = Keys::list(backend, password)?;
    let (mut useless, mut first) = (Vec::new(), None);
    while let Some((name, master)) = keys.next()? {
        let encrypts = master.encrypt.clone();
        match unopened(backend)?.open(&Credentials::Masterkey(master)) {
            Ok(repo) => {
                let own = repo.key().encrypt;
                let others = useless.into_iter().filter(|(_, other)| *other != own);
                return Ok((repo, others.map(|(name, _)| name).collect()));
            }
            Err(e) if backend.is_over() => return Err(failed(e)),
            Err(e) => {
                useless.push((name, encrypts));
                first.get_or_insert(failed(e));
            }
        }
    }
    match first {
        Some(error) => Err(error),
        None => Err(keys.refusal()),
    }
}

/// Key files, tried one after the other: each costs a second of work.
struct Keys<'a> {
    backend: &'a Backend,
    password: &'a Secret,
    left: std::vec::IntoIter<String>,
    tried: usize,
    damaged: Option<String>,
}

impl<'a> Keys<'a> {
    fn list(backend: &'a Backend, password: &'a Secret) -> Result<Self, FilesError> {
        Ok(Self {
            backend,
            password,
            left: key_files(backend)?.into_iter(),
            tried: 0,
            damaged: None,
        })
    }

    /// The next that the password opens, with its name. A damaged file hides no other.
    fn next(&mut self) -> Result<Option<(String, MasterKey)>, FilesError> {
        let store = self.backend.store();
        for name in self.left.by_ref() {
            let file = match self.backend.ask(|| store.get(&name)) {
                Ok(file) => file,
                // Of no use, and removed since the listing.
                Err(Asked::Store(e)) if e.is_not_found() => continue,
                Err(e) => return Err(e.into()),
            };
            match serde_json::from_slice::<KeyFile>(&file) {
                Err(_) => {
                    self.damaged.get_or_insert(name);
                }
                Ok(file) => match master_of(&file, self.password) {
                    Some(master) => return Ok(Some((name, master))),
                    None => self.tried += 1,
                },
            }
        }
        Ok(None)
    }

    /// There are some, whoever opens them.
    fn found(&self) -> bool {
        self.tried > 0 || self.damaged.is_some()
    }

    /// Why none of them opens it.
    fn refusal(&self) -> FilesError {
        let store = self.backend.store().display();
        let what = match (&self.damaged, self.tried) {
            (None, 0) => "its folder `keys` is empty".into(),
            (None, _) => return FilesError::Password(store),
            (Some(first), 0) => format!("its key {first} cannot be read"),
            (Some(first), _) => {
                format!("its key {first} cannot be read, and the password does not open the others")
            }
        };
        FilesError::Key { store, what }
    }
}

fn key_files(backend: &Backend) -> Result<Vec<String>, FilesError> {
    let keys = backend.ask(|| backend.store().list("keys"))?;
    let keys = keys.into_iter().map(|object| object.key);
    Ok(keys.filter(|name| !name.contains('#')).collect())
}

/// Whether there is a `config`. Data without it is no place for a new repository.
fn is_made(backend: &Backend) -> Result<bool, FilesError> {
    let failed = |e: Box<RusticError>| FilesError::of("opening", backend, &e);
    let has_config = || -> Result<bool, FilesError> {
        Ok(unopened(backend)?.config_id().map_err(failed)?.is_some())
    };
    if has_config()? {
        return Ok(true);
    }
    let store = backend.store();
    for folder in ["snapshots", "index", "data"] {
        if !backend.ask(|| store.list(folder))?.is_empty() {
            // Perhaps it was made between the two looks.
            return match has_config()? {
                true => Ok(true),
                false => Err(FilesError::Damaged {
                    store: store.display(),
                    what: "its file `config` is missing, and there is data beside it".into(),
                }),
            };
        }
    }
    Ok(false)
}

/// Opens the repository, or makes it if there is none. `true` if it was made. Where another process makes it at the same time, it is waited for.
///
/// # Errors
/// As [`open`], without [`FilesError::NoRepository`].
pub(super) fn open_or_create(
    backend: &Backend,
    password: &Secret,
) -> Result<(Repo, bool), FilesError> {
    let mut mine = None;
    for _ in 0..MAKERS_PATIENCE {
        match opened(backend, password) {
            Err(FilesError::NoRepository(_)) => {}
            Err(error) => return Err(error),
            Ok((repo, useless)) => {
                remove_useless(backend, &repo, useless, mine);
                return Ok((repo, false));
            }
        }
        match create(backend, password)? {
            Made::Repository(repo) => {
                // Perhaps with the other one's key.
                remove_useless(backend, &repo, Vec::new(), mine);
                return Ok((*repo, true));
            }
            Made::Key(name, master) => mine = Some((name, master)),
            Made::Nothing => {}
        }
        // Not in step with the other one.
        let pause = rand::rng().random_range(MAKERS_PAUSE);
        std::thread::sleep(Duration::from_millis(pause));
    }
    Err(FilesError::Locked {
        store: backend.store().display(),
        holder: "another process that makes it".into(),
        since: jiff::Timestamp::now().to_string(),
        by_prune: false,
    })
}

/// Removes keys that are not the repository's: `useless`, and `mine` if another one's was taken. `config` never changes: nothing was ever encrypted
/// with these, and restic may try them first.
fn remove_useless(
    backend: &Backend,
    repo: &Repo,
    mut useless: Vec<String>,
    mine: Option<(String, MasterKey)>,
) {
    let own = repo.key().encrypt;
    let mine = mine.filter(|(_, other)| other.encrypt != own);
    useless.extend(mine.map(|(name, _)| name));
    for name in useless {
        if let Err(error) = backend.finally(|| backend.store().delete(&name)) {
            tracing::warn!(key = name, %error, "a key that is not the repository's stays behind");
        }
    }
}

fn unopened(backend: &Backend) -> Result<Repository<()>, FilesError> {
    let backends = RepositoryBackends::new(Arc::new(backend.clone()), None);
    // No cache: a container starts without one, and local state has a stated bound.
    let options = RepositoryOptions::default().no_cache(true);
    Repository::new(&options, &backends).map_err(|e| FilesError::of("opening", backend, &e))
}

/// What came of making a repository.
enum Made {
    Repository(Box<Repo>),
    /// A key, and another process has made one, too: of two keys only one is the repository's, so whoever sees both lets the other go on.
    Key(String, MasterKey),
    /// Another process makes it, or has made it.
    Nothing,
}

/// The key goes first, so that no repository is ever without one; a run that was killed before the second step has left it, and it is used, by
/// everybody who comes then. So no key is taken back before `config` is there: somebody may be about to use it.
fn create(backend: &Backend, password: &Secret) -> Result<Made, FilesError> {
    // Looked for by `open` a moment ago, and again: nothing may be lost by making one.
    if is_made(backend)? {
        return Ok(Made::Nothing);
    }
    let mut keys = Keys::list(backend, password)?;
    let master = match keys.next()? {
        Some((_, master)) => master,
        None if keys.found() => return Err(keys.refusal()),
        None => {
            let (master, mine) = first_key(backend, password)?;
            if key_files(backend)?.iter().any(|name| *name != mine) {
                return Ok(Made::Key(mine, master));
            }
            master
        }
    };
    let mut options = ConfigOptions::default();
    options.set_datapack_size = DATA_PACK_BYTES.to_string().parse().ok();
    options.set_datapack_growfactor = Some(0);
    options.set_treepack_size = TREE_PACK_BYTES.to_string().parse().ok();
    options.set_treepack_growfactor = Some(0);
    let made = unopened(backend)?.init(
        &Credentials::Masterkey(master),
        &KeyOptions::default(),
        &options,
    );
    match made {
        Ok(repo) => Ok(Made::Repository(Box::new(repo))),
        // Another one was faster; or only the answer to our own request was lost.
        Err(_) if backend.failure().is_some_and(|e| e.is_exists()) => {
            backend.forget_failure();
            Ok(Made::Nothing)
        }
        Err(_) if !backend.is_over() && is_made(backend)? => Ok(Made::Nothing),
        Err(e) => Err(FilesError::of("making", backend, &e)),
    }
}

/// A new key, written, and its name.
fn first_key(backend: &Backend, password: &Secret) -> Result<(MasterKey, String), FilesError> {
    let master = MasterKey::new();
    let key = key_file(&master, password).map_err(|reason| FilesError::Repository {
        doing: "making",
        store: backend.store().display(),
        reason,
    })?;
    let name = format!("keys/{}", hex::encode(Sha256::digest(&key)));
    let key = Bytes::from(key);
    backend.ask(|| {
        backend
            .store()
            .put(&name, key.clone(), PutMode::Overwrite, None)
    })?;
    Ok((master, name))
}

/// The master key in a key file; `None` if the password does not open it.
fn master_of(file: &KeyFile, password: &Secret) -> Option<MasterKey> {
    let log_n = u8::try_from(file.n.checked_ilog2()?).ok()?;
    let params = scrypt::Params::new(log_n, file.r, file.p).ok()?;
    let mut user = [0; 64];
    scrypt::scrypt(password.reveal().as_bytes(), &file.salt, &params, &mut user).ok()?;
    serde_json::from_slice(&unseal(&user, &file.data)?).ok()
}

/// restic's key file: the master key, encrypted with a key that scrypt makes of the password.
fn key_file(master: &MasterKey, password: &Secret) -> Result<Vec<u8>, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let params = scrypt::Params::new(SCRYPT_LOG_N, SCRYPT_R, SCRYPT_P).map_err(|e| text(&e))?;
    let mut salt = vec![0; 64];
    rand::rng().fill_bytes(&mut salt);
    let mut user = [0; 64];
    scrypt::scrypt(password.reveal().as_bytes(), &salt, &params, &mut user)
        .map_err(|e| text(&e))?;
    let plain = serde_json::to_vec(master).map_err(|e| text(&e))?;
    let file = KeyFile {
        hostname: None,
        username: Some("lifeboat".into()),
        created: Some(jiff::Zoned::now()),
        kdf: "scrypt".into(),
        n: 1 << SCRYPT_LOG_N,
        r: SCRYPT_R,
        p: SCRYPT_P,
        data: seal(&user, &plain)?,
        salt,
    };
    serde_json::to_vec(&file).map_err(|e| text(&e))
}

/// restic's encryption: nonce, text, tag.
pub(super) fn seal(key: &[u8; 64], plain: &[u8]) -> Result<Vec<u8>, String> {
    let cipher = Aes256CtrPoly1305Aes::new(key.into());
    let mut nonce = Nonce::<Aes256CtrPoly1305Aes>::default();
    rand::rng().fill_bytes(&mut nonce);
    let sealed = cipher.encrypt(&nonce, plain).map_err(|e| e.to_string())?;
    Ok([nonce.as_slice(), &sealed].concat())
}

/// The text of what [`seal`] or restic made; `None` if it is damaged or of another key.
pub(super) fn unseal(key: &[u8; 64], sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, rest) = sealed.split_at_checked(16)?;
    let cipher = Aes256CtrPoly1305Aes::new(key.into());
    cipher
        .decrypt(Nonce::<Aes256CtrPoly1305Aes>::from_slice(nonce), rest)
        .ok()
}

/// The repository's master key as one piece.
///
/// # Errors
/// [`FilesError::Damaged`].
pub(super) fn key(backend: &Backend, repo: &Repo) -> Result<[u8; 64], FilesError> {
    let key = repo.key();
    let whole = [key.encrypt, key.mac.k, key.mac.r].concat();
    whole.try_into().map_err(|_| FilesError::Damaged {
        store: backend.store().display(),
        what: "its key has another length than restic's".into(),
    })
}
