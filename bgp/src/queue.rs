//! The two queues between the I/O thread and the RIB thread. Neither side ever blocks on the other: towards the RIB the
//! sender looks at the backlog before it reads more from a socket; towards the I/O thread the log of each group is bounded there.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use mio::Waker;

/// Work for the RIB thread.
pub(crate) struct ToRib<T> {
    queue: Mutex<VecDeque<T>>,
    closed: AtomicBool,
    ready: Condvar,
    backlog: AtomicUsize,
    sender_waits: AtomicBool,
}

/// Octets of routes that may wait before the sender stops reading from sockets.
const BACKLOG_LIMIT: usize = 4 << 20;

impl<T> ToRib<T> {
    pub(crate) fn new() -> Self {
        ToRib {
            queue: Mutex::default(),
            closed: AtomicBool::new(false),
            ready: Condvar::new(),
            backlog: AtomicUsize::new(0),
            sender_waits: AtomicBool::new(false),
        }
    }

    /// Appends all of `batch`, which weighs `octets`, and leaves it empty.
    pub(crate) fn send(&self, batch: &mut Vec<T>, octets: usize) {
        if batch.is_empty() {
            return;
        }
        self.backlog.fetch_add(octets, Ordering::Relaxed);
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = queue.is_empty();
        queue.extend(batch.drain(..));
        if self.closed.load(Ordering::Acquire) {
            queue.clear();
        }
        drop(queue);
        if was_empty {
            self.ready.notify_one();
        }
    }

    /// Whether the receiver is too far behind; if so it will wake the sender when it has caught up.
    pub(crate) fn is_full(&self) -> bool {
        if self.backlog.load(Ordering::Relaxed) < BACKLOG_LIMIT {
            return false;
        }
        self.sender_waits.store(true, Ordering::SeqCst);
        self.backlog.load(Ordering::SeqCst) >= BACKLOG_LIMIT
    }

    /// Moves up to `most` items to `into`; waits for the first one, for `wait` at most (`None`: as long as it takes).
    pub(crate) fn receive(&self, into: &mut Vec<T>, most: usize, wait: Option<Duration>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.is_empty() && wait != Some(Duration::ZERO) {
            queue = match wait {
                None => self
                    .ready
                    .wait_while(queue, |q| q.is_empty())
                    .unwrap_or_else(PoisonError::into_inner),
                Some(d) => {
                    self.ready
                        .wait_timeout_while(queue, d, |q| q.is_empty())
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
        let n = queue.len().min(most);
        into.extend(queue.drain(..n));
        if queue.is_empty() && queue.capacity() > 4096 {
            queue.shrink_to(1024);
        }
    }

    /// Nobody receives any more: what waits is dropped, and so is what is sent from now on, with the replies in it.
    pub(crate) fn close(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        self.closed.store(true, Ordering::Release);
        queue.clear();
    }

    /// Takes `octets` off the backlog, and says whether the sender waits for that.
    pub(crate) fn done(&self, octets: usize) -> bool {
        let left = self
            .backlog
            .fetch_sub(octets, Ordering::SeqCst)
            .saturating_sub(octets);
        left < BACKLOG_LIMIT / 2 && self.sender_waits.swap(false, Ordering::SeqCst)
    }
}

/// Work for the I/O thread.
pub(crate) struct ToIo<T> {
    queue: Mutex<Vec<T>>,
    closed: AtomicBool,
    waker: Waker,
}

impl<T> ToIo<T> {
    pub(crate) fn new(waker: Waker) -> Self {
        ToIo {
            queue: Mutex::default(),
            closed: AtomicBool::new(false),
            waker,
        }
    }

    /// Appends all of `batch` and leaves it empty.
    pub(crate) fn send(&self, batch: &mut Vec<T>) -> io::Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = queue.is_empty();
        queue.append(batch);
        if self.closed.load(Ordering::Acquire) {
            queue.clear();
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        drop(queue);
        if was_empty { self.waker.wake() } else { Ok(()) }
    }

    /// Nobody receives any more: what waits is dropped, with the replies in it.
    pub(crate) fn close(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        self.closed.store(true, Ordering::Release);
        queue.clear();
    }

    /// Wakes the I/O thread without work.
    pub(crate) fn wake(&self) -> io::Result<()> {
        self.waker.wake()
    }

    /// Everything that waits.
    pub(crate) fn take(&self) -> Vec<T> {
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_closed_queue_drops_what_it_is_given_so_that_nobody_waits_for_an_answer() {
        let rib = ToRib::new();
        let (before, answer_before) = mpsc::sync_channel::<()>(1);
        let (after, answer_after) = mpsc::sync_channel::<()>(1);
        rib.send(&mut vec![before], 1);
        rib.close();
        rib.send(&mut vec![after], 1);
        assert!(answer_before.recv().is_err());
        assert!(answer_after.recv().is_err());
    }

    #[test]
    fn the_sender_is_told_when_a_full_queue_has_room_again() {
        let rib = ToRib::new();
        rib.send(&mut vec![0], BACKLOG_LIMIT);
        assert!(rib.is_full());
        let mut got = Vec::new();
        rib.receive(&mut got, 10, Some(Duration::ZERO));
        assert_eq!(got, [0]);
        assert!(rib.done(BACKLOG_LIMIT), "the sender waits");
        assert!(!rib.is_full());
        assert!(!rib.done(0), "and is told once");
    }
}
