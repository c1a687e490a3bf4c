;; expect: genesis refused "where 50064 bytes don't fit"
(module {{abi}} (func (export "rsm_input") (param i32) (result i32) (i32.const 131000)))
