//! The parser of output lists, beside another one that was written from docs/guest-abi.md in the plainest way.

use replicator_machine::{TrapKind, trial};

use crate::{Target, random::Random};

#[derive(Default)]
pub(crate) struct Lists {
    right: u64,
    wrong: u64,
}

type List = (Vec<u8>, Vec<([u8; 16], Vec<u8>)>, Vec<String>);

impl Target for Lists {
    const NAME: &'static str = "lists";
    const CASES: u64 = 50_000;

    fn new() -> Self {
        Self::default()
    }

    fn make(&self, random: &mut Random) -> Vec<u8> {
        let mut list = Vec::new();
        for _ in 0..random.below(5) {
            let tag = if random.below(8) == 0 { random.edgy() } else { random.below(3) as u32 };
            let payload = random.below(40);
            let len = if random.below(8) == 0 { random.edgy() } else { payload as u32 };
            list.extend(tag.to_le_bytes());
            list.extend(len.to_le_bytes());
            list.extend(random.bytes(16 + payload));
            if random.below(8) != 0 {
                list.resize(list.len().next_multiple_of(8), 0);
            }
        }
        if random.below(4) == 0 {
            random.damage(&mut list);
        }
        list
    }

    fn judge(&mut self, list: &[u8]) -> Result<(), String> {
        let parsed = trial::parse_list(list);
        match (parsed, plainly(list)) {
            (Ok((reply, pushes, logs)), Some(expected)) => {
                self.right += 1;
                let pushes = pushes.into_iter().map(|push| (push.to, push.payload.to_vec())).collect();
                let parsed: List = (reply.to_vec(), pushes, logs);
                if parsed == expected { Ok(()) } else { Err(format!("{parsed:?}, expected {expected:?}")) }
            }
            (Err(trap), None) if trap.kind == TrapKind::MalformedOutput && !trap.message.is_empty() => {
                self.wrong += 1;
                Ok(())
            }
            (parsed, expected) => Err(format!("{parsed:?}, expected {expected:?}")),
        }
    }

    fn summary(&self) -> String {
        format!("{} right, {} malformed", self.right, self.wrong)
    }
}

/// What a list says, or nothing if it is none.
fn plainly(list: &[u8]) -> Option<List> {
    let (mut reply, mut pushes, mut logs) = (None, Vec::new(), Vec::new());
    let mut at = 0u64;
    let end = list.len() as u64;
    while at < end {
        if at + 24 > end {
            return None;
        }
        let record = &list[at as usize..];
        let word = |place: usize| u32::from_le_bytes(record[place..place + 4].try_into().expect("four bytes"));
        let (tag, len) = (word(0), u64::from(word(4)));
        let padded = len.div_ceil(8) * 8;
        if at + 24 + padded > end {
            return None;
        }
        let payload = record[24..24 + len as usize].to_vec();
        match tag {
            0 if reply.is_some() => return None,
            0 => reply = Some(payload),
            1 => pushes.push((record[8..24].try_into().expect("16 bytes"), payload)),
            2 => logs.push(String::from_utf8_lossy(&payload).into_owned()),
            _ => return None,
        }
        at += 24 + padded;
    }
    Some((reply.unwrap_or_default(), pushes, logs))
}
