//! Sets of numbers that come nearly in order.

use std::collections::BTreeMap;

/// A set of numbers, kept as unbroken runs: small, however many they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    /// From the first of each run to how many there are in it. *Invariant:* two runs neither overlap nor touch.
    runs: BTreeMap<u64, u64>,
}

impl Numbers {
    /// From runs in any order, which may overlap.
    pub(super) fn of_runs(runs: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut numbers = Self::default();
        for (first, count) in runs {
            numbers.insert_run(first, count);
        }
        numbers
    }

    pub(super) fn insert(&mut self, number: u64) {
        self.insert_run(number, 1);
    }

    pub(super) fn extend(&mut self, other: &Self) {
        for (&first, &count) in &other.runs {
            self.insert_run(first, count);
        }
    }

    fn insert_run(&mut self, first: u64, count: u64) {
        let (mut low, mut high) = (first, first + count);
        // Every run that overlaps or touches becomes part of this one.
        while let Some((&first, &count)) = self.runs.range(..=high).next_back() {
            if first + count < low {
                break;
            }
            self.runs.remove(&first);
            (low, high) = (low.min(first), high.max(first + count));
        }
        if high > low {
            self.runs.insert(low, high - low);
        }
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        self.runs.range(..=number).next_back().is_some_and(|(first, count)| number - first < *count)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u64> {
        self.runs.iter().flat_map(|(first, count)| *first..first + count)
    }

    /// The first number that is here and not there.
    pub(super) fn first_not_in(&self, other: &Self) -> Option<u64> {
        self.runs.iter().find_map(|(&first, &count)| {
            let covered = other.runs.range(..=first).next_back().map_or(first, |(from, len)| first.max(from + len));
            (covered < first + count).then_some(covered)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_touch_are_joined() {
        let mut numbers = Numbers::of_runs([(0, 3), (5, 2), (2, 2)]);
        assert_eq!(numbers.runs, BTreeMap::from([(0, 4), (5, 2)]));
        numbers.insert(4);
        assert_eq!(numbers.runs, BTreeMap::from([(0, 7)]));
        numbers.insert(3);
        numbers.extend(&Numbers::of_runs([(9, 0), (8, 1)]));
        assert_eq!((numbers.contains(6), numbers.contains(7)), (true, false));
        assert_eq!(numbers.iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 8]);
    }

    #[test]
    fn what_is_missing_elsewhere_is_found() {
        let numbers = Numbers::of_runs([(0, 3), (5, 3)]);
        assert_eq!(numbers.first_not_in(&Numbers::of_runs([(0, 9)])), None);
        assert_eq!(numbers.first_not_in(&Numbers::of_runs([(0, 7)])), Some(7));
        assert_eq!(numbers.first_not_in(&Numbers::of_runs([(1, 7)])), Some(0));
        assert_eq!(numbers.first_not_in(&Numbers::of_runs([(0, 4), (6, 2)])), Some(5));
        assert_eq!(numbers.first_not_in(&Numbers::default()), Some(0));
        assert_eq!(Numbers::default().first_not_in(&numbers), None);
    }
}
