;; expect: refused "not a module that can be run"
(module {{abi}} (func $ever (return_call $ever)))
