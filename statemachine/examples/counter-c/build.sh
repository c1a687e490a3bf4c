#!/bin/sh
# Builds the counter in C: ./build.sh FILE.wasm. Needs clang (14 or later) with lld, or zig; says so and exits with 77 if neither is there.
set -eu
here=$(dirname "$0")
flags="-std=c11 -O2 -Wall -Wextra -Werror -nostdlib -fvisibility=hidden -mbulk-memory -Wl,--no-entry -Wl,--strip-all -Wl,-z,stack-size=65536"
if command -v clang >/dev/null && command -v wasm-ld >/dev/null && clang --print-targets | grep -q wasm32; then
  clang --target=wasm32-unknown-unknown $flags -Wl,--stack-first -o "$1" "$here/counter.c"
elif command -v zig >/dev/null; then
  zig cc -target wasm32-freestanding $flags -o "$1" "$here/counter.c"
else
  echo "neither clang with lld (apt-get install clang lld) nor zig is here to build wasm32 with" >&2
  exit 77
fi
