//! What a call says to the world: one list of records in one buffer, which every call uses again.
//!
//! A record is `{u32 tag; u32 len; [u8; 16] to; len bytes; zeros up to a multiple of 8}`.

use std::ops::Range;

use crate::{SessionId, sha256::sha256};

/// Bytes of a record in front of its payload.
pub(crate) const RECORD_HEADER_BYTES: usize = 24;
pub(crate) const TAG_REPLY: u32 = 0;
pub(crate) const TAG_PUSH: u32 = 1;
pub(crate) const TAG_LOG: u32 = 2;

/// Where the subscribers of a topic listen: the first 16 bytes of the SHA-256 of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TopicId(pub [u8; 16]);

impl TopicId {
    /// The topic that clients subscribe to by this name. It costs a hash: keep it rather than making it at each push.
    pub fn of_name(name: &str) -> Self {
        let mut id = [0; 16];
        id.copy_from_slice(&sha256(name.as_bytes())[..16]);
        Self(id)
    }
}

/// Whether a call may still reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    Open,
    Given,
    /// Nobody asked: a tick, a connect or a disconnect.
    Forbidden,
}

/// What a call says: a reply, pushes and log lines.
#[derive(Debug)]
pub struct Output {
    list: Vec<u8>,
    reply: Reply,
}

impl Output {
    pub(crate) const fn new() -> Self {
        Self { list: Vec::new(), reply: Reply::Forbidden }
    }

    /// Empties the list for the next call.
    pub(crate) fn begin(&mut self, may_reply: bool) {
        self.list.clear();
        self.reply = if may_reply { Reply::Open } else { Reply::Forbidden };
    }

    /// The list as the host reads it.
    pub(crate) fn list(&self) -> &[u8] {
        &self.list
    }

    /// Answers the client. A call without a reply answers with no bytes.
    ///
    /// # Panics
    /// If this call has replied already, or has nobody to reply to.
    #[inline]
    pub fn reply(&mut self, bytes: &[u8]) {
        self.reply_with(|list| list.extend_from_slice(bytes));
    }

    /// Answers the client with what `write` appends, which so needs no buffer of its own.
    ///
    /// # Panics
    /// If this call has replied already, or has nobody to reply to, or if `write` takes bytes away.
    #[inline]
    pub fn reply_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        match self.reply {
            Reply::Open => self.reply = Reply::Given,
            Reply::Given => panic!("a call replies once"),
            Reply::Forbidden => panic!("only requests and queries have somebody to reply to"),
        }
        self.record(TAG_REPLY, &[0; 16], write);
    }

    /// Sends an event to the subscribers of a session.
    pub fn push(&mut self, to: SessionId, bytes: &[u8]) {
        self.record(TAG_PUSH, &to.0, |list| list.extend_from_slice(bytes));
    }

    /// Sends the event that `write` appends to each of some sessions, and returns to how many. It is written once, and
    /// not at all for nobody.
    ///
    /// # Panics
    /// If `write` takes bytes away.
    pub fn push_to_each(
        &mut self,
        sessions: impl IntoIterator<Item = SessionId>,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> u32 {
        let mut sessions = sessions.into_iter();
        let Some(first) = sessions.next() else { return 0 };
        let record = self.record(TAG_PUSH, &first.0, write);
        let mut count = 1;
        for session in sessions {
            let start = self.list.len();
            self.list.extend_from_within(record.clone());
            self.list[start + 8..start + 24].copy_from_slice(&session.0);
            count += 1;
        }
        count
    }

    /// Sends an event to the subscribers of a topic.
    pub fn push_to_topic(&mut self, to: TopicId, bytes: &[u8]) {
        self.record(TAG_PUSH, &to.0, |list| list.extend_from_slice(bytes));
    }

    /// Writes a line into the log of every node.
    pub fn log(&mut self, line: &str) {
        self.record(TAG_LOG, &[0; 16], |list| list.extend_from_slice(line.as_bytes()));
    }

    /// Appends a record, and returns where it is.
    #[inline]
    fn record(&mut self, tag: u32, to: &[u8; 16], write: impl FnOnce(&mut Vec<u8>)) -> Range<usize> {
        let start = self.list.len();
        let mut header = [0; RECORD_HEADER_BYTES];
        header[0..4].copy_from_slice(&tag.to_le_bytes());
        header[8..24].copy_from_slice(to);
        self.list.extend_from_slice(&header);
        write(&mut self.list);
        let end = self.list.len();
        assert!(end >= start + RECORD_HEADER_BYTES, "an output's writer only appends");
        let len = u32::try_from(end - start - RECORD_HEADER_BYTES).expect("a record is smaller than the memory");
        self.list[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
        // Eight zeros and a cut are one store; filling up to the multiple would be a call of memory.fill.
        self.list.extend_from_slice(&[0; 8]);
        self.list.truncate(end.next_multiple_of(8));
        start..self.list.len()
    }
}

/// The records of a well-formed list: tag, receiver, payload.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn records(mut list: &[u8]) -> impl Iterator<Item = (u32, [u8; 16], &[u8])> {
    const MALFORMED: &str = "the SDK writes well-formed lists";
    std::iter::from_fn(move || {
        let (tag, rest) = list.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk().expect(MALFORMED);
        let (to, rest) = rest.split_first_chunk().expect(MALFORMED);
        let len = u32::from_le_bytes(*len) as usize;
        let (payload, _) = rest.split_at_checked(len).expect(MALFORMED);
        list = rest.get(len.next_multiple_of(8)..).expect(MALFORMED);
        Some((u32::from_le_bytes(*tag), *to, payload))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_laid_out_to_the_byte() {
        let mut output = Output::new();
        output.begin(true);
        output.push(SessionId([7; 16]), b"abc");
        output.reply(b"");
        let mut expected = vec![1, 0, 0, 0, 3, 0, 0, 0];
        expected.extend([7; 16]);
        expected.extend(*b"abc\0\0\0\0\0");
        expected.extend([0; 24]);
        assert_eq!(output.list(), expected);
    }

    #[test]
    fn lists_of_every_payload_length_are_read_back() {
        let mut output = Output::new();
        output.begin(true);
        let payloads: Vec<Vec<u8>> = (0..40).map(|len| vec![0xee; len]).collect();
        payloads.iter().for_each(|payload| output.push_to_topic(TopicId([9; 16]), payload));
        output.log("done");
        let read: Vec<_> = records(output.list()).collect();
        for (record, payload) in read.iter().zip(&payloads) {
            assert_eq!(*record, (TAG_PUSH, [9; 16], payload.as_slice()));
        }
        assert_eq!(read.last(), Some(&(TAG_LOG, [0; 16], b"done".as_slice())));
        assert_eq!(read.len(), payloads.len() + 1);
    }

    #[test]
    fn a_push_to_many_is_written_once() {
        let mut output = Output::new();
        output.begin(false);
        let sessions = [SessionId([1; 16]), SessionId([2; 16]), SessionId([3; 16])];
        let mut written = 0;
        let count = output.push_to_each(sessions, |list| {
            written += 1;
            list.extend_from_slice(b"hello");
        });
        assert_eq!((count, written), (3, 1));
        let read: Vec<_> = records(output.list()).collect();
        assert_eq!(read, sessions.map(|session| (TAG_PUSH, session.0, b"hello".as_slice())));
        assert_eq!(output.push_to_each([], |_| panic!("nobody listens")), 0);
    }

    #[test]
    #[should_panic(expected = "replies once")]
    fn a_second_reply_panics() {
        let mut output = Output::new();
        output.begin(true);
        output.reply(b"1");
        output.reply(b"2");
    }

    #[test]
    #[should_panic(expected = "somebody to reply to")]
    fn a_reply_to_nobody_panics() {
        let mut output = Output::new();
        output.begin(false);
        output.reply(b"");
    }

    #[test]
    fn a_topic_is_the_beginning_of_the_sha256_of_its_name() {
        // SHA-256("abc") = ba7816bf 8f01cfea 414140de 5dae2223 ...
        let expected = [0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23];
        assert_eq!(TopicId::of_name("abc"), TopicId(expected));
    }
}
