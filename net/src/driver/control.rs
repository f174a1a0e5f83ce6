//! How other threads ask a running engine for something.

use async_channel::{Receiver, Sender};
use futures::FutureExt;

/// Asks a running engine for something. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct Control {
    sender: Sender<Command>,
}

#[derive(Debug)]
pub(super) enum Command {
    Dial(String),
    Committed(u64),
    NetworkChanged,
    Pause,
    Resume,
    Stop,
}

impl Control {
    /// A control and the end that the engine listens at.
    #[must_use]
    pub fn new() -> (Self, Inbox) {
        let (sender, receiver) = async_channel::unbounded();
        (Self { sender }, Inbox { receiver })
    }

    fn send(&self, command: Command) {
        // A closed channel means that the engine has ended, which the board tells.
        let _ = self.sender.try_send(command);
    }

    /// Connects to a multiaddress and stays connected with it.
    pub fn dial(&self, address: &str) {
        self.send(Command::Dial(address.to_owned()));
    }

    /// Something was committed; the board shows `token` once it has been taken in.
    pub fn committed(&self, token: u64) {
        self.send(Command::Committed(token));
    }

    /// The machine is in another network now: every connection is made anew, at once.
    pub fn network_changed(&self) {
        self.send(Command::NetworkChanged);
    }

    /// Leaves the network; local changes go on being recorded.
    pub fn pause(&self) {
        self.send(Command::Pause);
    }

    /// Returns to the network.
    pub fn resume(&self) {
        self.send(Command::Resume);
    }

    /// Sends what waits and ends the engine.
    pub fn stop(&self) {
        self.send(Command::Stop);
    }
}

/// The engine's end of a [`Control`].
pub struct Inbox {
    pub(super) receiver: Receiver<Command>,
}

impl Inbox {
    /// Before an engine runs: waits for this long, and returns whether it was asked to stop (or
    /// nobody can ask any more). Other commands are dropped; the engine will find what they meant.
    #[cfg(not(target_family = "wasm"))]
    #[must_use]
    pub fn stopped_within(&self, time: std::time::Duration) -> bool {
        smol::block_on(self.stopped_after(time))
    }

    /// As `stopped_within`, without blocking the thread.
    pub async fn stopped_after(&self, time: std::time::Duration) -> bool {
        let mut timer = std::pin::pin!(crate::time::sleep(time).fuse());
        loop {
            futures::select! {
                command = std::pin::pin!(self.receiver.recv().fuse()) => match command {
                    Ok(Command::Stop) | Err(_) => return true,
                    Ok(_) => {}
                },
                () = timer => return false,
            }
        }
    }
}
