//! The panic buffer: why the guest trapped or refused, where the host finds it. Fixed, so a panic needs no memory.

use std::fmt::{self, Write};

const TEXT_BYTES_MAX: usize = 1020;

/// `u32 len` and then `len` bytes of UTF-8, in 1,024 bytes.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Message {
    len: u32,
    text: [u8; TEXT_BYTES_MAX],
}

impl Message {
    pub(crate) const fn new() -> Self {
        Self { len: 0, text: [0; TEXT_BYTES_MAX] }
    }

    /// Replaces the text, and cuts what doesn't fit.
    pub(crate) fn set(&mut self, text: fmt::Arguments<'_>) {
        self.len = 0;
        // An error means that the rest was cut.
        let _ = self.write_fmt(text);
    }
}

impl Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let start = self.len as usize;
        let fits = text.floor_char_boundary(TEXT_BYTES_MAX - start);
        self.text[start..start + fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.len += fits as u32;
        if fits == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(message: &Message) -> &str {
        std::str::from_utf8(&message.text[..message.len as usize]).unwrap()
    }

    #[test]
    fn a_text_replaces_the_one_before() {
        let mut message = Message::new();
        message.set(format_args!("{}:{} long", "file.rs", 7));
        message.set(format_args!("short"));
        assert_eq!(text(&message), "short");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let mut message = Message::new();
        message.set(format_args!("{}{}{}", "x".repeat(1019), "é", "never"));
        assert_eq!(text(&message), "x".repeat(1019));
    }

    #[test]
    fn the_layout_is_that_of_the_abi() {
        assert_eq!(size_of::<Message>(), 1024);
        assert_eq!(std::mem::offset_of!(Message, text), 4);
    }
}
