//! The grammar of a module's description, as `docs/guest-abi.md` gives it.

/// Whether a value is what its word takes.
type Check = fn(&str) -> bool;

/// The words that every description begins with, in this order.
const REQUIRED: [(&str, Check); 4] =
    [("app", is_name), ("version", is_version), ("schema", is_number), ("accepts_from", is_numbers)];

/// Checks a description.
///
/// # Errors
/// Says which part is wrong, and what it should be.
pub(crate) fn check(text: &str) -> Result<(), String> {
    if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err("it must be printable ASCII".to_owned());
    }
    let mut words = text.split(' ');
    for (key, is_good) in REQUIRED {
        let word = words.next().unwrap_or_default();
        let value = word.strip_prefix(key).and_then(|rest| rest.strip_prefix('='));
        if !value.is_some_and(is_good) {
            let form = "app=NAME version=VERSION schema=NUMBER accepts_from=NUMBER,…";
            return Err(format!("{word:?} is no good {key}; the form is {form}"));
        }
    }
    let (schema, accepted) = (value(text, "schema"), value(text, "accepts_from"));
    let accepted: Vec<u32> = accepted.split(',').filter_map(|number| number.parse().ok()).collect();
    if !accepted.is_sorted_by(|a, b| a < b) || !accepted.iter().any(|number| number.to_string() == schema) {
        return Err(format!("accepts_from must be ascending, with the module's own schema {schema} among it"));
    }
    // Words that this version doesn't know are of later ones, and are skipped.
    match words.find(|word| word.split_once('=').is_none_or(|(key, value)| key.is_empty() || value.is_empty())) {
        Some(word) => Err(format!("{word:?} is no word key=value; words have one space between them")),
        None => Ok(()),
    }
}

/// The value of the word `key=value`; empty if there is none.
fn value<'a>(text: &'a str, key: &str) -> &'a str {
    let words = text.split(' ').filter_map(|word| word.split_once('='));
    words.into_iter().find(|(found, _)| *found == key).map_or("", |(_, value)| value)
}

fn is_name(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.');
    (1..=64).contains(&text.len()) && text.bytes().all(good)
}

fn is_version(text: &str) -> bool {
    (1..=64).contains(&text.len())
}

fn is_number(text: &str) -> bool {
    text.parse::<u32>().is_ok_and(|number| number.to_string() == text)
}

fn is_numbers(text: &str) -> bool {
    text.split(',').all(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_descriptions_pass() {
        for good in [
            "app=chat version=1.2.0 schema=3 accepts_from=2,3",
            "app=a version=~ schema=0 accepts_from=0 ticks=1",
            "app=a version=1 schema=4294967295 accepts_from=4294967295 later=word",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn bad_descriptions_are_refused() {
        for bad in [
            "",
            "app=CHAT version=1 schema=1 accepts_from=1",
            "opp=chat version=1 schema=1 accepts_from=1",
            "app= version=1 schema=1 accepts_from=1",
            "app=chat schema=1 version=1 accepts_from=1",
            "app=chat version=1 schema=01 accepts_from=1",
            "app=chat version=1 schema=+1 accepts_from=1",
            "app=chat version=1 schema=4294967296 accepts_from=1",
            "app=chat version=1 schema=1 accepts_from=",
            "app=chat version=1 schema=1 accepts_from=2",
            "app=chat version=1 schema=1 accepts_from=2,1",
            "app=chat version=1 schema=1 accepts_from=1,1",
            "app=chat version=1 schema=1 accepts_from=1 ",
            "app=chat version=1  schema=1 accepts_from=1",
            "app=chat version=1 schema=1 accepts_from=1 ticks",
            "app=chat version=1\tx schema=1 accepts_from=1",
            "app=chät version=1 schema=1 accepts_from=1",
        ] {
            assert!(check(bad).is_err(), "{bad:?} was taken");
        }
    }
}
