;; expect: refused "the export \22rsm_query\22 must be a function"
(module {{abi}} (func (export "rsm_query") (param i32 i64) (result i64) (i64.const 0)))
