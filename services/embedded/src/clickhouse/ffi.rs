//! The functions of libchdb.so that are used, found at run time: no header, no binding generator, no link step.

use std::ffi::{c_char, c_int, c_void};
use std::path::Path;

use libloading::Library;

/// `chdb_connection *`: points to a connection.
pub(super) type ConnectionPtr = *mut *mut c_void;
/// `chdb_connection`, `chdb_result *` or `chdb_insert_stream`.
pub(super) type Handle = *mut c_void;

macro_rules! functions {
    ($($name:ident : fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The loaded library's functions. The library is never unloaded: its threads run to the end of the process.
        pub(super) struct Api {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Api {
            /// Loads the library and finds every function.
            pub(super) fn load(path: &Path) -> Result<Self, libloading::Error> {
                // SAFETY: the library is the pinned one; loading it runs its initialisers, which take no input of ours.
                let library = Box::leak(Box::new(unsafe { Library::new(path)? }));
                Ok(Self {
                    $($name: {
                        let name = concat!(stringify!($name), "\0").as_bytes();
                        // SAFETY: the type is that of chdb.h of the pinned version.
                        let found = unsafe { library.get::<unsafe extern "C" fn($($argument),*) $(-> $result)?>(name)? };
                        *found
                    },)*
                })
            }
        }
    };
}

functions! {
    chdb_version: fn() -> *const c_char;
    chdb_set_signal_handlers_enabled: fn(c_int);
    chdb_connect: fn(c_int, *mut *mut c_char) -> ConnectionPtr;
    chdb_close_conn: fn(ConnectionPtr);
    // Connection; SQL; format; names, their lengths, values, their lengths, how many.
    chdb_query_with_params_n: fn(
        Handle, *const c_char, usize, *const c_char, usize,
        *const *const c_char, *const usize, *const *const c_char, *const usize, usize
    ) -> Handle;
    chdb_stream_query_with_params_n: fn(
        Handle, *const c_char, usize, *const c_char, usize,
        *const *const c_char, *const usize, *const *const c_char, *const usize, usize
    ) -> Handle;
    chdb_stream_fetch_result: fn(Handle, Handle) -> Handle;
    chdb_stream_cancel_query: fn(Handle, Handle);
    chdb_result_buffer: fn(Handle) -> *const u8;
    chdb_result_length: fn(Handle) -> usize;
    chdb_result_error: fn(Handle) -> *const c_char;
    chdb_result_rows_read: fn(Handle) -> u64;
    chdb_result_storage_rows_read: fn(Handle) -> u64;
    chdb_result_storage_bytes_read: fn(Handle) -> u64;
    chdb_result_rows_written: fn(Handle) -> u64;
    chdb_result_bytes_written: fn(Handle) -> u64;
    chdb_result_elapsed: fn(Handle) -> f64;
    chdb_destroy_query_result: fn(Handle);
    chdb_stream_insert_n: fn(Handle, *const c_char, usize, *const c_char, usize) -> Handle;
    chdb_stream_append: fn(Handle, *const c_void, usize) -> c_int;
    chdb_stream_done: fn(Handle) -> Handle;
    chdb_stream_cancel_insert: fn(Handle);
    chdb_stream_insert_error: fn(Handle) -> *const c_char;
    chdb_destroy_insert_stream: fn(Handle);
}
