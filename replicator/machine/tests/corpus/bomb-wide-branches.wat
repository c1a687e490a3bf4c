;; 10,000 branches of 2 bytes that pass 128 values each.
;; expect: refused "values in a function, at most 300000 are taken"
(module {{abi}}
  (type $t (func (result {{128 i64 }})))
  (func (block (type $t) {{128 (i64.const 1) }} {{10000 (br_if 0 (i32.const 1)) }}) {{128 drop }}))
