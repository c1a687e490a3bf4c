;; One group of locals says that there are 50,000 in 4 bytes.
;; expect: refused "locals in a function, at most 5000 are taken"
(module {{abi}} (func (local {{50000 i64 }})))
