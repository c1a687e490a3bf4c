;; expect: refused "imports \22env\22 \22memory\22"
(module (import "env" "memory" (memory 1)) {{abi}})
