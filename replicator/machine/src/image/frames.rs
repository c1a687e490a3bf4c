//! An image's frames: `{u8 kind; u32 length; payload}`, and the hash over all of them.

use std::io::{self, Read, Write};

use xxhash_rust::xxh3::Xxh3Default;

use super::{IMAGE_VERSION, ImageError};

const MAGIC: [u8; 7] = *b"RPLIMAG";
const HEADER_BYTES: usize = 5;
/// A frame of records takes no more of them once it has this many bytes.
pub(crate) const FRAME_BYTES: usize = 256 << 10;
/// What a payload's buffer grows by: more than that is never allocated for bytes that don't come.
const GROWTH_BYTES: usize = 1 << 20;

/// What a frame holds. Frames come in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Kind {
    Head = 1,
    Sessions = 2,
    Pushes = 3,
    Pages = 4,
    End = 5,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Head, Self::Sessions, Self::Pushes, Self::Pages, Self::End];
}

/// Writes frames.
pub(crate) struct FrameWriter<'a> {
    out: &'a mut dyn Write,
    hash: Xxh3Default,
    bytes: u64,
    kind: Kind,
    /// The frame that is being filled, its header first; empty: none.
    frame: Vec<u8>,
}

impl<'a> FrameWriter<'a> {
    pub(crate) fn new(out: &'a mut dyn Write) -> io::Result<Self> {
        let mut frames = Self { out, hash: Xxh3Default::new(), bytes: 0, kind: Kind::Head, frame: Vec::new() };
        frames.frame.extend_from_slice(&MAGIC);
        frames.frame.push(IMAGE_VERSION);
        frames.put()?;
        Ok(frames)
    }

    /// Adds a record, to the frame before if that is of the same kind and not yet full.
    pub(crate) fn record(&mut self, kind: Kind, encode: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        if self.frame.is_empty() || self.kind != kind || self.frame.len() >= HEADER_BYTES + FRAME_BYTES {
            self.begin(kind)?;
        }
        encode(&mut self.frame);
        Ok(())
    }

    /// Begins a frame, and returns its bytes: all that is added to them is its payload.
    pub(crate) fn begin(&mut self, kind: Kind) -> io::Result<&mut Vec<u8>> {
        self.end()?;
        self.kind = kind;
        self.frame.extend_from_slice(&[kind as u8, 0, 0, 0, 0]);
        Ok(&mut self.frame)
    }

    /// The payload's place in the frame that was begun last.
    pub(crate) fn payload(&mut self) -> &mut Vec<u8> {
        &mut self.frame
    }

    /// Ends the frame that was begun last, if one was.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let len = self.frame.len() - HEADER_BYTES;
        let len = u32::try_from(len).map_err(|_| io::Error::other(format!("a record of {len} bytes")))?;
        self.frame[1..HEADER_BYTES].copy_from_slice(&len.to_le_bytes());
        self.put()
    }

    fn put(&mut self) -> io::Result<()> {
        self.out.write_all(&self.frame)?;
        self.hash.update(&self.frame);
        self.bytes += self.frame.len() as u64;
        self.frame.clear();
        Ok(())
    }

    /// Writes the last frame. Returns the length of everything, and its hash.
    pub(crate) fn finish(mut self) -> io::Result<(u64, u128)> {
        self.end()?;
        self.frame.push(Kind::End as u8);
        self.frame.extend_from_slice(&(size_of::<u128>() as u32).to_le_bytes());
        self.put()?;
        let hash = self.hash.digest128();
        self.out.write_all(&hash.to_le_bytes())?;
        Ok((self.bytes + size_of::<u128>() as u64, hash))
    }
}

/// Reads frames.
pub(crate) struct FrameReader<'a> {
    input: &'a mut dyn Read,
    hash: Xxh3Default,
    offset: u64,
}

impl<'a> FrameReader<'a> {
    pub(crate) fn new(input: &'a mut dyn Read) -> Result<Self, ImageError> {
        let mut frames = Self { input, hash: Xxh3Default::new(), offset: 0 };
        let mut magic = [0; MAGIC.len()];
        frames.exact(&mut magic)?;
        if magic != MAGIC {
            return Err(ImageError::NotAnImage);
        }
        let [found] = frames.array()?;
        if !(1..=IMAGE_VERSION).contains(&found) {
            return Err(ImageError::Version { found });
        }
        Ok(frames)
    }

    /// That something is wrong with what was read last.
    pub(crate) fn malformed(&self, what: impl Into<String>) -> ImageError {
        ImageError::Malformed { offset: self.offset, what: what.into() }
    }

    /// A frame's kind, which isn't before `after`, and its length.
    pub(crate) fn header(&mut self, after: Kind) -> Result<(Kind, usize), ImageError> {
        let [kind, len @ ..] = self.array::<HEADER_BYTES>()?;
        let Some(kind) = Kind::ALL.into_iter().find(|known| *known as u8 == kind) else {
            return Err(self.malformed(format!("a section of the unknown kind {kind}")));
        };
        if kind < after {
            return Err(self.malformed(format!("{kind:?} after {after:?}")));
        }
        Ok((kind, u32::from_le_bytes(len) as usize))
    }

    /// A payload of `len` bytes, of which there may be `max`.
    pub(crate) fn payload(&mut self, len: usize, max: usize, payload: &mut Vec<u8>) -> Result<(), ImageError> {
        if len > max {
            return Err(self.malformed(format!("a section of {len} bytes, where there may be {max}")));
        }
        payload.clear();
        while payload.len() < len {
            let have = payload.len();
            payload.resize(have + GROWTH_BYTES.min(len - have), 0);
            self.exact(&mut payload[have..])?;
        }
        Ok(())
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], ImageError> {
        let mut bytes = [0; N];
        self.exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Fills `bytes`.
    pub(crate) fn exact(&mut self, bytes: &mut [u8]) -> Result<(), ImageError> {
        self.fill(bytes)?;
        self.hash.update(bytes);
        Ok(())
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), ImageError> {
        let mut have = 0;
        while have < bytes.len() {
            match self.input.read(&mut bytes[have..]) {
                Ok(0) => return Err(ImageError::Truncated { offset: self.offset }),
                Ok(more) => {
                    have += more;
                    self.offset += more as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ImageError::Read { offset: self.offset, source }),
            }
        }
        Ok(())
    }

    /// After the header of the last frame, whose length is `len`: checks the hash, and that nothing follows.
    pub(crate) fn finish(mut self, len: usize) -> Result<(), ImageError> {
        if len != size_of::<u128>() {
            return Err(self.malformed(format!("a hash of {len} bytes")));
        }
        let found = self.hash.digest128();
        let written = u128::from_le_bytes(self.array()?);
        if written != found {
            return Err(ImageError::Damaged { written, found });
        }
        match self.fill(&mut [0]) {
            Err(ImageError::Truncated { .. }) => Ok(()),
            Ok(()) => Err(self.malformed("it goes on after its end")),
            Err(error) => Err(error),
        }
    }
}

/// A payload that is being taken apart. An error says what is wrong.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], String> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or("a record is longer than its section")?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or("a record is cut off by its section's end")?;
        self.0 = rest;
        Ok(*bytes)
    }

    pub(crate) fn u128(&mut self) -> Result<u128, String> {
        self.array().map(u128::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, String> {
        self.array().map(|[byte]| byte)
    }
}
