//! Who may write to a replica. Deciding is pure; two small functions read and write `owner.json`.
//!
//! There is no timed lease: an idle replica must cost no request. A start uploads only with proof that it continues this replica, and
//! every start reads `owner.json` before anything else.
//!
//! What this does **not** guarantee: that an old owner notices a claim at once. It notices at its next upload, by a TXID that is
//! taken or by the epoch, and overwrites nothing until then, because captures are conditional creates.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::layout::OWNER_KEY;
use crate::store::{PutMode, Store, StoreError};
use crate::types::{Lineage, Millis, Txid};

/// `lifeboat/owner.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Format of this file.
    pub version: u32,
    /// History, 16 hexadecimal digits.
    pub lineage: String,
    /// Host and service that write.
    pub instance: String,
    /// Rises with every change of owner.
    pub epoch: u32,
    /// RFC 3339.
    pub since: String,
    /// Set by `claim`: the next start of this instance continues the replica without page proof.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub claimed: bool,
    /// Set by `release`: any instance may take over with page proof.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub released: bool,
    /// Path of the database on that instance: what an empty server restores it to when only its folder is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<PathBuf>,
}

impl Owner {
    /// A new owner.
    pub fn new(lineage: Lineage, instance: &str, epoch: u32, now: Millis) -> Self {
        Self {
            version: 1,
            lineage: lineage.to_string(),
            instance: instance.to_owned(),
            epoch,
            since: now.to_string(),
            claimed: false,
            released: false,
            database: None,
        }
    }

    /// With the path of the database.
    #[must_use]
    pub fn of(self, database: &Path) -> Self {
        Self {
            database: Some(database.to_owned()),
            ..self
        }
    }

    /// How long it has been the owner, by this host's clock; zero if that cannot be told.
    pub fn owned_for(&self, now: Millis) -> Duration {
        let since = self.since.parse::<jiff::Timestamp>();
        let ms = since.map_or(0, |t| now.since(Millis(t.as_millisecond())));
        Duration::from_millis(u64::try_from(ms).unwrap_or(0))
    }

    /// History; `None` if the file is damaged.
    pub fn lineage(&self) -> Option<Lineage> {
        Lineage::from_hex(&self.lineage)
    }
}

/// What the state directory remembers about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// History that it continues.
    pub lineage: Lineage,
    /// Epoch under which it wrote last.
    pub epoch: u32,
}

/// What to do with a replica at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is there: begin, with this new owner written first. Local state, if any, goes on with its lineage.
    Fresh,
    /// The local state continues this replica.
    Continue(Local),
    /// State lost, or a Litestream replica: continue only if enough pages match (`proof`), under this lineage and epoch.
    Rebuild {
        /// History to go on with; `None` for a new one (the replica has none).
        lineage: Option<Lineage>,
        /// Epoch to write under.
        epoch: u32,
        /// At least half of the pages must match.
        proof: bool,
    },
    /// Keep out.
    Refuse(Refusal),
}

/// Why this instance may not write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another instance owns the replica.
    #[error(
        "the replica belongs to {instance} since {since} (lineage {lineage}, epoch {epoch}); nothing was uploaded"
    )]
    Foreign {
        /// Its owner.
        instance: String,
        /// Since when.
        since: String,
        /// Its history.
        lineage: String,
        /// Its epoch.
        epoch: u32,
    },
    /// The local database continues another history than this replica.
    #[error(
        "this database continues lineage {local}, but the replica holds lineage {remote}; nothing was uploaded"
    )]
    OtherHistory {
        /// Ours.
        local: String,
        /// The replica's.
        remote: String,
    },
    /// The store holds another past of this history, or went further than this one.
    #[error(
        "the replica went on to TXID {top} with another past than this database's, which is at TXID {captured}; nothing was uploaded"
    )]
    Diverged {
        /// Highest TXID there.
        top: Txid,
        /// Ours.
        captured: Txid,
    },
    /// Too few pages match.
    #[error(
        "only {same} of {compared} pages match the replica's newest state; nothing was uploaded"
    )]
    TooDifferent {
        /// Pages that match.
        same: u64,
        /// Pages compared.
        compared: u64,
    },
    /// A TXID that we were about to write exists with other content.
    #[error(
        "TXID {0} exists in the replica with other content: someone else writes there; nothing was overwritten"
    )]
    Taken(Txid),
    /// `owner.json` cannot be understood.
    #[error("owner.json of the replica is damaged: {0}; nothing was uploaded")]
    Damaged(String),
}

impl Refusal {
    /// The next step for a person.
    pub fn hint(&self) -> String {
        "if this database is the one to go on with, run `lifeboat claim TARGET`; otherwise give it a name or store of its own".into()
    }
}

/// Decides from what is known. `remote` is `owner.json`, `has_files` whether the replica holds any LTX file.
pub fn decide(
    local: Option<Local>,
    remote: Option<&Owner>,
    has_files: bool,
    instance: &str,
) -> Verdict {
    let Some(owner) = remote else {
        return match (local, has_files) {
            (_, false) => Verdict::Fresh,
            // Litestream's, or Lifeboat's whose owner.json was deleted.
            (None, true) => Verdict::Rebuild {
                lineage: None,
                epoch: 1,
                proof: true,
            },
            (Some(local), true) => Verdict::Rebuild {
                lineage: Some(local.lineage),
                epoch: local.epoch.saturating_add(1),
                proof: true,
            },
        };
    };
    let Some(lineage) = owner.lineage() else {
        return Verdict::Refuse(Refusal::Damaged(format!("lineage \"{}\"", owner.lineage)));
    };
    let foreign = || Refusal::Foreign {
        instance: owner.instance.clone(),
        since: owner.since.clone(),
        lineage: owner.lineage.clone(),
        epoch: owner.epoch,
    };
    let ours = owner.instance == instance;
    match local {
        Some(local) if local.lineage == lineage && local.epoch == owner.epoch => {
            Verdict::Continue(local)
        }
        _ if ours && owner.claimed => Verdict::Rebuild {
            lineage: Some(lineage),
            epoch: owner.epoch,
            proof: false,
        },
        // Nothing is there that could be continued wrongly.
        _ if ours && !has_files => Verdict::Fresh,
        Some(local) if local.lineage != lineage => Verdict::Refuse(Refusal::OtherHistory {
            local: local.lineage.to_string(),
            remote: owner.lineage.clone(),
        }),
        _ if ours => Verdict::Rebuild {
            lineage: Some(lineage),
            epoch: owner.epoch,
            proof: true,
        },
        _ if owner.released => Verdict::Rebuild {
            lineage: Some(lineage),
            epoch: owner.epoch.saturating_add(1),
            proof: true,
        },
        _ => Verdict::Refuse(foreign()),
    }
}

/// Reads `owner.json`; `Ok(None)` if there is none.
pub async fn read(store: &Store) -> Result<Option<Result<Owner, Refusal>>, StoreError> {
    match store.get(OWNER_KEY).await {
        Ok(bytes) => Ok(Some(
            serde_json::from_slice(&bytes).map_err(|e| Refusal::Damaged(e.to_string())),
        )),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e),
    }
}

/// Writes `owner.json`.
pub async fn write(store: &Store, owner: &Owner, mode: PutMode) -> Result<(), StoreError> {
    let body = serde_json::to_vec_pretty(owner).unwrap_or_default();
    store.put(OWNER_KEY, body.into(), mode, None).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lineage(n: u64) -> Lineage {
        Lineage::new(n).unwrap()
    }

    fn local(n: u64, epoch: u32) -> Option<Local> {
        Some(Local {
            lineage: lineage(n),
            epoch,
        })
    }

    #[test]
    fn only_proof_continues_a_replica() {
        let owner = Owner::new(lineage(7), "web1", 3, Millis(0));
        let claimed = Owner {
            claimed: true,
            ..owner.clone()
        };
        let released = Owner {
            released: true,
            ..owner.clone()
        };
        let rebuild = |n, epoch, proof| Verdict::Rebuild {
            lineage: Some(lineage(n)),
            epoch,
            proof,
        };
        let is_refused = |v| matches!(v, Verdict::Refuse(_));

        assert_eq!(decide(None, None, false, "web1"), Verdict::Fresh);
        assert_eq!(
            decide(local(7, 3), None, false, "web1"),
            Verdict::Fresh,
            "an emptied bucket"
        );
        assert_eq!(
            decide(None, None, true, "web1"),
            Verdict::Rebuild {
                lineage: None,
                epoch: 1,
                proof: true
            },
            "Litestream's"
        );
        assert_eq!(
            decide(local(7, 3), Some(&owner), true, "web1"),
            Verdict::Continue(Local {
                lineage: lineage(7),
                epoch: 3
            })
        );
        assert_eq!(
            decide(local(7, 3), Some(&owner), true, "renamed"),
            Verdict::Continue(Local {
                lineage: lineage(7),
                epoch: 3
            })
        );
        assert_eq!(
            decide(None, Some(&owner), true, "web1"),
            rebuild(7, 3, true),
            "state lost"
        );
        assert_eq!(
            decide(None, Some(&claimed), true, "web1"),
            rebuild(7, 3, false)
        );
        assert_eq!(
            decide(local(1, 1), Some(&claimed), true, "web1"),
            rebuild(7, 3, false)
        );
        assert_eq!(
            decide(None, Some(&released), true, "web2"),
            rebuild(7, 4, true)
        );

        assert_eq!(
            decide(local(8, 1), Some(&owner), false, "web1"),
            Verdict::Fresh,
            "a first start that was cut short"
        );
        assert!(
            is_refused(decide(None, Some(&owner), true, "web2")),
            "a fresh server or staging"
        );
        assert!(is_refused(decide(None, Some(&claimed), true, "web2")));
        assert!(
            is_refused(decide(local(8, 3), Some(&owner), true, "web1")),
            "another app of the same name"
        );
        assert!(
            is_refused(decide(local(7, 2), Some(&owner), true, "web2")),
            "claimed by another meanwhile"
        );
    }
}
