//! A base on its way from the database to a store.

use std::io::Write;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, oneshot};

use super::meanwhile::Audits;
use super::{Ask, Uploader};
use crate::replica::upload::{Next, Replica, UploadError};
use crate::sqlite::capture::{CaptureError, write_base};
use crate::store::Piece;
use crate::types::{Entry, Level, Span};

/// Bytes of a base handed over at once.
const PIECE_BYTES: usize = 1 << 20;

impl Uploader {
    /// Streams a base of the newest TXID, after every capture before it: their conditional creates show that no one else writes. Those after it
    /// go up meanwhile, if there is a base already.
    pub(super) async fn send_base(
        &mut self,
        replica: &mut Replica,
        audits: &mut Audits,
    ) -> Result<Entry, UploadError> {
        // Never closed. Before the view: it pins the WAL.
        let permit = Arc::clone(&self.heavy).acquire_owned();
        let _permit = self.beside(replica, audits, None, permit).await?;
        replica.check_owner(true).await?;
        let (tx, rx) = oneshot::channel();
        let gone = || UploadError::Local(std::io::Error::other("the database is not attached"));
        self.ask.send(Ask::Base(tx)).await.map_err(|_| gone())?;
        let (view, header) = rx
            .await
            .map_err(|_| gone())?
            .map_err(|e| UploadError::Local(std::io::Error::other(e)))?;
        let Some(span) = Span::new(Level::SNAPSHOT, header.min, header.max) else {
            return Err(gone());
        };
        // What the view captured on the way goes first: see the module.
        while replica.durable() < Some(header.max)
            && let Next::File(file) = replica.next(&self.spool, header.max)?
            && file.max() <= header.max
        {
            let entry = replica.send(&self.spool, file).await?;
            self.sent(replica, entry);
        }
        if let Some(entry) = replica.base_is_there(&header, span).await? {
            replica.record(entry);
            return Ok(entry);
        }
        let (created, wanted) = (header.timestamp, header);
        // One piece in flight, one being filled, one part in the uploader: the bound on memory.
        let (pieces, received) = mpsc::channel(1);
        let write = tokio::task::spawn_blocking(move || -> Result<(), Unwritten> {
            let out = Pieces {
                sender: pieces,
                buffer: BytesMut::with_capacity(PIECE_BYTES),
            };
            let mut out = match write_base(&view, &header, out) {
                Ok(out) => out,
                Err(CaptureError::Drift(what)) => return Err(Unwritten::Drift(what)),
                Err(e) => return Err(Unwritten::Failed(e.to_string())),
            };
            out.flush().map_err(|e| Unwritten::Failed(e.to_string()))?;
            out.sender
                .blocking_send(Piece::End)
                .map_err(|e| Unwritten::Failed(e.to_string()))
        });
        let (store, key) = (self.store.clone(), replica.key(span));
        let stored = store.put_stream_new(&key, received, Some(created));
        let stored = self
            .beside(replica, audits, Some(wanted.max), stored)
            .await?;
        let written = write.await.map_err(std::io::Error::other)?;
        match (stored, written) {
            (Ok(size), Ok(())) => {
                let entry = Entry {
                    span,
                    size,
                    created,
                };
                replica.record(entry);
                Ok(entry)
            }
            (_, Err(Unwritten::Drift(what))) => {
                tracing::error!(
                    target_name = self.name,
                    store = self.store.display(),
                    hint = "every page is compared now, and the next full copy is right; if it comes again, check the disk",
                    "the full copy was not completed: {what}"
                );
                // A target that is gone compares at its next start.
                let _ = self.ask.send(Ask::Compare).await;
                Err(UploadError::Local(std::io::Error::other(what)))
            }
            (_, Err(Unwritten::Failed(reason))) if !reason.contains("channel closed") => {
                Err(UploadError::Local(std::io::Error::other(reason)))
            }
            // A repeated request met what the first one had stored.
            (Err(e), _) if e.is_exists() => match replica.base_is_there(&wanted, span).await? {
                Some(entry) => {
                    replica.record(entry);
                    Ok(entry)
                }
                None => Err(e.into()),
            },
            (Err(e), _) => Err(e.into()),
            (Ok(_), Err(Unwritten::Failed(reason))) => {
                Err(UploadError::Local(std::io::Error::other(reason)))
            }
        }
    }
}

/// Why a base has no end: the store never gets the object.
enum Unwritten {
    /// It is not what was captured.
    Drift(String),
    Failed(String),
}

/// Hands what a blocking thread writes to an upload.
struct Pieces {
    sender: mpsc::Sender<Piece>,
    buffer: BytesMut,
}

impl Pieces {
    fn send(&mut self) -> std::io::Result<()> {
        let bytes: Bytes = self.buffer.split().freeze();
        self.buffer.reserve(PIECE_BYTES);
        self.sender
            .blocking_send(Piece::Data(bytes))
            .map_err(|_| std::io::Error::other("channel closed"))
    }
}

impl Write for Pieces {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= PIECE_BYTES {
            self.send()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.buffer.is_empty() {
            Ok(())
        } else {
            self.send()
        }
    }
}
