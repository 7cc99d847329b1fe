//! Opening and making the restic repository of a target.

use std::sync::Arc;

use aes256ctr_poly1305aes::Aes256CtrPoly1305Aes;
use aes256ctr_poly1305aes::aead::{Aead, Nonce};
use bytes::Bytes;
use rand::Rng;
use rustic_core::repofile::{KeyFile, MasterKey};
use rustic_core::{
    ConfigOptions, Credentials, KeyOptions, OpenStatus, Repository, RepositoryBackends,
    RepositoryOptions,
};
use sha2::{Digest, Sha256};

use super::backend::Backend;
use super::error::FilesError;
use crate::config::Secret;
use crate::store::PutMode;

/// scrypt's cost for new keys, as restic chooses it: 32 MiB for each try. rustic_core's own choice takes 128 MiB at every start.
const SCRYPT_LOG_N: u8 = 15;
const SCRYPT_R: u32 = 8;
const SCRYPT_P: u32 = 4;
/// Size at which a pack is uploaded: half of restic's, because several are in memory at once.
const DATA_PACK: &str = "4MiB";
/// The same for folders.
const TREE_PACK: &str = "2MiB";

/// An open repository.
pub(super) type Repo = Repository<OpenStatus>;

/// Opens the repository.
///
/// # Errors
/// [`FilesError::NoRepository`], [`FilesError::Password`], [`FilesError::Key`], [`FilesError::Damaged`], and the store's.
pub(super) fn open(backend: &Backend, password: &Secret) -> Result<Repo, FilesError> {
    let unopened = unopened(backend)?;
    let failed = |e: Box<rustic_core::RusticError>| FilesError::of("opening", backend, &e);
    if unopened.config_id().map_err(failed)?.is_none() {
        refuse_without_config(backend)?;
        return Err(FilesError::NoRepository(backend.store().display()));
    }
    let master = find_key(backend, password)?.ok_or_else(|| FilesError::Key {
        store: backend.store().display(),
        what: "its folder `keys` is empty".into(),
    })?;
    unopened
        .open(&Credentials::Masterkey(master))
        .map_err(failed)
}

/// The master key, from the first key file that the password opens; `None` if there is no key file. A damaged one hides no other.
fn find_key(backend: &Backend, password: &Secret) -> Result<Option<MasterKey>, FilesError> {
    let store = backend.store();
    let keys = backend.ask(|| store.list("keys"))?;
    let (mut tried, mut damaged) = (0, Vec::new());
    for key in keys.iter().filter(|k| !k.key.contains('#')) {
        let file = backend.ask(|| store.get(&key.key))?;
        match serde_json::from_slice::<KeyFile>(&file) {
            Err(_) => damaged.push(key.key.as_str()),
            Ok(file) => match master_of(&file, password) {
                Some(master) => return Ok(Some(master)),
                None => tried += 1,
            },
        }
    }
    match (damaged.first(), tried) {
        (None, 0) => Ok(None),
        (None, _) => Err(FilesError::Password(store.display())),
        (Some(first), 0) => Err(FilesError::Key {
            store: store.display(),
            what: format!("its key {first} cannot be read"),
        }),
        (Some(first), _) => Err(FilesError::Key {
            store: store.display(),
            what: format!(
                "its key {first} cannot be read, and the password does not open the others"
            ),
        }),
    }
}

/// Data without `config` is no place for a new repository.
fn refuse_without_config(backend: &Backend) -> Result<(), FilesError> {
    let store = backend.store();
    for folder in ["snapshots", "index", "data"] {
        if !backend.ask(|| store.list(folder))?.is_empty() {
            return Err(FilesError::Damaged {
                store: store.display(),
                what: "its file `config` is missing, and there is data beside it".into(),
            });
        }
    }
    Ok(())
}

/// Opens the repository, or makes it if there is none. `true` if it was made.
///
/// # Errors
/// As [`open`], without [`FilesError::NoRepository`].
pub(super) fn open_or_create(
    backend: &Backend,
    password: &Secret,
) -> Result<(Repo, bool), FilesError> {
    match open(backend, password) {
        Err(FilesError::NoRepository(_)) => create(backend, password).map(|repo| (repo, true)),
        other => other.map(|repo| (repo, false)),
    }
}

fn unopened(backend: &Backend) -> Result<Repository<()>, FilesError> {
    let backends = RepositoryBackends::new(Arc::new(backend.clone()), None);
    // No cache: a container starts without one, and local state has a stated bound.
    let options = RepositoryOptions::default().no_cache(true);
    Repository::new(&options, &backends).map_err(|e| FilesError::of("opening", backend, &e))
}

/// The key goes first, so that no repository is ever without one; a run that was killed before the second step has left it, and it is used.
fn create(backend: &Backend, password: &Secret) -> Result<Repo, FilesError> {
    // Looked for by `open` a moment ago, and again: nothing may be lost by making one.
    refuse_without_config(backend)?;
    let master = match find_key(backend, password)? {
        Some(master) => master,
        None => first_key(backend, password)?,
    };
    let mut options = ConfigOptions::default();
    options.set_datapack_size = DATA_PACK.parse().ok();
    options.set_datapack_growfactor = Some(0);
    options.set_treepack_size = TREE_PACK.parse().ok();
    options.set_treepack_growfactor = Some(0);
    let made = unopened(backend)?.init(
        &Credentials::Masterkey(master),
        &KeyOptions::default(),
        &options,
    );
    match made {
        Ok(repo) => Ok(repo),
        // Another one was faster: its repository is as good.
        Err(_) if backend.failure().is_some_and(|e| e.is_exists()) => Err(FilesError::Locked {
            store: backend.store().display(),
            holder: "another process that makes it".into(),
            since: jiff::Timestamp::now().to_string(),
        }),
        Err(e) => Err(FilesError::of("making", backend, &e)),
    }
}

/// A new key, written.
fn first_key(backend: &Backend, password: &Secret) -> Result<MasterKey, FilesError> {
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
    Ok(master)
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
