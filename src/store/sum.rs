//! The checksum that a store itself tells of what it took, held against what was sent.
//!
//! On S3 the ETag of an object is the MD5 of its bytes; of one that came in parts, the MD5 of the parts' MD5s, and their number behind it
//! (AWS, "Checking object integrity"). Objects under KMS keys have ETags that look alike and are not: [`Store::tells_md5`] finds out. Azure, Google
//! and folders tell nothing here: there, reading back is the only proof.

use bytes::Bytes;
use md5::{Digest, Md5};
use object_store::PutPayload;

use super::{Kind, PutMode, Store, StoreError};

/// What the store's own checksum says of an object that was just written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreSum {
    /// The store holds what was sent.
    Equal,
    /// It looks like a checksum of other bytes.
    Differs,
    /// There is none that could be compared.
    Unknown,
}

/// MD5 over what is sent, part by part.
#[derive(Clone, Debug, Default)]
pub(super) struct Sum {
    parts: Vec<[u8; 16]>,
}

impl Sum {
    /// Hashes one part, on a thread that may block.
    pub(super) async fn add(&mut self, payload: &PutPayload) {
        let payload = payload.clone();
        let hashed = tokio::task::spawn_blocking(move || {
            let mut hash = Md5::new();
            payload.iter().for_each(|bytes| hash.update(bytes));
            <[u8; 16]>::from(hash.finalize())
        });
        // Fails only if the runtime ends; the sum then matches nothing.
        self.parts.extend(hashed.await.ok());
    }

    fn single(&self) -> Option<String> {
        match self.parts.as_slice() {
            [only] => Some(hex::encode(only)),
            _ => None,
        }
    }

    fn of_parts(&self) -> String {
        let all = Md5::digest(self.parts.concat());
        format!("{}-{}", hex::encode(all), self.parts.len())
    }

    /// Judges the ETag of the answer. Pure.
    pub(super) fn judge(&self, kind: Kind, e_tag: Option<&str>) -> StoreSum {
        let (Kind::S3, Some(told)) = (kind, e_tag) else {
            return StoreSum::Unknown;
        };
        let told = told.trim_matches('"').to_ascii_lowercase();
        let digits = told.split_once('-').map_or(told.as_str(), |(md5, _)| md5);
        if digits.len() != 32 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return StoreSum::Unknown;
        }
        match Some(&told) == self.single().as_ref() || told == self.of_parts() {
            true => StoreSum::Equal,
            false => StoreSum::Differs,
        }
    }
}

impl Store {
    /// Whether this store's ETags are MD5 sums: writes `scratch_key` and deletes it; the key must be nobody else's.
    ///
    /// # Errors
    /// Any class; the scratch object may stay behind then.
    pub async fn tells_md5(&self, scratch_key: &str) -> Result<bool, StoreError> {
        let mut sum = Sum::default();
        let payload = PutPayload::from(Bytes::from_static(b"lifeboat asks what an ETag is here"));
        sum.add(&payload).await;
        let e_tag = self
            .put_payload(scratch_key, payload, PutMode::Overwrite, None)
            .await?;
        self.delete(scratch_key).await?;
        Ok(sum.judge(self.kind(), e_tag.as_deref()) == StoreSum::Equal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sum(parts: &[&'static str]) -> Sum {
        let mut sum = Sum::default();
        for part in parts {
            sum.add(&PutPayload::from_static(part.as_bytes())).await;
        }
        sum
    }

    /// The figures are those of `md5sum`.
    #[tokio::test]
    async fn e_tags_are_judged() {
        use StoreSum::{Differs, Equal, Unknown};
        let one = sum(&["hello"]).await;
        let md5 = "5d41402abc4b2a76b9719d911017c592";
        assert_eq!(one.judge(Kind::S3, Some(&format!("\"{md5}\""))), Equal);
        assert_eq!(one.judge(Kind::S3, Some(&md5.to_uppercase())), Equal);
        assert_eq!(one.judge(Kind::S3, Some(&md5.replace('5', "6"))), Differs);
        assert_eq!(one.judge(Kind::S3, Some("W/\"1792-5b\"")), Unknown);
        assert_eq!(one.judge(Kind::S3, None), Unknown);
        assert_eq!(one.judge(Kind::Azure, Some(md5)), Unknown);
        let two = sum(&["hello", "world"]).await;
        let told = "\"065947336a2f2a95ba8899f3675c3be6-2\"";
        assert_eq!(two.judge(Kind::S3, Some(told)), Equal);
        assert_eq!(two.judge(Kind::S3, Some(&told.replace('2', "3"))), Differs);
        assert_eq!(two.judge(Kind::S3, Some(md5)), Differs);
    }
}
