//! The VFS `wavesync`: locks and shared memory for files of a VFS that has neither.
//!
//! The pool of OPFS access handles, like every VFS for the browser, takes one connection for granted:
//! its locks do nothing and it has no shared memory, so a second connection would overwrite the
//! first one's pages. All connections to a file are in one Worker, however. Here the locks of a
//! file and its WAL index live in the module's memory, every connection shares one file of the VFS
//! below, and what that VFS does is passed through. It knows nothing of databases' contents.
//!
//! The rules of locks are SQLite's own: <https://sqlite.org/c3ref/c_lock_exclusive.html> and
//! <https://sqlite.org/walformat.html#locks>.

#![allow(unsafe_code, reason = "a VFS is a table of C functions")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{null, null_mut};
use std::rc::{Rc, Weak};

use rusqlite::ffi;

/// The name to open databases with.
pub const NAME: &CStr = c"wavesync";

/// Locks of the WAL index.
const SHM_LOCKS: usize = ffi::SQLITE_SHM_NLOCK as usize;

thread_local! {
    /// Open files by the VFS below and their name.
    static FILES: RefCell<BTreeMap<(usize, CString), Weak<Shared>>> =
        const { RefCell::new(BTreeMap::new()) };
}

/// What SQLite keeps for each connection that has a file open.
#[repr(C)]
struct File {
    header: ffi::sqlite3_file,
    /// A `Box<Open>`, or null before the file is open.
    open: *mut Open,
}

/// One connection's part in a file.
struct Open {
    shared: Rc<Shared>,
    level: Cell<c_int>,
    /// Locks of the WAL index that this connection shares, and those that it has to itself.
    reads: Cell<u8>,
    writes: Cell<u8>,
    mapped: Cell<bool>,
}

/// A file, once for all connections.
struct Shared {
    /// The file of the VFS below; its size is that VFS's business.
    base: *mut ffi::sqlite3_file,
    _memory: Box<[u64]>,
    locks: RefCell<Locks>,
}

#[derive(Default)]
struct Locks {
    /// Connections with any lock on the file.
    readers: u32,
    /// The highest lock of the one connection that has more than a shared one.
    writer: Option<c_int>,
    /// Connections that use the WAL index.
    mapped: u32,
    /// The WAL index. Its regions do not move while anybody uses it.
    regions: Vec<Box<[u64]>>,
    /// How many share a lock of the WAL index; -1 if one connection has it to itself.
    index: [i32; SHM_LOCKS],
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the file was opened by the VFS below and is closed once, by its last user.
        unsafe {
            if let Some(close) = (*self.base).pMethods.as_ref().and_then(|methods| methods.xClose) {
                close(self.base);
            }
        }
    }
}

/// Makes the VFS known, on top of another one that is known already; afterwards it does nothing if
/// it stands on that one. Databases that are open stay with the VFS that they were opened with.
///
/// # Errors
/// If there is no such VFS, or SQLite refuses.
pub fn register(base: &CStr) -> Result<(), String> {
    // SAFETY: `sqlite3_vfs_find` gives a VFS that stays registered or null; the table made here is
    // leaked, because SQLite keeps a pointer to it.
    unsafe {
        let below = ffi::sqlite3_vfs_find(base.as_ptr());
        if below.is_null() {
            return Err(format!("SQLite knows no VFS {base:?}"));
        }
        let known = ffi::sqlite3_vfs_find(NAME.as_ptr());
        if !known.is_null() && (*known).pAppData == below.cast() {
            return Ok(());
        }
        let vfs = Box::new(ffi::sqlite3_vfs {
            iVersion: 2,
            szOsFile: size_of::<File>() as c_int,
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
        match ffi::sqlite3_vfs_register(Box::into_raw(vfs), 0) {
            ffi::SQLITE_OK => Ok(()),
            code => Err(format!("SQLite does not take the VFS: code {code}")),
        }
    }
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
//
// SAFETY, for all of them: SQLite calls a method of a file between a successful `open` and the
// `close` of it, from the one thread there is, and gives buffers as long as it says.

unsafe fn of<'a>(file: *mut ffi::sqlite3_file) -> &'a Open {
    unsafe { &*(*file.cast::<File>()).open }
}

unsafe fn below<'a>(vfs: *mut ffi::sqlite3_vfs) -> &'a mut ffi::sqlite3_vfs {
    unsafe { &mut *(*vfs).pAppData.cast() }
}

/// Calls a method of the file below; a VFS without it answers with an error.
macro_rules! pass {
    ($file:expr, $method:ident $(, $argument:expr)*) => {
        unsafe {
            let base = of($file).shared.base;
            match (*base).pMethods.as_ref().and_then(|methods| methods.$method) {
                Some(method) => method(base $(, $argument)*),
                None => ffi::SQLITE_IOERR,
            }
        }
    };
}

/// Calls a function of the VFS below.
macro_rules! pass_vfs {
    ($vfs:expr, $function:ident $(, $argument:expr)*) => {
        unsafe {
            let base = below($vfs);
            match base.$function {
                Some(function) => function(base $(, $argument)*),
                None => ffi::SQLITE_ERROR,
            }
        }
    };
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    unsafe {
        (*file).pMethods = null();
        (*file.cast::<File>()).open = null_mut();
        let key =
            (!name.is_null()).then(|| ((*vfs).pAppData as usize, CStr::from_ptr(name).into()));
        let known =
            key.as_ref().and_then(|key| FILES.with_borrow(|files| files.get(key)?.upgrade()));
        let shared = match known {
            Some(shared) => {
                if !out_flags.is_null() {
                    *out_flags = flags;
                }
                shared
            }
            None => match open_below(vfs, name, flags, out_flags) {
                Ok(shared) => Rc::new(shared),
                Err(code) => return code,
            },
        };
        if let Some(key) = key {
            FILES.with_borrow_mut(|files| {
                files.retain(|_, file| file.strong_count() > 0);
                files.insert(key, Rc::downgrade(&shared));
            });
        }
        let (level, reads, writes) = (Cell::new(0), Cell::new(0), Cell::new(0));
        let open = Open { shared, level, reads, writes, mapped: Cell::new(false) };
        (*file.cast::<File>()).open = Box::into_raw(Box::new(open));
        (*file).pMethods = &METHODS;
    }
    ffi::SQLITE_OK
}

unsafe fn open_below(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    flags: c_int,
    out_flags: *mut c_int,
) -> Result<Shared, c_int> {
    unsafe {
        let vfs = below(vfs);
        let words = (vfs.szOsFile as usize).div_ceil(size_of::<u64>());
        let mut memory = vec![0u64; words].into_boxed_slice();
        let base: *mut ffi::sqlite3_file = memory.as_mut_ptr().cast();
        let shared = Shared { base, _memory: memory, locks: RefCell::default() };
        let Some(open) = vfs.xOpen else { return Err(ffi::SQLITE_CANTOPEN) };
        match open(vfs, name, base, flags, out_flags) {
            ffi::SQLITE_OK => Ok(shared),
            // Dropping it closes what a VFS has half opened.
            code => Err(code),
        }
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    unsafe {
        unlock(file, ffi::SQLITE_LOCK_NONE);
        shm_unmap(file, 0);
        drop(Box::from_raw((*file.cast::<File>()).open));
        (*file.cast::<File>()).open = null_mut();
        (*file).pMethods = null();
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, wanted: c_int) -> c_int {
    let open = unsafe { of(file) };
    let mut locks = open.shared.locks.borrow_mut();
    let level = open.level.get();
    if level >= wanted {
        return ffi::SQLITE_OK;
    }
    let own_writer = level > ffi::SQLITE_LOCK_SHARED;
    match wanted {
        ffi::SQLITE_LOCK_SHARED => {
            if locks.writer.is_some_and(|level| level >= ffi::SQLITE_LOCK_PENDING) {
                return ffi::SQLITE_BUSY;
            }
            locks.readers += 1;
        }
        _ if locks.writer.is_some() && !own_writer => return ffi::SQLITE_BUSY,
        ffi::SQLITE_LOCK_EXCLUSIVE if locks.readers > 1 => {
            // Nobody else may begin to read; those who do may end.
            locks.writer = Some(ffi::SQLITE_LOCK_PENDING);
            open.level.set(ffi::SQLITE_LOCK_PENDING);
            return ffi::SQLITE_BUSY;
        }
        _ => locks.writer = Some(wanted),
    }
    open.level.set(wanted);
    ffi::SQLITE_OK
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, wanted: c_int) -> c_int {
    let open = unsafe { of(file) };
    let mut locks = open.shared.locks.borrow_mut();
    let level = open.level.get();
    if level > ffi::SQLITE_LOCK_SHARED && wanted <= ffi::SQLITE_LOCK_SHARED {
        locks.writer = None;
    }
    if level >= ffi::SQLITE_LOCK_SHARED && wanted == ffi::SQLITE_LOCK_NONE {
        locks.readers -= 1;
    }
    open.level.set(level.min(wanted));
    ffi::SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(
    file: *mut ffi::sqlite3_file,
    reserved: *mut c_int,
) -> c_int {
    unsafe { *reserved = c_int::from(of(file).shared.locks.borrow().writer.is_some()) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    region: c_int,
    size: c_int,
    extend: c_int,
    memory: *mut *mut c_void,
) -> c_int {
    let open = unsafe { of(file) };
    let mut locks = open.shared.locks.borrow_mut();
    if !open.mapped.replace(true) {
        locks.mapped += 1;
    }
    let region = region as usize;
    while extend != 0 && locks.regions.len() <= region {
        locks.regions.push(vec![0u64; (size as usize).div_ceil(size_of::<u64>())].into());
    }
    let found = locks.regions.get_mut(region).map_or(null_mut(), |found| found.as_mut_ptr());
    unsafe { *memory = found.cast() };
    ffi::SQLITE_OK
}

unsafe extern "C" fn shm_lock(
    file: *mut ffi::sqlite3_file,
    first: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    let open = unsafe { of(file) };
    let mut locks = open.shared.locks.borrow_mut();
    let range = first as usize..(first + count) as usize;
    let mask = range.clone().fold(0u8, |mask, slot| mask | 1 << slot);
    if flags & ffi::SQLITE_SHM_UNLOCK != 0 {
        for slot in range {
            if open.writes.get() & 1 << slot != 0 {
                locks.index[slot] = 0;
            } else if open.reads.get() & 1 << slot != 0 {
                locks.index[slot] -= 1;
            }
        }
        open.reads.set(open.reads.get() & !mask);
        open.writes.set(open.writes.get() & !mask);
        return ffi::SQLITE_OK;
    }
    if flags & ffi::SQLITE_SHM_SHARED != 0 {
        if open.reads.get() & mask == mask {
            return ffi::SQLITE_OK;
        }
        if locks.index[range.clone()].iter().any(|users| *users < 0) {
            return ffi::SQLITE_BUSY;
        }
        range.for_each(|slot| locks.index[slot] += 1);
        open.reads.set(open.reads.get() | mask);
        return ffi::SQLITE_OK;
    }
    if open.writes.get() & mask == mask {
        return ffi::SQLITE_OK;
    }
    if locks.index[range.clone()].iter().any(|users| *users != 0) {
        return ffi::SQLITE_BUSY;
    }
    range.for_each(|slot| locks.index[slot] = -1);
    open.writes.set(open.writes.get() | mask);
    ffi::SQLITE_OK
}

/// One thread sees its own writes.
unsafe extern "C" fn shm_barrier(_file: *mut ffi::sqlite3_file) {}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, _delete: c_int) -> c_int {
    let every = SHM_LOCKS as c_int;
    unsafe { shm_lock(file, 0, every, ffi::SQLITE_SHM_UNLOCK) };
    let open = unsafe { of(file) };
    if open.mapped.replace(false) {
        let mut locks = open.shared.locks.borrow_mut();
        locks.mapped -= 1;
        if locks.mapped == 0 {
            // Whoever comes next makes the index anew from the WAL.
            locks.regions.clear();
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    buffer: *mut c_void,
    length: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    pass!(file, xRead, buffer, length, offset)
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    buffer: *const c_void,
    length: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    pass!(file, xWrite, buffer, length, offset)
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: ffi::sqlite3_int64) -> c_int {
    pass!(file, xTruncate, size)
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    pass!(file, xSync, flags)
}

unsafe extern "C" fn file_size(
    file: *mut ffi::sqlite3_file,
    size: *mut ffi::sqlite3_int64,
) -> c_int {
    pass!(file, xFileSize, size)
}

unsafe extern "C" fn file_control(
    file: *mut ffi::sqlite3_file,
    operation: c_int,
    argument: *mut c_void,
) -> c_int {
    pass!(file, xFileControl, operation, argument)
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    pass!(file, xSectorSize)
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    pass!(file, xDeviceCharacteristics)
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    pass_vfs!(vfs, xDelete, name, sync)
}

unsafe extern "C" fn access(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    flags: c_int,
    result: *mut c_int,
) -> c_int {
    pass_vfs!(vfs, xAccess, name, flags, result)
}

unsafe extern "C" fn full_pathname(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    length: c_int,
    out: *mut c_char,
) -> c_int {
    pass_vfs!(vfs, xFullPathname, name, length, out)
}

unsafe extern "C" fn randomness(
    vfs: *mut ffi::sqlite3_vfs,
    length: c_int,
    out: *mut c_char,
) -> c_int {
    pass_vfs!(vfs, xRandomness, length, out)
}

unsafe extern "C" fn sleep(vfs: *mut ffi::sqlite3_vfs, microseconds: c_int) -> c_int {
    pass_vfs!(vfs, xSleep, microseconds)
}

unsafe extern "C" fn current_time(vfs: *mut ffi::sqlite3_vfs, out: *mut f64) -> c_int {
    pass_vfs!(vfs, xCurrentTime, out)
}

unsafe extern "C" fn current_time_int64(
    vfs: *mut ffi::sqlite3_vfs,
    out: *mut ffi::sqlite3_int64,
) -> c_int {
    pass_vfs!(vfs, xCurrentTimeInt64, out)
}

unsafe extern "C" fn last_error(
    vfs: *mut ffi::sqlite3_vfs,
    length: c_int,
    out: *mut c_char,
) -> c_int {
    pass_vfs!(vfs, xGetLastError, length, out)
}
