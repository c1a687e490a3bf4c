//! The forms in which `call` and `query` take requests: bytes that only the module understands.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    sync::mpsc,
};

use super::super::{Failure, init};

/// The longest request that is read. A cluster's own limit is lower.
const REQUEST_BYTES_MAX: u64 = 64 << 20;
/// Lines that are read ahead of those under way.
const LINES_AHEAD: usize = 64;

/// Where the request comes from.
#[derive(Debug, Args)]
pub(in crate::cli) struct RequestArgs {
    /// The request, as text
    #[arg(required_unless_present_any = ["file", "stdin"], conflicts_with_all = ["file", "stdin"])]
    request: Option<String>,
    /// Take the request from this file, byte by byte; - is standard input
    #[arg(long, value_name = "PATH", conflicts_with = "stdin")]
    file: Option<PathBuf>,
    /// Take each line of standard input as a request; results are printed in the same order
    #[arg(long)]
    pub(super) stdin: bool,
    /// With --stdin: how many requests may be under way at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536), requires = "stdin", conflicts_with_all = ["request", "file"])]
    pub(super) window: u32,
    /// Requests are written in hexadecimal digits; white space between them means nothing
    #[arg(long)]
    hex: bool,
}

/// What is to be sent.
pub(super) enum Input {
    One(Bytes),
    Lines(mpsc::Receiver<Line>),
}

/// A request and the number of its line, from 1. An error ends the input.
pub(super) type Line = anyhow::Result<(u64, Bytes)>;

impl RequestArgs {
    /// Reads the request, or begins to read lines.
    pub(super) fn open(&self) -> Result<Input, Failure> {
        if self.stdin {
            let (lines, input) = mpsc::channel(LINES_AHEAD);
            tokio::spawn(read_lines(lines, self.hex));
            return Ok(Input::Lines(input));
        }
        let bytes = match (&self.request, &self.file) {
            (Some(request), _) => request.as_bytes().to_vec(),
            (None, Some(path)) if path == Path::new("-") => standard_input()?,
            (None, Some(path)) => init::read(path)?,
            (None, None) => unreachable!("clap wants one of them"),
        };
        let bytes = if self.hex { unhex(&bytes).map_err(|error| Failure::Usage(error.to_string()))? } else { bytes };
        Ok(Input::One(bytes.into()))
    }
}

fn standard_input() -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::stdin().take(REQUEST_BYTES_MAX + 1).read_to_end(&mut bytes).context("can't read standard input")?;
    if bytes.len() as u64 > REQUEST_BYTES_MAX {
        bail!("standard input has more than {} MiB", REQUEST_BYTES_MAX >> 20);
    }
    Ok(bytes)
}

async fn read_lines(lines: mpsc::Sender<Line>, hex: bool) {
    let mut input = BufReader::new(tokio::io::stdin());
    for number in 1.. {
        let mut line = Vec::new();
        let read = (&mut input).take(REQUEST_BYTES_MAX + 1).read_until(b'\n', &mut line).await;
        let item = match read {
            Ok(0) => return,
            Ok(_) if line.len() as u64 > REQUEST_BYTES_MAX => {
                Err(anyhow!("line {number} is longer than {} MiB", REQUEST_BYTES_MAX >> 20))
            }
            Ok(_) => request(line, hex).map(|request| (number, request)).with_context(|| format!("line {number}")),
            Err(error) => Err(anyhow::Error::new(error).context("can't read standard input")),
        };
        let last = item.is_err();
        if lines.send(item).await.is_err() || last {
            return;
        }
    }
}

/// The request in a line: all but its end.
fn request(mut line: Vec<u8>, hex: bool) -> anyhow::Result<Bytes> {
    if hex {
        return Ok(unhex(&line)?.into());
    }
    if line.last() == Some(&b'\n') {
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
    }
    Ok(line.into())
}

/// The bytes that hexadecimal digits stand for.
pub(in crate::cli) fn unhex(text: &[u8]) -> anyhow::Result<Vec<u8>> {
    let digit = |byte: &u8| {
        let digit = char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        digit.with_context(|| format!("{:?} is not a hexadecimal digit", char::from(*byte)))
    };
    let digits =
        text.iter().filter(|byte| !byte.is_ascii_whitespace()).map(digit).collect::<anyhow::Result<Vec<u8>>>()?;
    if digits.len() % 2 == 1 {
        bail!("{} hexadecimal digits are not whole bytes; give two for each", digits.len());
    }
    Ok(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_are_bytes() {
        assert_eq!(unhex(b"00fF a1\n").unwrap(), [0, 0xff, 0xa1]);
        assert_eq!(unhex(b"").unwrap(), [0_u8; 0]);
        for bad in [&b"0"[..], b"0g", b"0x00", b"\xff\xff"] {
            assert!(unhex(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_line_is_a_request_without_its_end() {
        let request = |line: &[u8]| request(line.to_vec(), false).unwrap();
        assert_eq!(request(b"add x 1\n"), "add x 1");
        assert_eq!(request(b" \xff \r\n"), &b" \xff "[..]);
        assert_eq!(request(b"\n"), "");
        assert_eq!(request(b"last"), "last");
    }
}
