//! Planted faults: for the tests of votes, this replica tells its clients something else than its module answered; for those of images, it gives peers
//! images with another digest than its machine had, if REPLICATOR_WRONG_IMAGES is set.
//!
//! Only in builds with the feature `planted-wrong-answers`, which the program `wrong-replicator` of the tests has and `replicator` has not.

use std::{env, sync::LazyLock};

use bytes::Bytes;
use replicator_proto::replicator::v1::{ExecuteResponse, QueryResponse};
use replicator_storage::SnapshotManifest;

/// What is appended to answers; none: they stay right.
static WRONG: LazyLock<Option<String>> = LazyLock::new(|| env::var("REPLICATOR_WRONG_ANSWERS").ok());

/// What is told of an executed request instead.
pub(super) fn executed(told: ExecuteResponse) -> ExecuteResponse {
    let Some(text) = &*WRONG else { return told };
    ExecuteResponse { response: appended(&told.response, text), state_digest: !told.state_digest, ..told }
}

/// What is told of a query instead.
pub(super) fn answered(told: QueryResponse) -> QueryResponse {
    let Some(text) = &*WRONG else { return told };
    QueryResponse { response: appended(&told.response, text), ..told }
}

/// What is said of an image instead.
pub(super) fn given(manifest: &SnapshotManifest) -> SnapshotManifest {
    let mut given = manifest.clone();
    if env::var_os("REPLICATOR_WRONG_IMAGES").is_some() {
        given.info.digest ^= 1;
    }
    given
}

fn appended(response: &[u8], text: &str) -> Bytes {
    [response, text.as_bytes()].concat().into()
}
