//! ClickHouse's native compressed frames (bodies with `decompress=1`, answers with `compress=1`), and LZ4 frames for HTTP.
//!
//! A native frame: 16 bytes of CityHash128 over the rest, one byte of method, the size with these 9 bytes, the raw size, data.

use cityhash_rs::cityhash_102_128;

use super::error::{
    CANNOT_DECOMPRESS, CANNOT_READ_ALL_DATA, CHECKSUM_DOESNT_MATCH, Exception, UNKNOWN_COMPRESSION_METHOD,
};

const CHECKSUM: usize = 16;
const HEADER: usize = 9;
const LZ4: u8 = 0x82;
const NONE: u8 = 0x02;
/// No client in use writes larger frames (ClickHouse's own are 1 MB); a torn header must not ask for the whole memory.
const MAX_FRAME: usize = 256 << 20;
/// How much is compressed at once.
const PIECE: usize = 1 << 20;

/// Takes compressed bytes as they come and gives raw ones.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    waiting: Vec<u8>,
}

impl Decoder {
    /// Appends the raw bytes of every frame that is now whole to `out`.
    pub(super) fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Exception> {
        self.waiting.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(taken) = frame(&self.waiting[at..], out)? {
            at += taken;
        }
        self.waiting.drain(..at);
        Ok(())
    }

    /// Fails if the bytes ended inside a frame.
    pub(super) fn end(&self) -> Result<(), Exception> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        Err(Exception::new(CANNOT_READ_ALL_DATA, "the compressed body ends inside a block"))
    }
}

/// Decodes one frame and returns its length; `None` if it is not whole yet.
fn frame(bytes: &[u8], out: &mut Vec<u8>) -> Result<Option<usize>, Exception> {
    let Some((checksum, rest)) = bytes.split_first_chunk::<CHECKSUM>() else { return Ok(None) };
    let (Some(&method), Some(size), Some(raw)) = (rest.first(), number(rest, 1), number(rest, 5)) else {
        return Ok(None);
    };
    if !(HEADER..=MAX_FRAME).contains(&size) || raw > MAX_FRAME {
        return Err(Exception::new(CANNOT_DECOMPRESS, format!("a block of {size} bytes with {raw} raw ones")));
    }
    let Some(body) = rest.get(..size) else { return Ok(None) };
    if hash(body) != *checksum {
        return Err(Exception::new(CHECKSUM_DOESNT_MATCH, "Checksum doesn't match: corrupted data"));
    }
    let data = &body[HEADER..];
    match method {
        LZ4 => {
            let start = out.len();
            out.resize(start + raw, 0);
            let written = lz4_flex::block::decompress_into(data, &mut out[start..])
                .map_err(|error| Exception::new(CANNOT_DECOMPRESS, error))?;
            if written != raw {
                return Err(Exception::new(CANNOT_DECOMPRESS, format!("a block of {written} bytes that names {raw}")));
            }
        }
        NONE => out.extend_from_slice(data),
        other => {
            return Err(Exception::new(UNKNOWN_COMPRESSION_METHOD, format!("Unknown codec family code: {other}")));
        }
    }
    Ok(Some(CHECKSUM + size))
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..)?.first_chunk::<4>()?;
    usize::try_from(u32::from_le_bytes(*four)).ok()
}

fn hash(body: &[u8]) -> [u8; CHECKSUM] {
    cityhash_102_128(body).rotate_right(64).to_le_bytes()
}

/// Raw bytes as native LZ4 frames.
pub(super) fn encode_native(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in raw.chunks(PIECE) {
        let data = lz4_flex::block::compress(piece);
        let start = out.len();
        out.extend_from_slice(&[0; CHECKSUM]);
        out.push(LZ4);
        // Pieces are 1 MB: the sizes fit.
        out.extend_from_slice(&u32::try_from(data.len() + HEADER).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&u32::try_from(piece.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&data);
        let checksum = hash(&out[start + CHECKSUM..]);
        out[start..start + CHECKSUM].copy_from_slice(&checksum);
    }
    out
}

/// The start of an LZ4 frame: magic, independent blocks without checksums of at most 4 MB, and the header's own checksum.
const LZ4_FRAME_START: [u8; 7] = [0x04, 0x22, 0x4d, 0x18, 0x60, 0x70, 0x73];
/// Marks a block that is stored as it is.
const STORED: u32 = 1 << 31;

/// Raw bytes as one LZ4 frame (`Content-Encoding: lz4`).
pub(super) fn encode_lz4_frame(raw: &[u8]) -> Vec<u8> {
    let mut out = LZ4_FRAME_START.to_vec();
    for piece in raw.chunks(PIECE) {
        let data = lz4_flex::block::compress(piece);
        let (data, mark) = if data.len() < piece.len() { (&*data, 0) } else { (piece, STORED) };
        out.extend_from_slice(&(u32::try_from(data.len()).unwrap_or(u32::MAX) | mark).to_le_bytes());
        out.extend_from_slice(data);
    }
    out.extend_from_slice(&[0; 4]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * i / 7) as u8).collect()
    }

    #[test]
    fn frames_are_decoded_wherever_they_are_cut() {
        let raw = sample(PIECE + 12_345);
        let frames = encode_native(&raw);
        for step in [1000, 24, 25, 26, frames.len()] {
            let (mut decoder, mut out) = (Decoder::default(), Vec::new());
            for piece in frames.chunks(step) {
                decoder.push(piece, &mut out).unwrap();
            }
            decoder.end().unwrap();
            assert!(out == raw);
        }
    }

    #[test]
    fn bad_frames_are_refused() {
        let frames = encode_native(&sample(5_000));
        let code = |bytes: &[u8]| {
            let (mut decoder, mut out) = (Decoder::default(), Vec::new());
            decoder.push(bytes, &mut out).and_then(|()| decoder.end()).unwrap_err().code
        };
        assert_eq!(code(&frames[..frames.len() - 1]), CANNOT_READ_ALL_DATA.0);
        assert_eq!(code(&frames[..20]), CANNOT_READ_ALL_DATA.0);
        let mut torn = frames.clone();
        torn[100] ^= 1;
        assert_eq!(code(&torn), CHECKSUM_DOESNT_MATCH.0);
        let mut huge = frames.clone();
        huge[17..21].copy_from_slice(&[255; 4]);
        assert_eq!(code(&huge), CANNOT_DECOMPRESS.0);
        let resealed = |change: fn(&mut Vec<u8>)| {
            let mut frame = frames.clone();
            change(&mut frame);
            let checksum = hash(&frame[CHECKSUM..]);
            frame[..CHECKSUM].copy_from_slice(&checksum);
            frame
        };
        assert_eq!(code(&resealed(|frame| frame[16] = 0x90)), UNKNOWN_COMPRESSION_METHOD.0);
        assert_eq!(code(&resealed(|frame| frame[21] ^= 1)), CANNOT_DECOMPRESS.0);
    }

    #[test]
    fn an_lz4_frame_has_blocks_and_an_end() {
        let frame = encode_lz4_frame(b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
        assert!(frame.starts_with(&LZ4_FRAME_START) && frame.ends_with(&[0; 4]));
        assert_eq!(encode_lz4_frame(b""), [&LZ4_FRAME_START[..], &[0; 4]].concat());
    }
}
