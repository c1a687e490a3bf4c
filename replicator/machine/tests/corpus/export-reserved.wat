;; Would be taken for the mark that a call found no stack left.
;; expect: refused "which is reserved"
(module {{abi}} (global (export "__wizer_exhausted") (mut i32) (i32.const 1)))
