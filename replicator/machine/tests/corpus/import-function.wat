;; expect: refused "imports \22wasi_snapshot_preview1\22 \22clock_time_get\22"
(module (import "wasi_snapshot_preview1" "clock_time_get" (func (param i32 i64 i32) (result i32))) {{abi}})
