//! The macro that turns a machine into a module.

/// Makes a module of a [`StateMachine`](crate::StateMachine): generates the exports of guest ABI 1.
///
/// Once in a crate with `crate-type = ["cdylib", "rlib"]`, built for `wasm32-unknown-unknown`. On any other target it
/// only checks the machine's constants, so the crate links natively with others like it.
#[macro_export]
macro_rules! export {
    ($machine:ty) => {
        #[cfg(not(target_arch = "wasm32"))]
        const _: $crate::Description = $crate::describe::<$machine>();

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            static DESCRIPTION: $crate::Description = $crate::describe::<$machine>();
            // SAFETY: the functions below are the only ones to reach it, and they are the module's exports.
            static GUEST: $crate::abi::Cell<$machine> = unsafe { $crate::abi::Cell::new() };

            #[unsafe(no_mangle)]
            extern "C" fn rsm_abi_1() {}

            #[unsafe(no_mangle)]
            extern "C" fn rsm_describe() -> i64 {
                $crate::abi::region(DESCRIPTION.as_bytes())
            }

            #[unsafe(no_mangle)]
            extern "C" fn rsm_input(len: i32) -> i32 {
                GUEST.allocate_input(len)
            }

            #[unsafe(no_mangle)]
            extern "C" fn rsm_init(ptr: i32, len: i32) -> i32 {
                GUEST.init(ptr, len)
            }

            #[unsafe(no_mangle)]
            extern "C" fn rsm_apply(ptr: i32, len: i32) -> i64 {
                GUEST.apply(ptr, len)
            }

            #[unsafe(no_mangle)]
            extern "C" fn rsm_query(ptr: i32, len: i32) -> i64 {
                GUEST.query(ptr, len)
            }

            #[unsafe(no_mangle)]
            extern "C" fn rsm_snapshot(max: i32) -> i64 {
                GUEST.snapshot(max)
            }

            #[unsafe(no_mangle)]
            extern "C" fn rsm_restore(ptr: i32, len: i32, schema: i32, last: i32) -> i32 {
                GUEST.restore(ptr, len, schema, last)
            }

            #[unsafe(no_mangle)]
            extern "C" fn rsm_panic_buf() -> i32 {
                $crate::abi::panic_buf()
            }
        };
    };
}
