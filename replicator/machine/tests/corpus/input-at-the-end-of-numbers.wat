;; expect: genesis refused "it answered address 4294967295"
(module {{abi}} (func (export "rsm_input") (param i32) (result i32) (i32.const -1)))
