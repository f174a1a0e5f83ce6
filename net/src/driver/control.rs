//! How other threads ask a running engine for something.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;

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
    Pause(Sender<Infallible>),
    Resume,
    Stop,
}

impl Control {
    /// A control and the end that the engine listens at.
    #[must_use]
    pub fn new() -> (Self, Inbox) {
        let (sender, receiver) = async_channel::unbounded();
        (Self { sender }, Inbox { receiver, early: RefCell::default() })
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

    /// Leaves the network; local changes go on being recorded. What it gives closes once nobody is
    /// connected any more.
    pub fn pause(&self) -> Receiver<Infallible> {
        let (paused, closes) = async_channel::bounded(1);
        self.send(Command::Pause(paused));
        closes
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
    receiver: Receiver<Command>,
    /// What came before an engine ran.
    early: RefCell<VecDeque<Command>>,
}

impl Inbox {
    /// Before an engine runs: waits for this long, and returns whether it was asked to stop (or
    /// nobody can ask any more). Other commands are kept for the engine.
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
                    Ok(command) => self.early.borrow_mut().push_back(command),
                },
                () = timer => return false,
            }
        }
    }

    /// The next command; `None` if nobody can ask any more.
    pub(super) async fn next(&self) -> Option<Command> {
        let early = self.early.borrow_mut().pop_front();
        match early {
            Some(command) => Some(command),
            None => self.receiver.recv().await.ok(),
        }
    }
}

#[cfg(all(test, not(target_family = "wasm")))]
mod tests {
    use std::time::Duration;

    use super::{Command, Control};

    #[test]
    fn what_came_before_the_engine_ran_is_not_lost() {
        let (control, inbox) = Control::new();
        control.dial("/ip4/192.0.2.7/tcp/1");
        control.committed(7);
        assert!(!inbox.stopped_within(Duration::from_millis(10)));
        control.pause();
        let next = || smol::block_on(inbox.next());
        assert!(matches!(next(), Some(Command::Dial(_))));
        assert!(matches!(next(), Some(Command::Committed(7))));
        assert!(matches!(next(), Some(Command::Pause(_))));
        control.stop();
        assert!(inbox.stopped_within(Duration::from_secs(60)));
        drop(control);
        assert!(next().is_none());
    }
}
