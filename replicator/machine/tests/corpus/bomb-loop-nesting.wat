;; 1,000 loops within each other, 4 KB of them, took more than a second to compile.
;; expect: refused "loops within loops, at most 100 are taken"
(module {{abi}} (func (param i32) {{1000 loop }} {{1000 (br_if 0 (local.get 0)) end }}))
