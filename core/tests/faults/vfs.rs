//! The VFS `faulty`: the system's own, with calls that fail on demand. Only the connection of one
//! engine is opened with it; which call fails, and how, is set for each thread. It knows nothing of
//! databases' contents.

#![allow(unsafe_code, reason = "a VFS is a table of C functions")]

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::Once;

use rusqlite::ffi;

use crate::counter::Counter;

/// The name to open databases with.
pub const NAME: &CStr = c"faulty";

/// What a call that fails says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Busy,
    IoErr,
    Full,
    NoMem,
    Corrupt,
}

/// Which calls fail: those of one kind are counted, from 0.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub kind: Kind,
    pub index: u64,
    /// The one at the index, or all from there on until the repair.
    pub for_ever: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Open,
    Read,
    /// A page of the database itself.
    Page,
    Write,
    Truncate,
    Sync,
    Size,
    Lock,
    Reserved,
    ShmMap,
    ShmLock,
    Delete,
    Access,
}

thread_local! {
    static KIND: Cell<Option<Kind>> = const { Cell::new(None) };
    /// Calls that can fail in this way.
    pub static CALLS: Counter = const { Counter::new() };
}

/// From now on calls are counted, and fail as told.
pub fn arm(fault: Fault) {
    KIND.set(Some(fault.kind));
    CALLS.with(|calls| calls.arm(fault.index, fault.for_ever));
}

/// The code with which a call is to fail now, if it is.
fn trip(op: Op) -> Option<c_int> {
    let code = code(KIND.get()?, op)?;
    CALLS.with(Counter::trips).then_some(code)
}

/// What a call says if it fails in this way; `None` if it cannot.
fn code(kind: Kind, op: Op) -> Option<c_int> {
    match (kind, op) {
        (Kind::Busy, Op::Lock | Op::ShmLock) => Some(ffi::SQLITE_BUSY),
        (Kind::Full, Op::Write | Op::Truncate | Op::Sync) => Some(ffi::SQLITE_FULL),
        // It is what SQLite says of a page. Of a journal it expects an IO error, and after anything
        // else it keeps what it could not roll back.
        (Kind::Corrupt, Op::Page) => Some(ffi::SQLITE_CORRUPT),
        (Kind::Busy | Kind::Full | Kind::Corrupt, _) => None,
        (Kind::NoMem, _) => Some(ffi::SQLITE_IOERR_NOMEM),
        (Kind::IoErr, op) => Some(match op {
            Op::Open => ffi::SQLITE_CANTOPEN,
            Op::Read | Op::Page => ffi::SQLITE_IOERR_READ,
            Op::Write => ffi::SQLITE_IOERR_WRITE,
            Op::Truncate => ffi::SQLITE_IOERR_TRUNCATE,
            Op::Sync => ffi::SQLITE_IOERR_FSYNC,
            Op::Size => ffi::SQLITE_IOERR_FSTAT,
            Op::Lock => ffi::SQLITE_IOERR_LOCK,
            Op::Reserved => ffi::SQLITE_IOERR_CHECKRESERVEDLOCK,
            Op::ShmMap => ffi::SQLITE_IOERR_SHMMAP,
            Op::ShmLock => ffi::SQLITE_IOERR_SHMLOCK,
            Op::Delete => ffi::SQLITE_IOERR_DELETE,
            Op::Access => ffi::SQLITE_IOERR_ACCESS,
        }),
    }
}

/// What SQLite keeps for an open file; the file of the system's VFS follows it.
#[repr(C)]
struct File {
    header: ffi::sqlite3_file,
    /// It is a database, and no journal.
    database: bool,
}

/// Makes the VFS known.
pub fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the VFS found stays registered; the one made here is leaked, because SQLite
        // keeps a pointer to it.
        let code = unsafe {
            let below = ffi::sqlite3_vfs_find(c"unix".as_ptr());
            assert!(!below.is_null(), "the system's VFS");
            let vfs = Box::new(ffi::sqlite3_vfs {
                iVersion: 2,
                szOsFile: size_of::<File>() as c_int + (*below).szOsFile,
                mxPathname: (*below).mxPathname,
                pNext: null_mut(),
                zName: NAME.as_ptr(),
                pAppData: below.cast(),
                xOpen: Some(open),
                xDelete: Some(delete),
                xAccess: Some(access),
                xFullPathname: Some(full_pathname),
                xDlOpen: None,
                xDlError: None,
                xDlSym: None,
                xDlClose: None,
                xRandomness: Some(randomness),
                xSleep: Some(sleep),
                xCurrentTime: Some(current_time),
                xGetLastError: Some(last_error),
                xSetSystemCall: None,
                xGetSystemCall: None,
                xNextSystemCall: None,
                xCurrentTimeInt64: Some(current_time_int64),
            });
            ffi::sqlite3_vfs_register(Box::into_raw(vfs), 0)
        };
        assert_eq!(code, ffi::SQLITE_OK);
    });
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

// What follows is called by SQLite only, with the pointers that it got from here.

fn below(vfs: *mut ffi::sqlite3_vfs) -> &'static mut ffi::sqlite3_vfs {
    // SAFETY: SQLite gives the VFS registered above, whose data is the system's VFS, which lives as
    // long as the process and has the methods of every VFS.
    unsafe { &mut *(*vfs).pAppData.cast() }
}

fn base(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: SQLite allocates `szOsFile` bytes for a file, which is the header and the file below.
    unsafe { file.cast::<File>().add(1).cast() }
}

/// Fails if the call is to fail now, else calls the method of the file below.
macro_rules! pass {
    ($file:expr, $op:expr, $method:ident $(, $argument:expr)*) => {{
        if let Some(code) = $op.and_then(trip) {
            return code;
        }
        let base = base($file);
        // SAFETY: SQLite calls a method of a file between a successful `open` and the `close` of
        // it, with arguments as it says, which are passed on; the system's files have each method.
        unsafe { (*(*base).pMethods).$method.unwrap()(base $(, $argument)*) }
    }};
}

/// The same for a function of the VFS below.
macro_rules! pass_vfs {
    ($vfs:expr, $op:expr, $function:ident $(, $argument:expr)*) => {{
        if let Some(code) = $op.and_then(trip) {
            return code;
        }
        let below = below($vfs);
        let function = below.$function.unwrap();
        // SAFETY: the arguments are those that SQLite gave for the same function.
        unsafe { function(below $(, $argument)*) }
    }};
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives memory for a file; without methods it is not closed.
    unsafe { (*file).pMethods = null() };
    let code = pass_vfs!(vfs, Some(Op::Open), xOpen, name, base(file), flags, out_flags);
    if code == ffi::SQLITE_OK {
        // SAFETY: as above; it begins with a file of this VFS.
        unsafe {
            let pages = ffi::SQLITE_OPEN_MAIN_DB | ffi::SQLITE_OPEN_WAL;
            (*file.cast::<File>()).database = flags & pages != 0;
            (*file).pMethods = &METHODS;
        }
    }
    code
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    pass!(file, None, xClose)
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    buffer: *mut c_void,
    length: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: as in `base`.
    let database = unsafe { (*file.cast::<File>()).database };
    let op = if database { Op::Page } else { Op::Read };
    pass!(file, Some(op), xRead, buffer, length, offset)
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    buffer: *const c_void,
    length: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    pass!(file, Some(Op::Write), xWrite, buffer, length, offset)
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: ffi::sqlite3_int64) -> c_int {
    pass!(file, Some(Op::Truncate), xTruncate, size)
}

/// No power is cut here, so nothing is forced to the disk.
unsafe extern "C" fn sync(_file: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    trip(Op::Sync).unwrap_or(ffi::SQLITE_OK)
}

unsafe extern "C" fn file_size(
    file: *mut ffi::sqlite3_file,
    size: *mut ffi::sqlite3_int64,
) -> c_int {
    pass!(file, Some(Op::Size), xFileSize, size)
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    pass!(file, Some(Op::Lock), xLock, level)
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    pass!(file, None, xUnlock, level)
}

unsafe extern "C" fn check_reserved_lock(
    file: *mut ffi::sqlite3_file,
    reserved: *mut c_int,
) -> c_int {
    pass!(file, Some(Op::Reserved), xCheckReservedLock, reserved)
}

unsafe extern "C" fn file_control(
    file: *mut ffi::sqlite3_file,
    operation: c_int,
    argument: *mut c_void,
) -> c_int {
    pass!(file, None, xFileControl, operation, argument)
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    pass!(file, None, xSectorSize)
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    pass!(file, None, xDeviceCharacteristics)
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    region: c_int,
    size: c_int,
    extend: c_int,
    memory: *mut *mut c_void,
) -> c_int {
    pass!(file, Some(Op::ShmMap), xShmMap, region, size, extend, memory)
}

/// To give a lock back never fails.
unsafe extern "C" fn shm_lock(
    file: *mut ffi::sqlite3_file,
    first: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    let takes = flags & ffi::SQLITE_SHM_UNLOCK == 0;
    pass!(file, takes.then_some(Op::ShmLock), xShmLock, first, count, flags)
}

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    let base = base(file);
    // SAFETY: as in `pass`.
    unsafe { (*(*base).pMethods).xShmBarrier.unwrap()(base) }
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    pass!(file, None, xShmUnmap, delete)
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    let _ = sync;
    pass_vfs!(vfs, Some(Op::Delete), xDelete, name, 0)
}

unsafe extern "C" fn access(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    flags: c_int,
    result: *mut c_int,
) -> c_int {
    pass_vfs!(vfs, Some(Op::Access), xAccess, name, flags, result)
}

unsafe extern "C" fn full_pathname(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    length: c_int,
    path: *mut c_char,
) -> c_int {
    pass_vfs!(vfs, None, xFullPathname, name, length, path)
}

unsafe extern "C" fn randomness(
    vfs: *mut ffi::sqlite3_vfs,
    length: c_int,
    bytes: *mut c_char,
) -> c_int {
    pass_vfs!(vfs, None, xRandomness, length, bytes)
}

/// Nobody else runs meanwhile, so waiting changes nothing.
unsafe extern "C" fn sleep(_vfs: *mut ffi::sqlite3_vfs, micros: c_int) -> c_int {
    micros
}

unsafe extern "C" fn current_time(vfs: *mut ffi::sqlite3_vfs, time: *mut f64) -> c_int {
    pass_vfs!(vfs, None, xCurrentTime, time)
}

unsafe extern "C" fn last_error(
    vfs: *mut ffi::sqlite3_vfs,
    length: c_int,
    text: *mut c_char,
) -> c_int {
    pass_vfs!(vfs, None, xGetLastError, length, text)
}

unsafe extern "C" fn current_time_int64(
    vfs: *mut ffi::sqlite3_vfs,
    time: *mut ffi::sqlite3_int64,
) -> c_int {
    pass_vfs!(vfs, None, xCurrentTimeInt64, time)
}
