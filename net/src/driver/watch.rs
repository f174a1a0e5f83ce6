//! Notices that a database file was written to, without asking for it again and again: by the
//! directory's events where the system has them (Linux). It is a hint, never the only way: the
//! driver polls, too, less often.

#[cfg(any(target_os = "linux", target_os = "android"))]
mod system {
    use std::mem::MaybeUninit;
    use std::os::fd::OwnedFd;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
    use smol::Async;

    /// Room for the events that are read at once.
    const BUFFER_BYTES: usize = 4 * 1024;

    /// The events of the directory of a database file.
    pub(in crate::driver) struct Watch {
        events: Async<OwnedFd>,
        /// The file, and those beside it that SQLite writes first.
        names: [Vec<u8>; 3],
    }

    impl Watch {
        /// `None` if the system has no such events, or none left.
        pub fn new(file: &Path) -> Option<Self> {
            let file = file.canonicalize().ok()?;
            let (directory, name) = (file.parent()?, file.file_name()?);
            let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
            let wanted = WatchFlags::MODIFY
                | WatchFlags::CREATE
                | WatchFlags::DELETE
                | WatchFlags::MOVED_TO
                | WatchFlags::MOVED_FROM;
            inotify::add_watch(&events, directory, wanted).ok()?;
            let beside = |end: &str| [name.as_bytes(), end.as_bytes()].concat();
            let names = [beside(""), beside("-wal"), beside("-journal")];
            Some(Self { events: Async::new(events).ok()?, names })
        }

        /// Ends once the file was written to since this was last asked.
        pub async fn changed(&self) {
            loop {
                if self.events.readable().await.is_err() {
                    return futures::future::pending().await;
                }
                if self.take() {
                    return;
                }
            }
        }

        /// Takes what has happened. Whether any of it was about the file.
        fn take(&self) -> bool {
            let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
            let mut events = Reader::new(&self.events, &mut buffer);
            let mut ours = false;
            while let Ok(event) = events.next() {
                // Without a name: some were lost, or the directory is gone.
                ours |= event.file_name().is_none_or(|name| {
                    self.names.iter().any(|known| known.as_slice() == name.to_bytes())
                });
            }
            ours
        }
    }

    #[cfg(test)]
    #[allow(clippy::unwrap_used)]
    mod tests {
        use super::*;
        use std::time::Duration;

        async fn within(watch: &Watch, time: Duration) -> bool {
            let late = async {
                smol::Timer::after(time).await;
                false
            };
            let changed = async {
                watch.changed().await;
                true
            };
            smol::future::or(changed, late).await
        }

        #[test]
        fn a_write_to_the_file_or_its_log_is_noticed_and_to_others_not() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("notes.db");
            std::fs::write(&path, "a").unwrap();
            let watch = Watch::new(&path).unwrap();
            let (soon, late) = (Duration::from_millis(50), Duration::from_secs(20));
            smol::block_on(async {
                assert!(!within(&watch, soon).await, "nothing has happened");
                std::fs::write(folder.path().join("notes.db-wal"), "b").unwrap();
                assert!(within(&watch, late).await, "the log");
                std::fs::write(&path, "c").unwrap();
                assert!(within(&watch, late).await, "the file");
                while within(&watch, soon).await {}
                std::fs::write(folder.path().join("other.db"), "d").unwrap();
                assert!(!within(&watch, soon).await, "another file");
                std::fs::rename(folder.path().join("other.db"), &path).unwrap();
                assert!(within(&watch, late).await, "another file in its place");
            });
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod system {
    use std::path::Path;

    /// There is none on this system.
    pub(in crate::driver) enum Watch {}

    impl Watch {
        pub fn new(_file: &Path) -> Option<Self> {
            None
        }

        pub async fn changed(&self) {
            match *self {}
        }
    }
}

pub(super) use system::Watch;
