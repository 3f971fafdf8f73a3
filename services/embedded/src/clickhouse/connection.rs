//! Safe use of the engine: connections, queries, streamed inserts. Everything here blocks.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};

use super::error::{ClickHouseError, Exception};
use super::ffi::{Api, ConnectionPtr, Handle};

/// The running engine. It is never shut down by dropping: the process ends instead.
pub(super) struct Engine {
    api: Api,
    arguments: Vec<CString>,
}

impl Engine {
    /// Loads the library; nothing is opened yet. Leaked on purpose: the engine's threads live as long as the process.
    pub(super) fn load(library: &Path, data_dir: &Path) -> Result<&'static Self, ClickHouseError> {
        if !library.exists() {
            return Err(ClickHouseError::LibraryMissing(library.to_owned()));
        }
        let error = |source| ClickHouseError::DataDir { path: data_dir.to_owned(), source };
        std::fs::create_dir_all(data_dir).map_err(error)?;
        let path = std::path::absolute(data_dir).map_err(error)?;
        let path = format!("--path={}", path.display());
        let path = CString::new(path).map_err(|nul| error(std::io::Error::other(nul)))?;
        let api = Api::load(library).map_err(|source| ClickHouseError::Library { path: library.to_owned(), source })?;
        // SAFETY: takes a plain number, and is called before the first connection, as it must be. Signals stay ours.
        unsafe { (api.chdb_set_signal_handlers_enabled)(0) };
        Ok(Box::leak(Box::new(Self { api, arguments: vec![c"clickhouse".to_owned(), path] })))
    }

    /// The engine's own version.
    pub(super) fn version(&self) -> String {
        // SAFETY: returns a static string.
        unsafe { text((self.api.chdb_version)()) }.unwrap_or_default()
    }

    /// Opens the data folder (the first time) and a session on it: 0.2 ms on a running engine.
    pub(super) fn connect(&'static self) -> Result<Connection, Exception> {
        let mut arguments: Vec<*mut c_char> = self.arguments.iter().map(|a| a.as_ptr().cast_mut()).collect();
        let count = c_int::try_from(arguments.len()).unwrap_or(c_int::MAX);
        // SAFETY: argv holds `count` strings that end in NUL and live as long as the engine; it is only read.
        let pointer = unsafe { (self.api.chdb_connect)(count, arguments.as_mut_ptr()) };
        // SAFETY: a pointer that is not null points to a connection, which may be null.
        if pointer.is_null() || unsafe { (*pointer).is_null() } {
            return Err(Exception::from_engine("the engine gives no connection (its own words are on standard error)"));
        }
        Ok(Connection { engine: self, pointer })
    }

    /// Opens the data folder.
    pub(super) fn open(&'static self, data_dir: &Path) -> Result<Connection, ClickHouseError> {
        let error = |e: Exception| ClickHouseError::Open { path: PathBuf::from(data_dir), reason: e.text };
        let mut boot = self.connect().map_err(error)?;
        boot.query(b"SELECT 1", "Null", &[]).map_err(error)?;
        Ok(boot)
    }
}

/// One session: its settings, its `USE`, its temporary tables. Serial; many of them run in parallel.
pub(super) struct Connection {
    engine: &'static Engine,
    pointer: ConnectionPtr,
}

// SAFETY: the engine lets a connection be used from any thread, one at a time; `&mut self` sees to the latter.
unsafe impl Send for Connection {}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: the pointer came from chdb_connect and is closed once.
        unsafe { (self.engine.api.chdb_close_conn)(self.pointer) }
    }
}

/// A named value for `{name:Type}`.
pub(super) type Parameter = (String, String);

/// Pointers and lengths of parameters, as the engine takes them.
struct Parameters {
    names: Vec<*const c_char>,
    name_lengths: Vec<usize>,
    values: Vec<*const c_char>,
    value_lengths: Vec<usize>,
}

impl Parameters {
    fn of(parameters: &[Parameter]) -> Self {
        Self {
            names: parameters.iter().map(|(name, _)| name.as_ptr().cast()).collect(),
            name_lengths: parameters.iter().map(|(name, _)| name.len()).collect(),
            values: parameters.iter().map(|(_, value)| value.as_ptr().cast()).collect(),
            value_lengths: parameters.iter().map(|(_, value)| value.len()).collect(),
        }
    }
}

impl Connection {
    fn handle(&self) -> Handle {
        // SAFETY: checked in `connect` to be neither null nor pointing to null.
        unsafe { *self.pointer }
    }

    /// Runs a statement; the whole result is in memory.
    pub(super) fn query(&mut self, sql: &[u8], format: &str, of: &[Parameter]) -> Result<QueryResult, Exception> {
        let p = Parameters::of(of);
        // SAFETY: every pointer comes with its length and outlives the call.
        let handle = unsafe {
            (self.engine.api.chdb_query_with_params_n)(
                self.handle(),
                sql.as_ptr().cast(),
                sql.len(),
                format.as_ptr().cast(),
                format.len(),
                p.names.as_ptr(),
                p.name_lengths.as_ptr(),
                p.values.as_ptr(),
                p.value_lengths.as_ptr(),
                of.len(),
            )
        };
        QueryResult::wrap(self.engine, handle)
    }

    /// Starts a SELECT whose result comes in pieces, each of them a document of `format` by itself.
    pub(super) fn select(&mut self, sql: &[u8], format: &str, of: &[Parameter]) -> Result<Select<'_>, Exception> {
        let p = Parameters::of(of);
        // SAFETY: every pointer comes with its length and outlives the call.
        let handle = unsafe {
            (self.engine.api.chdb_stream_query_with_params_n)(
                self.handle(),
                sql.as_ptr().cast(),
                sql.len(),
                format.as_ptr().cast(),
                format.len(),
                p.names.as_ptr(),
                p.name_lengths.as_ptr(),
                p.values.as_ptr(),
                p.value_lengths.as_ptr(),
                of.len(),
            )
        };
        Ok(Select { stream: QueryResult::wrap(self.engine, handle)?, connection: self, ended: false })
    }

    /// Starts `INSERT INTO t (…)`, whose data follows in `format`.
    pub(super) fn insert(&mut self, sql: &str, format: &str) -> Result<Insert<'_>, Exception> {
        // SAFETY: both pointers come with their lengths and outlive the call.
        let handle = unsafe {
            (self.engine.api.chdb_stream_insert_n)(
                self.handle(),
                sql.as_ptr().cast(),
                sql.len(),
                format.as_ptr().cast(),
                format.len(),
            )
        };
        if handle.is_null() {
            return Err(Exception::from_engine("the engine opens no insert stream"));
        }
        let insert = Insert { connection: self, handle, ended: false };
        match insert.error() {
            Some(error) => Err(error),
            None => Ok(insert),
        }
    }
}

/// A result, owned by the engine; as bytes it needs no copy.
pub(super) struct QueryResult {
    engine: &'static Engine,
    handle: Handle,
}

// SAFETY: a finished result is not changed any more and belongs to no thread.
unsafe impl Send for QueryResult {}
// SAFETY: as above; it is only read.
unsafe impl Sync for QueryResult {}

impl Drop for QueryResult {
    fn drop(&mut self) {
        // SAFETY: the handle came from the engine and is destroyed once.
        unsafe { (self.engine.api.chdb_destroy_query_result)(self.handle) }
    }
}

impl AsRef<[u8]> for QueryResult {
    fn as_ref(&self) -> &[u8] {
        let api = &self.engine.api;
        // SAFETY: the handle is a result that lives as long as `self`.
        let (data, length) = unsafe { ((api.chdb_result_buffer)(self.handle), (api.chdb_result_length)(self.handle)) };
        if data.is_null() || length == 0 {
            return &[];
        }
        // SAFETY: the engine holds `length` bytes at `data` until the result is destroyed.
        unsafe { std::slice::from_raw_parts(data, length) }
    }
}

impl QueryResult {
    fn wrap(engine: &'static Engine, handle: Handle) -> Result<Self, Exception> {
        if handle.is_null() {
            return Err(Exception::from_engine("the engine returned no result"));
        }
        let result = Self { engine, handle };
        // SAFETY: the handle is a result; its error text, if any, lives as long as it does.
        match unsafe { text((engine.api.chdb_result_error)(handle)) } {
            Some(error) => Err(Exception::from_engine(error)),
            None => Ok(result),
        }
    }

    /// What ClickHouse puts into `X-ClickHouse-Summary`.
    pub(super) fn summary(&self) -> String {
        let (api, handle) = (&self.engine.api, self.handle);
        // SAFETY: the handle is a result; these only read counters of it.
        let (read_rows, read_bytes, written_rows, written_bytes, result_rows, elapsed) = unsafe {
            (
                (api.chdb_result_storage_rows_read)(handle),
                (api.chdb_result_storage_bytes_read)(handle),
                (api.chdb_result_rows_written)(handle),
                (api.chdb_result_bytes_written)(handle),
                (api.chdb_result_rows_read)(handle),
                (api.chdb_result_elapsed)(handle),
            )
        };
        let elapsed_ns = std::time::Duration::try_from_secs_f64(elapsed).map_or(0, |d| d.as_nanos());
        let count = |n: u64| n.to_string();
        serde_json::json!({
            "read_rows": count(read_rows), "read_bytes": count(read_bytes),
            "written_rows": count(written_rows), "written_bytes": count(written_bytes),
            "result_rows": count(result_rows), "elapsed_ns": elapsed_ns.to_string(),
        })
        .to_string()
    }
}

/// A SELECT under way. Dropped before its end, it is cancelled.
pub(super) struct Select<'a> {
    connection: &'a mut Connection,
    stream: QueryResult,
    ended: bool,
}

impl Select<'_> {
    /// The next piece; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<QueryResult>, Exception> {
        let engine = self.connection.engine;
        // SAFETY: both handles are alive and belong together.
        let handle = unsafe { (engine.api.chdb_stream_fetch_result)(self.connection.handle(), self.stream.handle) };
        let piece = QueryResult::wrap(engine, handle).inspect_err(|_| self.ended = true)?;
        self.ended = piece.as_ref().is_empty();
        Ok((!self.ended).then_some(piece))
    }
}

impl Drop for Select<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // SAFETY: both handles are alive and belong together; the stream is destroyed after this.
            unsafe {
                (self.connection.engine.api.chdb_stream_cancel_query)(self.connection.handle(), self.stream.handle);
            }
        }
    }
}

/// An INSERT under way. Dropped before [`Insert::finish`], it is cancelled and nothing of it is kept.
pub(super) struct Insert<'a> {
    connection: &'a mut Connection,
    handle: Handle,
    ended: bool,
}

impl Insert<'_> {
    fn error(&self) -> Option<Exception> {
        // SAFETY: the handle is an insert stream; its error text, if any, is copied at once.
        unsafe { text((self.connection.engine.api.chdb_stream_insert_error)(self.handle)) }.map(Exception::from_engine)
    }

    fn or_error(&self, what: &str) -> Exception {
        self.error().unwrap_or_else(|| Exception::from_engine(what))
    }

    /// Hands over more of the data.
    pub(super) fn append(&mut self, data: &[u8]) -> Result<(), Exception> {
        // SAFETY: the data comes with its length; the engine copies or parses it before it returns.
        let refused =
            unsafe { (self.connection.engine.api.chdb_stream_append)(self.handle, data.as_ptr().cast(), data.len()) };
        if refused == 0 { Ok(()) } else { Err(self.or_error("the engine took no more data")) }
    }

    /// Commits what was handed over.
    pub(super) fn finish(mut self) -> Result<QueryResult, Exception> {
        self.ended = true;
        // SAFETY: the stream is alive and is ended once.
        let handle = unsafe { (self.connection.engine.api.chdb_stream_done)(self.handle) };
        if handle.is_null() {
            return Err(self.or_error("the engine did not finish the insert"));
        }
        QueryResult::wrap(self.connection.engine, handle)
    }
}

impl Drop for Insert<'_> {
    fn drop(&mut self) {
        let api = &self.connection.engine.api;
        // SAFETY: the stream is alive; it is cancelled only if it was not ended, and destroyed once.
        unsafe {
            if !self.ended {
                (api.chdb_stream_cancel_insert)(self.handle);
            }
            (api.chdb_destroy_insert_stream)(self.handle);
        }
    }
}

/// Copies a string of the engine.
///
/// # Safety
/// `pointer` is null, or a string that ends in NUL and lives through the call.
unsafe fn text(pointer: *const c_char) -> Option<String> {
    // SAFETY: promised by the caller.
    (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
}
