//! Planted defects: each must be found, and nothing else.

use super::account::{Account, Ack, Pushed, Tally};
use crate::cli::journal::Runs;

fn ack(log_index: u64) -> Ack {
    Ack { log_index, execution: log_index - 9, digest: log_index }
}

fn pushed(log_index: u64, number: u64) -> Pushed {
    Pushed { cursor: (log_index, 0), number }
}

fn runs(doubled: u64, runs: &[(u64, u64)]) -> Runs {
    Runs { doubled, runs: runs.to_vec() }
}

/// One writer, whose three requests 0, 1, 2 were acknowledged at 10, 11, 12, and pushed.
fn account() -> Account {
    let mut account = Account::new(1);
    for number in 0..3 {
        assert_eq!(account.sent(0), number);
        account.acknowledged(0, number, ack(10 + number));
        account.pushed(0, pushed(10 + number, number));
    }
    account
}

/// What is found beside the three acknowledgements and pushes, which were all right.
fn found(account: Account, held: Runs) -> Tally {
    let (tally, told) = account.close(&[held]);
    assert_eq!(told.is_empty(), tally.is_clean(), "{told:?}");
    Tally { acknowledged: tally.acknowledged - 3, pushes: tally.pushes - 3, ..tally }
}

#[test]
fn a_good_run_is_clean() {
    let mut account = account();
    let read = account.read_begins(0);
    account.read_ends(read, "n1", 12, &runs(0, &[(0, 3)]));
    assert_eq!(found(account, runs(0, &[(0, 3)])), Tally { reads: 1, ..Tally::default() });
}

#[test]
fn a_lost_number_is_found() {
    // Its push had come, and now it isn't there: that push is a phantom.
    assert_eq!(found(account(), runs(0, &[(0, 2)])), Tally { lost: 1, phantom: 1, ..Tally::default() });
}

#[test]
fn a_number_executed_twice_is_found() {
    assert_eq!(found(account(), runs(1, &[(0, 3)])), Tally { doubled: 1, ..Tally::default() });
}

#[test]
fn a_number_answered_with_two_executions_is_found() {
    for other in [Ack { execution: 9, ..ack(12) }, Ack { digest: 9, ..ack(12) }, ack(13)] {
        let mut account = account();
        account.acknowledged(0, 2, ack(12)); // The same again is as it should be.
        account.acknowledged(0, 2, other);
        assert_eq!(found(account, runs(0, &[(0, 3)])), Tally { doubled: 1, ..Tally::default() });
    }
}

#[test]
fn one_log_index_for_two_numbers_is_found() {
    let mut account = account();
    account.sent(0);
    account.acknowledged(0, 3, ack(12));
    let tally = found(account, runs(0, &[(0, 4)]));
    // It is also out of order, and its push never came.
    assert_eq!(tally, Tally { acknowledged: 1, doubled: 1, disordered: 1, missing: 1, ..Tally::default() });
}

#[test]
fn an_answer_that_goes_backward_in_the_log_is_found() {
    let mut account = Account::new(1);
    for (number, log_index) in [(0, 11), (1, 10)] {
        account.sent(0);
        account.acknowledged(0, number, ack(log_index));
    }
    let (tally, _) = account.close(&[runs(0, &[(0, 2)])]);
    assert_eq!((tally.disordered, tally.missing), (1, 2));
}

#[test]
fn executions_out_of_the_order_of_the_log_are_found() {
    let mut account = Account::new(2);
    account.sent(0);
    account.acknowledged(0, 0, Ack { log_index: 10, execution: 2, digest: 0 });
    account.sent(1);
    account.acknowledged(1, 0, Ack { log_index: 11, execution: 1, digest: 0 });
    let (tally, _) = account.close(&[runs(0, &[(0, 1)]), runs(0, &[(0, 1)])]);
    assert_eq!((tally.disordered, tally.doubled), (1, 0));
}

#[test]
fn a_missing_push_is_found() {
    let mut account = account();
    account.sent(0);
    account.acknowledged(0, 3, ack(13));
    account.sent(0);
    account.acknowledged(0, 4, ack(14));
    account.pushed(0, pushed(14, 4));
    let held = runs(0, &[(0, 5)]);
    assert!(!account.all_heard(std::slice::from_ref(&held)));
    assert_eq!(found(account, held), Tally { acknowledged: 2, pushes: 1, missing: 1, ..Tally::default() });
}

#[test]
fn a_push_out_of_order_is_found() {
    let mut account = account();
    account.sent(0);
    account.pushed(0, pushed(9, 3));
    let tally = found(account, runs(0, &[(0, 4)]));
    assert_eq!(tally, Tally { unknown: 1, pushes: 1, disordered: 1, ..Tally::default() });
}

#[test]
fn a_push_that_was_acknowledged_elsewhere_is_found() {
    let mut account = account();
    account.sent(0);
    account.acknowledged(0, 3, ack(14));
    account.pushed(0, pushed(13, 3));
    let tally = found(account, runs(0, &[(0, 4)]));
    assert_eq!(tally, Tally { acknowledged: 1, pushes: 1, disordered: 1, ..Tally::default() });
}

#[test]
fn a_subscriber_that_goes_back_must_hear_the_same_again() {
    let mut good = account();
    assert_eq!(good.goes_back(0, 2), Some((10, 0)));
    good.pushed(0, pushed(11, 1));
    good.pushed(0, pushed(12, 2));
    assert_eq!(found(good, runs(0, &[(0, 3)])), Tally::default());

    let mut gap = account();
    assert_eq!(gap.goes_back(0, 9), None);
    gap.pushed(0, pushed(11, 1));
    assert_eq!(found(gap, runs(0, &[(0, 3)])), Tally { disordered: 1, ..Tally::default() });
}

#[test]
fn a_stale_read_is_found() {
    let mut account = account();
    let early = account.read_begins(0);
    account.sent(0);
    account.acknowledged(0, 3, ack(13));
    let late = account.read_begins(0);
    let old = runs(0, &[(0, 3)]);
    account.pushed(0, pushed(13, 3));
    account.read_ends(early, "n1", 12, &old); // It began before the last acknowledgement.
    account.read_ends(late, "n1", 12, &old);
    let tally = found(account, runs(0, &[(0, 4)]));
    assert_eq!(tally, Tally { acknowledged: 1, pushes: 1, reads: 2, stale: 1, ..Tally::default() });
}

#[test]
fn a_read_that_goes_back_behind_another_is_found() {
    let mut account = account();
    account.sent(0); // 3: executed, and seen, but never acknowledged.
    account.pushed(0, pushed(13, 3));
    let first = account.read_begins(0);
    account.read_ends(first, "n1", 13, &runs(0, &[(0, 4)]));
    let second = account.read_begins(0);
    account.read_ends(second, "n2", 12, &runs(0, &[(0, 3)]));
    let tally = found(account, runs(0, &[(0, 4)]));
    assert_eq!(tally, Tally { unknown: 1, pushes: 1, reads: 2, stale: 1, ..Tally::default() });
}

#[test]
fn a_number_that_nobody_sent_or_that_was_refused_is_a_phantom() {
    let mut account = account();
    account.sent(0);
    account.refused(0, 3);
    account.pushed(0, pushed(13, 3));
    account.pushed(0, pushed(14, 4));
    let tally = found(account, runs(0, &[(0, 5)]));
    assert_eq!(tally, Tally { pushes: 2, phantom: 2, ..Tally::default() });
}

#[test]
fn an_unknown_outcome_is_no_defect() {
    for held in [runs(0, &[(0, 3)]), runs(0, &[(0, 4)])] {
        let mut account = account();
        account.sent(0);
        if held.runs[0].1 == 4 {
            account.pushed(0, pushed(13, 3));
        }
        let tally = found(account, held);
        assert_eq!((tally.unknown, tally.is_clean()), (1, true));
    }
}

#[test]
fn a_number_pushed_twice_from_one_entry_is_found_unless_it_was_executed_twice() {
    for (doubled, pushed_again) in [(0, 1), (1, 0)] {
        let mut account = account();
        account.pushed(0, Pushed { cursor: (12, 1), number: 2 });
        let tally = found(account, runs(doubled, &[(0, 3)]));
        assert_eq!(tally, Tally { pushes: 1, doubled: doubled + pushed_again, ..Tally::default() });
    }
}

#[test]
fn a_session_that_expired_is_a_defect() {
    let mut account = account();
    account.sent(0);
    account.expired(0, 3);
    assert_eq!(found(account, runs(0, &[(0, 3)])), Tally { unknown: 1, expired: 1, ..Tally::default() });
}

#[test]
fn a_reader_that_was_never_answered_is_known() {
    let mut account = Account::new(1);
    account.reader("n1");
    account.reader("n2");
    account.reader_was_answered("n2");
    assert_eq!(account.answered_reads().into_iter().collect::<Vec<_>>(), [("n1".into(), 0), ("n2".into(), 1)]);
}
