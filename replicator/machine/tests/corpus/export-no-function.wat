;; expect: refused "the export \22rsm_init\22 must be a function"
(module {{abi}} (global (export "rsm_init") i32 (i32.const 0)))
