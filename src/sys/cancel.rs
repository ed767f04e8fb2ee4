//! The wish to stop, which any thread can see and wait for.
//!
//! In: a call of [`Cancel::cancel`], or SIGINT or SIGTERM once [`install_signal_handlers`] was called. Out: a flag, and
//! a file descriptor that stays readable from then on, for those who sleep in `poll`. What always holds: once canceled
//! it stays canceled; the first signal asks, the second one ends the process at once.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// A wish to stop. Clones are the same wish.
#[derive(Debug, Clone)]
pub struct Cancel {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    canceled: AtomicBool,
    signal: AtomicI32,
    event: OwnedFd,
}

impl Cancel {
    /// A wish that nobody has had yet.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { state: Arc::new(State { canceled: AtomicBool::new(false), signal: AtomicI32::new(0), event }) })
    }

    /// Asks everybody who looks at it to stop.
    pub fn cancel(&self) {
        self.state.raise();
    }

    /// Whether somebody asked to stop.
    pub fn is_canceled(&self) -> bool {
        self.state.canceled.load(Ordering::Acquire)
    }

    /// The signal that asked, where it was one: the exit code of the process is 128 plus this number.
    pub fn signal(&self) -> Option<i32> {
        match self.state.signal.load(Ordering::Acquire) {
            0 => None,
            signal => Some(signal),
        }
    }

    /// Makes the wish this process's own, after a fork: what is raised in the parent no longer wakes who sleeps here.
    pub fn own_after_fork(&self) -> io::Result<()> {
        let own = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // SAFETY: both are descriptors that are open; what the number stands for in the parent stays as it is. All
        // clones of the wish go on to use the number.
        if unsafe { libc::dup3(own.as_raw_fd(), self.state.event.as_raw_fd(), libc::O_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
        if self.is_canceled() {
            self.state.raise();
        }
        Ok(())
    }

    /// Readable from the moment of the wish on. To be polled, never to be read.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.state.event.as_fd()
    }
}

/// Reads and writes as `inner` does, until somebody wishes to stop: then it fails.
#[derive(Debug)]
pub struct UntilCanceled<'a, T> {
    /// What is read from or written to.
    pub inner: T,
    /// The wish; `None` where nobody can have one.
    pub cancel: Option<&'a Cancel>,
}

impl<T> UntilCanceled<'_, T> {
    fn check(&self) -> io::Result<()> {
        match self.cancel {
            // Not ErrorKind::Interrupted: those who see that try again.
            Some(cancel) if cancel.is_canceled() => Err(io::Error::other("stopped")),
            _ => Ok(()),
        }
    }
}

impl<T: Read> Read for UntilCanceled<'_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.inner.read(buffer)
    }
}

impl<T: Write> Write for UntilCanceled<'_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.check()?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl State {
    /// Async-signal-safe: a store and a write.
    fn raise(&self) {
        self.canceled.store(true, Ordering::Release);
        let one = 1_u64.to_ne_bytes();
        // SAFETY: the buffer is eight bytes that live through the call. The write can only fail when the counter is
        // full, and then the descriptor is readable already.
        unsafe { libc::write(self.event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

/// What the signal handler raises; a reference that is never given back, as a handler may run at any time.
static HANDLED: AtomicPtr<State> = AtomicPtr::new(std::ptr::null_mut());

/// From now on SIGINT and SIGTERM raise `cancel`; the second of them ends the process at once.
pub fn install_signal_handlers(cancel: &Cancel) -> io::Result<()> {
    HANDLED.store(Arc::into_raw(Arc::clone(&cancel.state)).cast_mut(), Ordering::Release);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: an all-zero sigaction is a valid value; the handler only does what is async-signal-safe.
        let code = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(signal, &raw const action, std::ptr::null_mut())
        };
        if code != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn on_signal(signal: libc::c_int) {
    // SAFETY: the pointer is null or came from `Arc::into_raw` and is never freed; errno is put back for the code that
    // was interrupted.
    unsafe {
        let errno = *libc::__errno_location();
        if let Some(state) = HANDLED.load(Ordering::Acquire).as_ref() {
            if state.signal.swap(signal, Ordering::AcqRel) != 0 {
                libc::_exit(128 + signal);
            }
            state.raise();
        }
        *libc::__errno_location() = errno;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn readable(cancel: &Cancel) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(cancel.fd(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("poll of an event") == 1
    }

    #[test]
    fn a_wish_is_seen_by_all_clones_and_stays() {
        let cancel = Cancel::new().expect("an event");
        let other = cancel.clone();
        assert!(!other.is_canceled() && !readable(&other));
        std::thread::scope(|scope| {
            scope.spawn(|| cancel.cancel());
        });
        for _ in 0..2 {
            assert!(other.is_canceled() && readable(&other));
            cancel.cancel();
        }
        assert_eq!(other.signal(), None);
    }

    #[test]
    fn what_is_read_and_written_ends_with_the_wish() {
        let cancel = Cancel::new().expect("an event");
        let mut copy = Vec::new();
        let mut reader = UntilCanceled { inner: &b"bytes"[..], cancel: Some(&cancel) };
        assert_eq!(io::copy(&mut reader, &mut UntilCanceled { inner: &mut copy, cancel: Some(&cancel) }).unwrap(), 5);
        cancel.cancel();
        assert!(reader.read(&mut [0]).is_err());
        assert!(UntilCanceled { inner: &mut copy, cancel: Some(&cancel) }.write_all(b"x").is_err());
        UntilCanceled { inner: &mut copy, cancel: None }.write_all(b"!").unwrap();
        assert_eq!(copy, b"bytes!");
    }
}
