;; expect: refused "targets of a br_table, at most 8192 are taken"
(module {{abi}} (func (block (br_table {{20000 0 }} (i32.const 0)))))
