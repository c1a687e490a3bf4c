;; expect: refused "parameters of a type, at most 128 are taken"
(module {{abi}} (func (param {{1000 i64 }})))
