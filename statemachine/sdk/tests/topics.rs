//! The ids of topics are those that everybody else computes.
#![forbid(unsafe_code)]

use sha2::{Digest, Sha256};
use statemachine::TopicId;

#[test]
fn names_of_every_length_have_the_ids_of_another_implementation() {
    // Past two blocks, so that the padding falls into every place.
    for len in 0..300 {
        let name: String = ('!'..='~').cycle().skip(len).take(len).collect();
        assert_eq!(TopicId::of_name(&name).0, Sha256::digest(&name)[..16], "of {len} bytes");
    }
}
