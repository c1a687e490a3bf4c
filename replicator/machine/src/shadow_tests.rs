//! The shadow against plain copies, with a reader anywhere.

use std::slice::from_ref;

use proptest::prelude::*;

use super::*;

const CHUNKS: usize = 6;

/// What a reader sees of it all.
fn read(mut frozen: FrozenMemory) -> Vec<u8> {
    let mut memory = vec![0; frozen.bytes()];
    let mut buffer = [0; CHUNK_BYTES];
    while let Some(number) = frozen.next(&mut buffer) {
        memory[number * CHUNK_BYTES..][..CHUNK_BYTES].copy_from_slice(&buffer);
    }
    memory
}

fn page(number: usize) -> Range<usize> {
    number * PAGE_BYTES..(number + 1) * PAGE_BYTES
}

#[derive(Debug, Clone)]
enum Step {
    /// Writes to pages, then the shadow takes them.
    Write {
        first: usize,
        pages: usize,
        byte: u8,
    },
    Grow,
    Freeze,
    Read,
    Drop,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..CHUNKS * PAGES, 1..40usize, 0..3u8).prop_map(|(first, pages, byte)| Step::Write { first, pages, byte }),
        1 => Just(Step::Grow),
        2 => Just(Step::Freeze),
        6 => Just(Step::Read),
        1 => Just(Step::Drop),
    ]
}

proptest! {
    #[test]
    fn a_reader_sees_the_moment_of_freezing(steps in prop::collection::vec(step(), 1..60)) {
        let (shadow, mut memory) = (Shadow::default(), vec![0; CHUNK_BYTES]);
        shadow.take(&memory, &[]);
        let mut frozen: Option<(FrozenMemory, Vec<u8>, Vec<u8>)> = None;
        let mut buffer = [0; CHUNK_BYTES];
        for step in steps {
            match step {
                Step::Write { first, pages, byte } => {
                    let end = (page(first).start + pages * PAGE_BYTES).min(memory.len());
                    let range = page(first).start.min(end)..end;
                    memory[range.clone()].fill(byte);
                    shadow.take(&memory, from_ref(&range));
                }
                Step::Grow => {
                    memory.resize((memory.len() + CHUNK_BYTES).min(CHUNKS * CHUNK_BYTES), 0);
                    shadow.take(&memory, &[]);
                }
                Step::Freeze => match shadow.freeze() {
                    Some(now) => {
                        prop_assert!(frozen.is_none(), "a second reader");
                        frozen = Some((now, memory.clone(), vec![0; memory.len()]));
                    }
                    None => prop_assert!(frozen.is_some()),
                },
                Step::Read => {
                    if let Some((reader, expected, seen)) = &mut frozen {
                        match reader.next(&mut buffer) {
                            Some(number) => seen[number * CHUNK_BYTES..][..CHUNK_BYTES].copy_from_slice(&buffer),
                            None => prop_assert!(seen == expected),
                        }
                    }
                }
                Step::Drop => frozen = None,
            }
        }
        if let Some((mut reader, expected, mut seen)) = frozen {
            while let Some(number) = reader.next(&mut buffer) {
                seen[number * CHUNK_BYTES..][..CHUNK_BYTES].copy_from_slice(&buffer);
            }
            prop_assert!(seen == expected);
        }
        let mut back = vec![9; memory.len()];
        let whole = 0..memory.len();
        shadow.put_back(&mut back, from_ref(&whole));
        prop_assert!(back == memory, "and the shadow is what it took");
    }
}

#[test]
fn only_what_the_reader_has_not_passed_is_set_aside() {
    let (shadow, mut memory) = (Shadow::default(), vec![1; 4 * CHUNK_BYTES]);
    let whole = 0..memory.len();
    shadow.take(&memory, from_ref(&whole));
    let mut frozen = shadow.freeze().unwrap();
    assert!(shadow.freeze().is_none() && shadow.is_frozen());
    let mut buffer = [0; CHUNK_BYTES];
    assert_eq!((frozen.next(&mut buffer), frozen.next(&mut buffer)), (Some(0), Some(1)));
    memory.fill(2);
    shadow.take(&memory, from_ref(&whole));
    shadow.take(&memory, from_ref(&whole));
    let aside = |shadow: &Shadow| {
        let chunks = shadow.shared.lock();
        chunks
            .frozen
            .as_ref()
            .map(|held| held.set_aside.iter().flatten().flat_map(|aside| aside.iter().flatten()).count())
    };
    assert_eq!(aside(&shadow), Some(2 * PAGES));
    assert_eq!(frozen.next(&mut buffer), Some(2));
    assert!(buffer.iter().all(|&byte| byte == 1));
    assert_eq!(aside(&shadow), Some(PAGES), "freed once it is passed");
    drop(frozen);
    assert_eq!(aside(&shadow), None);
    assert!(read(shadow.freeze().unwrap()) == memory);
}

#[test]
fn zeros_take_no_chunk() {
    let shadow = Shadow::default();
    let mut memory = vec![0; 4 * CHUNK_BYTES];
    memory[2 * CHUNK_BYTES + 70] = 1;
    shadow.take(&memory, &[0..CHUNK_BYTES, 2 * CHUNK_BYTES..3 * CHUNK_BYTES - PAGE_BYTES]);
    let there: Vec<bool> = shadow.shared.lock().chunks.iter().map(Option::is_some).collect();
    assert_eq!(there, [false, false, true, false]);
    assert!(read(shadow.freeze().unwrap()) == memory);
}

#[test]
fn zero_is_told_from_anything_else() {
    let mut bytes = vec![0; PAGE_BYTES];
    assert!(is_zero(&bytes));
    for at in [0, 63, 64, PAGE_BYTES - 1] {
        bytes[at] = 128;
        assert!(!is_zero(&bytes));
        bytes[at] = 0;
    }
}

#[test]
fn a_chunk_that_changes_while_the_reader_copies_it_stays_what_it_was_for_the_reader() {
    let (shadow, mut memory) = (Shadow::default(), vec![1; 2 * CHUNK_BYTES]);
    let whole = 0..memory.len();
    shadow.take(&memory, from_ref(&whole));
    let mut frozen = shadow.freeze().unwrap();
    // What `next` does, stopped in the middle.
    let Passed { number, chunk, aside } = frozen.pass().unwrap();
    memory.fill(2);
    shadow.take(&memory, from_ref(&whole));
    assert_eq!(number, 0);
    assert!(chunk.iter().all(|byte| *byte == 1) && aside.is_none());
    drop(chunk);
    let mut buffer = [0; CHUNK_BYTES];
    assert_eq!(frozen.next(&mut buffer), Some(1));
    assert!(buffer.iter().all(|byte| *byte == 1), "it was set aside");
    drop(frozen);
    assert!(read(shadow.freeze().unwrap()) == memory);
}
