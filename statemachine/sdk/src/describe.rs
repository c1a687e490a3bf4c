//! What a module says about itself, made by the compiler: so `rsm_describe` has no effect, and a bad name doesn't build.

use crate::StateMachine;

/// Room for the longest description: two names of 64 bytes, and 50 schemas.
const CAPACITY: usize = 1024;
const NAME_BYTES_MAX: usize = 64;

/// `app=NAME version=VERSION schema=N accepts_from=N,N`, and ` ticks=1` if the machine asks for ticks.
#[derive(Debug)]
pub struct Description {
    bytes: [u8; CAPACITY],
    len: usize,
}

impl Description {
    /// The text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    const fn text(mut self, text: &str) -> Self {
        let text = text.as_bytes();
        let mut i = 0;
        while i < text.len() {
            self.bytes[self.len] = text[i];
            self.len += 1;
            i += 1;
        }
        self
    }

    const fn number(mut self, number: u32) -> Self {
        if number >= 10 {
            self = self.number(number / 10);
        }
        self.bytes[self.len] = b'0' + (number % 10) as u8;
        self.len += 1;
        self
    }
}

/// Describes a machine. Meant for constants, where a broken rule is a compile error.
///
/// # Panics
/// If a constant of the machine breaks a rule of [`StateMachine`].
pub const fn describe<M: StateMachine>() -> Description {
    check_names(M::APP.as_bytes(), M::VERSION.as_bytes());
    let mut description = Description { bytes: [0; CAPACITY], len: 0 }
        .text("app=")
        .text(M::APP)
        .text(" version=")
        .text(M::VERSION)
        .text(" schema=")
        .number(M::SCHEMA)
        .text(" accepts_from=");
    let (mut i, mut own_is_told) = (0, false);
    while i < M::ACCEPTS_FROM.len() {
        let other = M::ACCEPTS_FROM[i];
        assert!(i == 0 || M::ACCEPTS_FROM[i - 1] < other, "ACCEPTS_FROM ascends");
        assert!(other != M::SCHEMA, "ACCEPTS_FROM names other schemas than SCHEMA");
        if i > 0 {
            description = description.text(",");
        }
        if !own_is_told && other > M::SCHEMA {
            description = description.number(M::SCHEMA).text(",");
            own_is_told = true;
        }
        description = description.number(other);
        i += 1;
    }
    if !own_is_told {
        description = if i > 0 { description.text(",") } else { description };
        description = description.number(M::SCHEMA);
    }
    if M::TICKS { description.text(" ticks=1") } else { description }
}

const fn check_names(app: &[u8], version: &[u8]) {
    assert!(!app.is_empty() && app.len() <= NAME_BYTES_MAX, "APP has 1 to 64 bytes");
    assert!(!version.is_empty() && version.len() <= NAME_BYTES_MAX, "VERSION has 1 to 64 bytes");
    let mut i = 0;
    while i < app.len() {
        assert!(matches!(app[i], b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'), "APP is of a-z 0-9 - _ .");
        i += 1;
    }
    i = 0;
    while i < version.len() {
        assert!(version[i].is_ascii_graphic(), "VERSION is of printable ASCII characters without spaces");
        i += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Context, Output};

    /// A machine that does nothing, with these constants.
    macro_rules! machine {
        ($name:ident: $version:literal, $schema:literal, $accepts_from:expr, $ticks:literal) => {
            struct $name;

            impl StateMachine for $name {
                const APP: &'static str = "full";
                const VERSION: &'static str = $version;
                const SCHEMA: u32 = $schema;
                const ACCEPTS_FROM: &'static [u32] = $accepts_from;
                const TICKS: bool = $ticks;

                fn init(_: &[u8]) -> Result<Self, String> {
                    Ok(Self)
                }
                fn apply(&mut self, _: &Context, _: &[u8], _: &mut Output) {}
                fn query(&self, _: &Context, _: &[u8], _: &mut Output) {}
                fn snapshot(&self) -> impl Iterator<Item = Vec<u8>> {
                    std::iter::empty()
                }
                fn restore(&mut self, _: u32, _: &[u8]) -> Result<(), String> {
                    Ok(())
                }
            }
        };
    }

    machine!(Full: "1.2.0-rc.1", 4_294_967_295, &[0, 10], true);
    machine!(Alone: "1", 7, &[], false);
    machine!(First: "1", 1, &[2, 3], false);
    machine!(Between: "2", 2, &[1, 3], false);
    machine!(Twice: "1", 1, &[1], false);

    fn text<M: StateMachine>() -> String {
        String::from_utf8(describe::<M>().as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn a_description_holds_every_constant() {
        static DESCRIPTION: Description = describe::<Full>();
        let expected = "app=full version=1.2.0-rc.1 schema=4294967295 accepts_from=0,10,4294967295 ticks=1";
        assert_eq!(std::str::from_utf8(DESCRIPTION.as_bytes()), Ok(expected));
    }

    #[test]
    fn own_schema_is_in_its_place_among_those_that_are_read() {
        for (told, expected) in [
            (text::<Alone>(), "schema=7 accepts_from=7"),
            (text::<First>(), "schema=1 accepts_from=1,2,3"),
            (text::<Between>(), "schema=2 accepts_from=1,2,3"),
        ] {
            assert!(told.ends_with(expected), "{told}");
        }
    }

    #[test]
    #[should_panic(expected = "other schemas than SCHEMA")]
    fn own_schema_named_again_is_refused() {
        text::<Twice>();
    }

    #[test]
    #[should_panic(expected = "APP is of")]
    fn a_name_with_a_space_is_refused() {
        check_names(b"my app", b"1");
    }

    #[test]
    #[should_panic(expected = "VERSION has 1 to 64 bytes")]
    fn an_empty_version_is_refused() {
        check_names(b"app", b"");
    }
}
