//! The state as records, in the two schemas. Little-endian; names are lines of text or have their length in front.
//!
//! | schema | record | layout | order |
//! |---|---|---|---|
//! | 1 | executions | `executions N` | the first |
//! | 1 | swaps | `swaps N` | the second; snapshots from before there were swaps have none |
//! | 1 | writer | `writer NAME DOUBLED` | by name |
//! | 1 | run | `run NAME FIRST COUNT` | after its writer, ascending |
//! | 2 | counts | `0; u64 executions; u64 swaps` | the first |
//! | 2 | writer | `1; u8 n; n bytes name; u64 doubled; u64 bytes; {u64 first; u64 count}…` | by name |

use std::iter;

use crate::{IS_V1, Journal, NAME_BYTES_MAX, Writer, number, words};

const COUNTS: u8 = 0;
const WRITER: u8 = 1;

impl Journal {
    /// The state in this version's schema.
    pub(crate) fn records(&self) -> Box<dyn Iterator<Item = Vec<u8>> + '_> {
        if IS_V1 { Box::new(self.lines().map(String::into_bytes)) } else { Box::new(self.bytes()) }
    }

    fn lines(&self) -> impl Iterator<Item = String> {
        let counts = [format!("executions {}", self.executions), format!("swaps {}", self.swaps)];
        let writers = self.writers.iter().flat_map(|(name, writer)| {
            let head = format!("writer {name} {}", writer.doubled);
            let runs = writer.runs.iter().map(move |(first, count)| format!("run {name} {first} {count}"));
            iter::once(head).chain(runs)
        });
        counts.into_iter().chain(writers)
    }

    fn bytes(&self) -> impl Iterator<Item = Vec<u8>> {
        let counts = [&[COUNTS][..], &self.executions.to_le_bytes(), &self.swaps.to_le_bytes()].concat();
        let writers = self.writers.iter().map(|(name, writer)| {
            let len = u8::try_from(name.len()).expect("a name has at most 64 bytes");
            let mut record = [&[WRITER, len], name.as_bytes()].concat();
            let runs = writer.runs.iter().flat_map(|(first, count)| [*first, *count]);
            let numbers = [writer.doubled, writer.bytes].into_iter().chain(runs);
            numbers.for_each(|number| record.extend(number.to_le_bytes()));
            record
        });
        iter::once(counts).chain(writers)
    }

    /// Takes the next record of schema 1.
    pub(crate) fn restore_line(&mut self, record: &[u8]) -> Result<(), String> {
        match words(record)?.as_slice() {
            ["executions", count] => self.executions = number(count)?,
            ["swaps", count] => self.swaps = number(count)?,
            ["writer", name, doubled] => {
                let writer = Writer { doubled: number(doubled)?, ..Writer::new(name) };
                self.writers.insert((*name).to_owned(), writer);
            }
            ["run", name, first, count] => {
                let (first, count) = (number(first)?, number(count)?);
                self.writers.get_mut(*name).ok_or("a run comes after its writer")?.add_run(first, count)?;
            }
            _ => return Err("a record of schema 1 is executions, swaps, a writer or a run".to_owned()),
        }
        Ok(())
    }

    /// Takes the next record of schema 2.
    pub(crate) fn restore_bytes(&mut self, record: &[u8]) -> Result<(), String> {
        match record {
            [COUNTS, counts @ ..] => {
                let [executions, swaps] = numbers(counts)?[..] else {
                    return Err("the counts are two numbers".to_owned());
                };
                (self.executions, self.swaps) = (executions, swaps);
                Ok(())
            }
            [WRITER, len, writer @ ..] => self.restore_writer((*len).into(), writer),
            _ => Err("a record of schema 2 is counts or a writer".to_owned()),
        }
    }

    fn restore_writer(&mut self, name_len: usize, writer: &[u8]) -> Result<(), String> {
        let (name, rest) = writer.split_at_checked(name_len).ok_or("a writer's name breaks off")?;
        let name = std::str::from_utf8(name).map_err(|_| "a name is UTF-8 text")?;
        if name.is_empty() || name.len() > NAME_BYTES_MAX || self.writers.contains_key(name) {
            return Err(format!("{name:?} is no writer's name, or comes twice"));
        }
        let numbers = numbers(rest)?;
        let [doubled, bytes, runs @ ..] = &numbers[..] else { return Err(format!("writer {name} breaks off")) };
        let mut writer = Writer { doubled: *doubled, bytes: *bytes, ..Writer::new(name) };
        for run in runs.chunks(2) {
            let [first, count] = run else { return Err(format!("a run of {name} breaks off")) };
            writer.add_run(*first, *count)?;
        }
        self.writers.insert(name.to_owned(), writer);
        Ok(())
    }
}

impl Writer {
    fn add_run(&mut self, first: u64, count: u64) -> Result<(), String> {
        let numbers = self.numbers.checked_add(count).ok_or("there are too many numbers")?;
        if count == 0 || first.checked_add(count).is_none() || self.runs.insert(first, count).is_some() {
            return Err(format!("a run of {count} from {first} can't be"));
        }
        self.numbers = numbers;
        Ok(())
    }
}

/// Little-endian numbers from end to end.
fn numbers(bytes: &[u8]) -> Result<Vec<u64>, String> {
    let (numbers, []) = bytes.as_chunks::<8>() else { return Err("a number breaks off".to_owned()) };
    Ok(numbers.iter().map(|number| u64::from_le_bytes(*number)).collect())
}
