//! A host program with a SQLite of its own, as old as its manifest says. It loads an extension
//! and tells what happened: `refused: <message>`, or `loaded <answer>` after many handles were
//! opened, used and closed with plain `sqlite3_close` on several threads.

use libsqlite3_sys as sqlite;
use std::ffi::{CStr, CString};
use std::os::raw::c_char;
use std::ptr::null_mut;

const THREADS: usize = 4;
const HANDLES_PER_THREAD: usize = 100;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, library, sql] = arguments.as_slice() else {
        eprintln!("usage: host LIBRARY SQL");
        std::process::exit(2);
    };
    // SAFETY: returns a static C string.
    println!("SQLite {}", unsafe { text(sqlite::sqlite3_libversion()) });
    match one_handle(library, sql) {
        Err(message) => println!("refused: {message}"),
        Ok(answer) => {
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    let (library, sql) = (library.clone(), sql.clone());
                    std::thread::spawn(move || {
                        for _ in 0..HANDLES_PER_THREAD {
                            one_handle(&library, &sql).expect("loads as the first time");
                        }
                    })
                })
                .collect();
            for thread in threads {
                thread.join().expect("no thread fails");
            }
            println!("loaded {answer}");
        }
    }
}

/// Opens a handle, loads twice, asks once, closes. The error is the loader's message.
fn one_handle(library: &str, sql: &str) -> Result<String, String> {
    let library = CString::new(library).expect("no NUL in a path");
    let sql = CString::new(sql).expect("no NUL in SQL");
    let mut db = null_mut();
    // SAFETY: every pointer is valid for its call, the handle is used by this thread only, and
    // every result is copied before the statement that owns it is finalized.
    unsafe {
        assert_eq!(sqlite::sqlite3_open(c":memory:".as_ptr(), &mut db), 0);
        assert_eq!(sqlite::sqlite3_enable_load_extension(db, 1), 0);
        for _ in 0..2 {
            let mut message = null_mut();
            let code =
                sqlite::sqlite3_load_extension(db, library.as_ptr(), null_mut(), &mut message);
            if code != 0 {
                let told = text(message);
                sqlite::sqlite3_free(message.cast());
                assert_eq!(sqlite::sqlite3_close(db), 0, "a refused load leaves nothing open");
                return Err(told);
            }
        }
        let mut statement = null_mut();
        let code = sqlite::sqlite3_prepare_v2(db, sql.as_ptr(), -1, &mut statement, null_mut());
        assert_eq!(code, 0, "{}", text(sqlite::sqlite3_errmsg(db)));
        assert_eq!(sqlite::sqlite3_step(statement), sqlite::SQLITE_ROW);
        let answer = text(sqlite::sqlite3_column_text(statement, 0).cast());
        sqlite::sqlite3_finalize(statement);
        assert_eq!(sqlite::sqlite3_close(db), 0, "no statement of the extension is open");
        Ok(answer)
    }
}

unsafe fn text(start: *const c_char) -> String {
    if start.is_null() {
        return String::new();
    }
    // SAFETY: SQLite gives NUL-terminated strings (caller).
    unsafe { CStr::from_ptr(start) }.to_string_lossy().into_owned()
}
