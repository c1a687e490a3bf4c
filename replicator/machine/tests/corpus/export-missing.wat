;; expect: refused "doesn't export \22rsm_restore\22"
(module {{abi}} (func (export "rsm_snapshot") (param i32) (result i64) (i64.const 0)))
