;; expect: refused ""
(module (memory 1) {{abi}})
