//! Wildcards: `*` stands for any characters, `?` for one.
//!
//! Only the last `*` is ever tried again: what an earlier one could do, the later one does too. So a match costs at most
//! the length of the pattern times that of the name, and no pattern makes it explode.

use crate::refusal::Refusal;

const PATTERN_BYTES_MAX: usize = 256;

/// A pattern to match names with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pattern<'a>(&'a str);

impl<'a> Pattern<'a> {
    /// Takes a pattern. An empty one stands for all names.
    pub(crate) fn new(text: &'a str) -> Result<Self, Refusal> {
        if text.len() > PATTERN_BYTES_MAX {
            return Err(Refusal::invalid("a pattern has at most 256 bytes"));
        }
        Ok(Self(if text.is_empty() { "*" } else { text }))
    }

    /// What every name that matches begins with.
    pub(crate) fn prefix(&self) -> &'a str {
        self.0.split(['*', '?']).next().unwrap_or_default()
    }

    /// Whether the whole name matches. Adds to `steps` what it cost.
    pub(crate) fn matches(&self, name: &str, steps: &mut usize) -> bool {
        let (mut pattern, mut rest) = (self.0.chars(), name.chars());
        // The pattern after the last star, and what it is tried on.
        let mut star = None;
        loop {
            *steps += 1;
            let (mut pattern_after, mut rest_after) = (pattern.clone(), rest.clone());
            match (pattern_after.next(), rest_after.next()) {
                (None, None) => return true,
                (Some('*'), _) => {
                    if pattern_after.as_str().is_empty() {
                        return true;
                    }
                    star = Some((pattern_after.clone(), rest.clone()));
                    pattern = pattern_after;
                }
                (Some(wanted), Some(got)) if wanted == '?' || wanted == got => {
                    (pattern, rest) = (pattern_after, rest_after);
                }
                // The name is too short, and the star would only leave less of it.
                (Some(_), None) => return false,
                _ => {
                    let Some((pattern_after_star, tried)) = &mut star else { return false };
                    // Let the last star stand for one character more. There is one: the name went at least as far.
                    tried.next();
                    (pattern, rest) = (pattern_after_star.clone(), tried.clone());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        Pattern::new(pattern).unwrap().matches(name, &mut 0)
    }

    /// The definition, with all its backtracking.
    fn naive(pattern: &[char], name: &[char]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            (['*', rest @ ..], _) => (0..=name.len()).any(|skip| naive(rest, &name[skip..])),
            (['?', rest @ ..], [_, name @ ..]) => naive(rest, name),
            ([wanted, rest @ ..], [got, name @ ..]) => wanted == got && naive(rest, name),
            _ => false,
        }
    }

    #[test]
    fn stars_and_question_marks_match_what_they_should() {
        for (pattern, name, expected) in [
            ("", "anything", true),
            ("*", "a", true),
            ("a", "a", true),
            ("a", "ab", false),
            ("?", "é", true),
            ("??", "é", false),
            ("a*", "a", true),
            ("*b*", "abc", true),
            ("a*c", "abcbc", true),
            ("a*c", "abcb", false),
            ("*ab?d", "ababxd", true),
            ("b?b", "bob", true),
            ("A", "a", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern:?} on {name:?}");
        }
    }

    #[test]
    fn the_worst_pattern_costs_no_more_than_the_product_of_the_lengths() {
        let pattern = "*a".repeat(128);
        let name = "a".repeat(63) + "b";
        let mut steps = 0;
        assert!(!Pattern::new(&pattern).unwrap().matches(&name, &mut steps));
        assert!(steps <= (pattern.len() + 1) * (name.len() + 1), "{steps} steps");
    }

    #[test]
    fn a_long_pattern_is_refused() {
        assert!(Pattern::new(&"x".repeat(257)).is_err());
    }

    #[test]
    fn the_prefix_ends_at_the_first_wildcard() {
        for (pattern, prefix) in [("", ""), ("bob", "bob"), ("bo?*", "bo"), ("*b", ""), ("é*", "é")] {
            assert_eq!(Pattern::new(pattern).unwrap().prefix(), prefix);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_match_is_that_of_the_definition(pattern in "[abé*?]{0,9}", name in "[abé]{0,9}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            let expected = pattern.is_empty() || naive(&chars(&pattern), &chars(&name));
            prop_assert_eq!(matches(&pattern, &name), expected);
        }
    }
}
