#!/usr/bin/env bash
# `make faults`: the tests that need root and some of the kernel's tools, or minutes. Says what it can't run here, and why. The programs are built already.
set -euo pipefail
cd "$(dirname "$0")/.."

try_mount() {
  local dir
  dir=$(mktemp -d)
  mount -t tmpfs -o size=64k tmpfs "$dir" && umount "$dir"
  rmdir "$dir"
}

# What a kind of fault lacks here, in a sentence; nothing if it can be tested.
missing() {
  if [ "$1" != transfers ] && [ "$(id -u)" != 0 ]; then
    echo "it changes the kernel's packet filter or mounts file systems, which needs root"
    return
  fi
  local told tool
  case $1 in
    cuts)
      if ! command -v nft >/dev/null; then echo "nft is missing; it comes with the package nftables"
      elif ! told=$(nft list tables 2>&1); then echo "this kernel refuses nft: $told"; fi ;;
    power | disks)
      if ! (exec 3<>/dev/fuse) 2>/dev/null; then
        echo "/dev/fuse can't be opened; the kernel has no FUSE, or this container isn't given it"
      elif ! told=$(try_mount 2>&1); then
        echo "this container may not mount file systems: $told"
      elif [ "$1" = disks ]; then
        for tool in mkfs.ext4 e2fsck losetup; do
          command -v "$tool" >/dev/null || { echo "$tool is missing; it comes with e2fsprogs or util-linux"; return; }
        done
        told=$(losetup -f 2>&1) || echo "this kernel gives no loop device: $told"
      fi ;;
    transfers) ;;
    *) echo "there is no such fault: choose of cuts, power, disks and transfers" ;;
  esac
}

run() { # package, test file
  ${CARGO:-cargo} test --locked --release -p "$1" --test "$2" -- --ignored --nocapture --test-threads 1 ${TEST:+"$TEST"}
}

failed=()
for kind in "$@"; do
  why=$(missing "$kind")
  if [ -n "$why" ]; then
    echo "SKIPPED make faults FAULTS=$kind, NOTHING WAS TESTED: $why"
    continue
  fi
  began=$SECONDS
  case $kind in
    cuts) run replicator-tests cuts ;;
    power) run forgetful mounted && run replicator-tests power ;;
    disks) run replicator-tests disks ;;
    transfers)
      # At every byte: `make test` takes every seventh one.
      CUT_EVERY=1 ${CARGO:-cargo} test --locked --release -p replicator --lib -- --nocapture transfer_cut && run replicator-tests transfer ;;
  esac || failed+=("$kind")
  echo "$kind: $((SECONDS - began)) s"
done
[ ${#failed[@]} = 0 ] || { echo "FAILED: ${failed[*]}"; exit 1; }
