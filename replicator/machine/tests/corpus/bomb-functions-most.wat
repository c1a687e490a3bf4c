;; As many functions as may be, each called.
;; expect: apply "" replies "\00\00\00\00\00\00\00\00"
(module {{abi}}
  {{4900 (func (param i32) (result i32) (i32.add (local.get 0) (i32.const 1))) (func (drop (call 20 (i32.const 1)))) }})
