#!/usr/bin/env bash
# The floors of ARCHITECTURE.md, as Cargo sees them: what a crate may not depend on, it can't use.
set -euo pipefail
cd "$(dirname "$0")/.."
failed=0
without() { # crate, then the crates that it must not depend on, however far down
  local crate=$1 tree
  shift
  tree=$(cargo tree --locked -q -e normal --prefix none -p "$crate" | awk '{print $1}' | sort -u)
  for banned in "$@"; do
    if grep -qx "$banned" <<<"$tree"; then
      echo "floors: $crate depends on $banned; see ARCHITECTURE.md"
      failed=1
    fi
  done
}
without replicator-types tokio tonic prost wasmtime openraft
without replicator-chain tokio tonic prost wasmtime openraft replicator-machine replicator-storage
without replicator-machine tokio tonic prost openraft replicator-storage
without replicator-storage tokio tonic prost wasmtime openraft replicator-machine
without replicator-offline tokio tonic prost openraft replicator-chain replicator
without replicator-client wasmtime openraft replicator-machine replicator-storage
without chat wasmtime openraft replicator-machine replicator-storage replicator
without statemachine tokio tonic wasmtime prost sha2 # nor anything else: `module new` copies it
without chat-module tokio tonic wasmtime
# Within the node's crate, the floors are modules: a name that only one of them may use.
only() { # pattern, what it is, then the folders that may use it
  local pattern=$1 what=$2
  shift 2
  local allowed=("${@/#/:!replicator/src/}")
  if git grep -nE "$pattern" -- 'replicator/src/*.rs' "${allowed[@]}"; then
    echo "floors: $what may be named only in $*"
    failed=1
  fi
}
only '\bopenraft::' openraft replication/majority
only 'replicator_proto' 'the generated types' service transport cli
only '\b(std|tokio)::fs\b' 'files (but for the command line)' cli config.rs
[ "$failed" = 0 ] && echo "floors: hold"
exit "$failed"
