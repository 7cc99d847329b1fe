//! The checksum over a whole LTX file.

use crc_fast::{CrcAlgorithm, Digest};

/// Set in every stored checksum, so that zero can mean "none".
const PRESENT_BIT: u64 = 1 << 63;

/// CRC-64/GO-ISO, fed piece by piece. Not a defence against intent: anybody can recompute it.
pub(super) struct FileCrc(Digest);

impl FileCrc {
    pub(super) fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc64GoIso))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The value as stored in the trailer.
    pub(super) fn stored(&self) -> u64 {
        self.0.finalize() | PRESENT_BIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The catalogue's check value of CRC-64/GO-ISO for "123456789" (bit 63 is set in it already).
    #[test]
    fn is_the_go_iso_variant_in_any_pieces() {
        for cut in 0..9 {
            let mut crc = FileCrc::new();
            crc.update(&b"123456789"[..cut]);
            crc.update(&b"123456789"[cut..]);
            assert_eq!(crc.stored(), 0xB909_56C7_75A4_1001);
        }
    }
}
