;; 10,000 calls of 2 bytes that pass 128 values and get 128: 12 s of compiling for 20 KB.
;; expect: refused "values in a function, at most 300000 are taken"
(module {{abi}}
  (func $f (param {{128 i64 }}) (result {{128 i64 }})
    {{128 (i64.const 1) }} {{10000 (call $f) }}))
