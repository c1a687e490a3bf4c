//! Decoding of a guest's output list: records `{u32 tag; u32 len; [u8; 16] to; bytes; pad to 8}`, little-endian.
//!
//! The list is whatever the guest left in its memory, so every field is checked. What is malformed is refused as a
//! whole: a trap, equal on every replica.

use bytes::Bytes;

use crate::outcome::{Push, Trap, TrapKind};

const RECORD_HEADER_BYTES: usize = 24;
const RECORD_ALIGNMENT: usize = 8;

const TAG_REPLY: u32 = 0;
const TAG_PUSH: u32 = 1;
const TAG_LOG: u32 = 2;

/// What a guest's call said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Output {
    /// Empty if there was no reply.
    pub(crate) reply: Bytes,
    pub(crate) pushes: Vec<Push>,
    pub(crate) logs: Vec<String>,
}

/// Decodes a whole list. Each reply and push is copied once, into an allocation of its own.
#[inline]
pub(crate) fn decode(mut list: &[u8]) -> Result<Output, Trap> {
    let mut output = Output::default();
    let mut replied = false;
    while !list.is_empty() {
        let Some((header, rest)) = list.split_first_chunk::<RECORD_HEADER_BYTES>() else {
            return Err(malformed("a record is cut off in its header"));
        };
        let [t0, t1, t2, t3, l0, l1, l2, l3, to @ ..] = *header;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize; // no loss: usize has 64 bits, memory.rs relies on it too
        let Some((payload, rest)) = rest.split_at_checked(len) else {
            return Err(malformed("a record is longer than the list"));
        };
        let padding = len.next_multiple_of(RECORD_ALIGNMENT) - len;
        list = rest.get(padding..).ok_or_else(|| malformed("a record isn't padded to a multiple of 8 bytes"))?;
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            TAG_REPLY if replied => return Err(malformed("more than one reply")),
            TAG_REPLY => {
                replied = true;
                output.reply = Bytes::copy_from_slice(payload);
            }
            TAG_PUSH => output.pushes.push(Push { to, payload: Bytes::copy_from_slice(payload) }),
            TAG_LOG => output.logs.push(String::from_utf8_lossy(payload).into_owned()),
            tag => return Err(malformed(&format!("a record has the unknown tag {tag}"))),
        }
    }
    Ok(output)
}

#[cold]
fn malformed(what: &str) -> Trap {
    Trap::because(TrapKind::MalformedOutput, format!("malformed output list: {what}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(tag: u32, to: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = tag.to_le_bytes().to_vec();
        bytes.extend((payload.len() as u32).to_le_bytes());
        bytes.extend([to; 16]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    fn refusal(list: &[u8]) -> String {
        let trap = decode(list).unwrap_err();
        assert_eq!(trap.kind, TrapKind::MalformedOutput);
        trap.message
    }

    #[test]
    fn a_whole_list_decodes() {
        let list =
            [record(1, 7, b"pushed"), record(0, 0, b"12345678"), record(2, 0, b"\xffline"), record(1, 8, b"")].concat();
        let output = decode(&list).unwrap();
        assert_eq!(output.reply, "12345678");
        assert_eq!(output.logs, ["\u{fffd}line"]);
        assert_eq!(output.pushes[0], Push { to: [7; 16], payload: Bytes::from_static(b"pushed") });
        assert_eq!(output.pushes[1], Push { to: [8; 16], payload: Bytes::new() });
        assert_eq!(decode(&[]).unwrap(), Output::default());
    }

    #[test]
    fn a_list_cut_anywhere_but_between_records_is_refused() {
        let list = [record(0, 0, b"abc"), record(1, 1, b"defgh")].concat();
        for cut in 1..list.len() {
            assert_eq!(decode(&list[..cut]).is_ok(), cut == 32, "cut at {cut}");
        }
    }

    #[test]
    fn a_second_reply_and_an_unknown_tag_are_refused() {
        assert!(refusal(&[record(0, 0, b""), record(0, 0, b"")].concat()).contains("more than one reply"));
        assert!(refusal(&record(3, 0, b"")).contains("unknown tag 3"));
    }

    #[test]
    fn a_length_near_the_end_of_numbers_is_refused() {
        for len in [25u32, u32::MAX, u32::MAX - 7, 1 << 31] {
            let mut list = record(0, 0, b"abc");
            list[4..8].copy_from_slice(&len.to_le_bytes());
            assert!(refusal(&list).contains("longer than the list"));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(list: Vec<u8>) {
            let _ = decode(&list);
        }

        #[test]
        fn any_records_are_read_back(payloads: Vec<Vec<u8>>) {
            let list: Vec<u8> = payloads.iter().flat_map(|payload| record(1, 9, payload)).collect();
            let output = decode(&list).unwrap();
            let read: Vec<&[u8]> = output.pushes.iter().map(|push| &push.payload[..]).collect();
            prop_assert_eq!(read, payloads);
        }
    }
}
