;; expect: refused "blocks within blocks, at most 1024 are taken"
(module {{abi}} (func {{2000 block }} {{2000 end }}))
