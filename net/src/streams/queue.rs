//! What the owner of a stream and the task that moves its bytes share: the frames to send, the
//! wish to end, and how much was received and not yet consumed. Locks are held for a few
//! instructions, never across an await.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    task::Waker,
};

use futures::task::AtomicWaker;

use super::{
    FRAME_PAYLOAD_MAX_BYTES, INBOUND_UNREAD_MAX_BYTES, OUTBOUND_QUEUE_HIGH_BYTES,
    OUTBOUND_QUEUE_LOW_BYTES, OUTBOUND_QUEUE_MAX_BYTES, frame::HEADER_BYTES,
};

#[derive(Debug, Default)]
enum End {
    #[default]
    Open,
    /// Send what is queued, then finish.
    Closing,
    /// Drop everything now.
    Aborted(String),
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Vec<u8>>,
    queued_bytes: usize,
    /// The queue was long since it was last short.
    was_long: bool,
    unread_bytes: usize,
    /// What the peer sends is of no interest any more.
    deaf: bool,
    end: End,
}

/// The shared part of one stream.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    waker: AtomicWaker,
}

/// What the stream's task has to do next about sending.
pub(crate) enum Next {
    Frame(Vec<u8>),
    Wait,
    Finish,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame; ignored once the stream is ending.
    pub(crate) fn push(&self, frame: Vec<u8>) {
        let mut state = self.state();
        if !matches!(state.end, End::Open) {
            return;
        }
        if frame.len() > FRAME_PAYLOAD_MAX_BYTES {
            state.end = End::Aborted(format!(
                "this side tried to send a frame of {} bytes; at most {FRAME_PAYLOAD_MAX_BYTES} \
                 are allowed",
                frame.len()
            ));
        } else if state.queued_bytes + frame.len() > OUTBOUND_QUEUE_MAX_BYTES {
            state.end = End::Aborted(format!(
                "the peer reads too slowly: more than {OUTBOUND_QUEUE_MAX_BYTES} bytes are waiting"
            ));
        } else {
            state.queued_bytes += HEADER_BYTES + frame.len();
            state.was_long |= state.queued_bytes > OUTBOUND_QUEUE_HIGH_BYTES;
            state.frames.push_back(frame);
        }
        drop(state);
        self.waker.wake();
    }

    /// Bytes accepted from the owner and not yet handed to the connection, headers included.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.state().queued_bytes
    }

    pub(crate) fn close(&self) {
        let mut state = self.state();
        if matches!(state.end, End::Open) {
            state.end = End::Closing;
        }
        drop(state);
        self.waker.wake();
    }

    /// Like `close`, and nothing more is read.
    pub(crate) fn abandon(&self) {
        self.state().deaf = true;
        self.close();
    }

    pub(crate) fn is_deaf(&self) -> bool {
        self.state().deaf
    }

    pub(crate) fn abort(&self, reason: String) {
        let mut state = self.state();
        if !matches!(state.end, End::Aborted(_)) {
            state.end = End::Aborted(reason);
        }
        drop(state);
        self.waker.wake();
    }

    pub(crate) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    pub(crate) fn aborted(&self) -> Option<String> {
        match &self.state().end {
            End::Aborted(reason) => Some(reason.clone()),
            End::Open | End::Closing => None,
        }
    }

    pub(crate) fn next(&self) -> Next {
        let mut state = self.state();
        match (state.frames.pop_front(), &state.end) {
            (Some(frame), _) => Next::Frame(frame),
            (None, End::Open) => Next::Wait,
            (None, End::Closing | End::Aborted(_)) => Next::Finish,
        }
    }

    /// `bytes` of queued frames went to the connection.
    pub(crate) fn written(&self, bytes: usize) {
        let mut state = self.state();
        state.queued_bytes = state.queued_bytes.saturating_sub(bytes);
    }

    /// Whether the queue became short after it was long; once each time.
    pub(crate) fn take_drained(&self) -> bool {
        let mut state = self.state();
        let drained = state.was_long && state.queued_bytes <= OUTBOUND_QUEUE_LOW_BYTES;
        if drained {
            state.was_long = false;
        }
        drained
    }

    pub(crate) fn may_read(&self) -> bool {
        self.state().unread_bytes < INBOUND_UNREAD_MAX_BYTES
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.state().unread_bytes += bytes;
    }

    /// The owner took a frame of `bytes` payload: the stream may be read on.
    pub(crate) fn consumed(&self, bytes: usize) {
        let mut state = self.state();
        let paused = state.unread_bytes >= INBOUND_UNREAD_MAX_BYTES;
        state.unread_bytes = state.unread_bytes.saturating_sub(bytes);
        let resumes = paused && state.unread_bytes < INBOUND_UNREAD_MAX_BYTES;
        drop(state);
        if resumes {
            self.waker.wake();
        }
    }
}
