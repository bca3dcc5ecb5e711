//! A queue that can be waited for together with sockets: a list under a lock and an eventfd.
//!
//! The threads that talk to the kernel wait for work and for notifications in one `poll`. The
//! descriptor is readable exactly while something is queued, so nothing is lost between a look
//! and the wait. The queue has no bound: who sends must have one (a window, a coalescing map),
//! because a kernel thread that blocks its sender could wait for it in turn.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
};
use selvage_bgp::Pulse;

/// The receiving end: one thread owns it.
#[derive(Debug)]
pub struct Inbox<T> {
    shared: Arc<Shared<T>>,
    pulse: Option<Arc<Pulse>>,
}

/// A sending end. Clones send to the same inbox.
#[derive(Debug)]
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

#[derive(Debug)]
struct Shared<T> {
    queue: Mutex<VecDeque<T>>,
    event: OwnedFd,
}

impl<T> Inbox<T> {
    /// An empty queue and its first sender. Fails when the process has no descriptors left.
    pub fn new() -> std::io::Result<(Sender<T>, Inbox<T>)> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            queue: Mutex::new(VecDeque::new()),
            event,
        });
        let sender = Sender {
            shared: Arc::clone(&shared),
        };
        let inbox = Inbox {
            shared,
            pulse: None,
        };
        Ok((sender, inbox))
    }

    /// Has the owner's thread stamp `pulse`: it works except while it is in [`wait`](Self::wait).
    pub fn with_pulse(self, pulse: Arc<Pulse>) -> Inbox<T> {
        Inbox {
            pulse: Some(pulse),
            ..self
        }
    }

    /// Takes everything that is queued, oldest first; empty when there is nothing. Never waits.
    pub fn recv_all(&self) -> VecDeque<T> {
        let mut queue = self.shared.lock();
        self.shared.lower();
        std::mem::take(&mut *queue)
    }

    /// Waits until something is queued or one of `others` is readable, at most for `timeout`
    /// (`None`: without end). A signal ends the wait early; that is no error.
    pub fn wait(
        &self,
        others: &[BorrowedFd<'_>],
        timeout: Option<std::time::Duration>,
    ) -> std::io::Result<()> {
        let mut fds = vec![PollFd::new(&self.shared.event, PollFlags::IN)];
        fds.extend(
            others
                .iter()
                .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)),
        );
        let timeout = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        if let Some(pulse) = &self.pulse {
            pulse.rest();
        }
        let polled = poll(&mut fds, timeout.as_ref());
        if let Some(pulse) = &self.pulse {
            pulse.work();
        }
        match polled {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl<T> AsFd for Inbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

impl<T> Sender<T> {
    /// Queues `item` and wakes the receiver.
    pub fn send(&self, item: T) {
        let mut queue = self.shared.lock();
        queue.push_back(item);
        if queue.len() == 1 {
            self.shared.raise();
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T> Shared<T> {
    /// A sender that panicked left the queue whole: pushing is the only thing done under the lock.
    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Both fail only when the counter is already as it should be (non-blocking, never full).
    fn raise(&self) {
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    fn lower(&self) {
        let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn readable(inbox: &Inbox<u32>) -> bool {
        let mut fds = [PollFd::new(inbox, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn readable_exactly_while_something_is_queued() {
        let (sender, inbox) = Inbox::new().unwrap();
        assert!(!readable(&inbox));
        for round in 0..3 {
            sender.send(round);
            sender.clone().send(round + 10);
            assert!(readable(&inbox));
            assert_eq!(inbox.recv_all(), [round, round + 10]);
            assert!(!readable(&inbox));
            assert!(inbox.recv_all().is_empty());
        }
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        let (sender, inbox) = Inbox::new().unwrap();
        let senders: Vec<_> = (0..4u32)
            .map(|s| {
                let sender = sender.clone();
                std::thread::spawn(move || (0..1000).for_each(|i| sender.send(s * 1000 + i)))
            })
            .collect();
        let mut got = Vec::new();
        while got.len() < 4000 {
            inbox.wait(&[], Some(Duration::from_secs(10))).unwrap();
            got.extend(inbox.recv_all());
        }
        for s in 0..4u32 {
            let of_one: Vec<_> = got.iter().filter(|v| **v / 1000 == s).collect();
            assert!(of_one.is_sorted() && of_one.len() == 1000);
        }
        senders.into_iter().for_each(|s| s.join().unwrap());
    }

    #[test]
    fn the_wait_ends_by_another_descriptor() {
        let (_sender, inbox) = Inbox::<u32>::new().unwrap();
        let (other_sender, other) = Inbox::<u32>::new().unwrap();
        other_sender.send(1);
        inbox.wait(&[other.as_fd()], None).unwrap();
        assert_eq!(other.recv_all().len(), 1);
    }
}
