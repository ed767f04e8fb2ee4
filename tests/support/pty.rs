//! A program on a terminal of its own, as a person has it.
//!
//! In: keys. Out: what stands on the screen, and how the program ended. What always holds: the terminal is the
//! program's controlling one, in a session of its own (util-linux's `setsid --ctty`); waiting ends after a time.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use super::machine::TestUser;

/// A program at work on a terminal.
pub struct OnTerminal {
    child: Child,
    master: File,
    /// Kept open, so that the terminal and its modes outlive the program.
    slave: OwnedFd,
    shown: Receiver<Vec<u8>>,
    screen: String,
}

impl OnTerminal {
    /// Starts `command` on a terminal of 30 rows and 100 columns, as `user` where that is somebody else.
    pub fn start(command: &Command, user: Option<&TestUser>) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("a terminal");
        unlockpt(&master).expect("unlocked");
        let slave = ioctl_tiocgptpeer(&master, flags).expect("the other end");
        tcsetwinsize(&master, Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }).expect("a size");
        let end = || Stdio::from(slave.try_clone().expect("a descriptor"));
        let mut starter = Command::new("setsid");
        starter.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        starter.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        starter.current_dir(command.get_current_dir().expect("a folder"));
        if let Some(user) = user {
            starter.uid(user.uid).gid(user.gid);
        }
        let child = starter.stdin(end()).stdout(end()).stderr(end()).spawn().expect("setsid starts");
        let master = File::from(master);
        let mut reader = master.try_clone().expect("a descriptor");
        let (send, shown) = channel();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                if send.send(buffer[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, master, slave, shown, screen: String::new() }
    }

    /// Waits until the screen shows `text` after all that was waited for before.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> &mut Self {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(at) = self.screen.find(text) {
                self.screen.drain(..at + text.len());
                return self;
            }
            match self.shown.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.screen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("no {text:?} on the screen ({error}): {:?}", self.screen),
            }
        }
    }

    /// Types.
    pub fn keys(&mut self, keys: &str) -> &mut Self {
        self.master.write_all(keys.as_bytes()).expect("the terminal takes keys");
        self
    }

    /// Gives the terminal another size.
    pub fn resize(&mut self, rows: u16, columns: u16) -> &mut Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).expect("a size");
        self
    }

    /// The modes of the terminal.
    pub fn modes(&self) -> Termios {
        tcgetattr(&self.slave).expect("a terminal has modes")
    }

    /// The process on the terminal.
    pub fn pid(&self) -> u32 {
        // setsid --wait forks only where it leads a group already, which a child of ours does not.
        self.child.id()
    }

    /// Waits for the end. Exit status, and what the screen showed since the last thing that was waited for.
    pub fn end(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().expect("a child can be waited for");
        while let Ok(bytes) = self.shown.recv_timeout(Duration::from_millis(100)) {
            self.screen.push_str(&String::from_utf8_lossy(&bytes));
        }
        (status.code(), self.screen)
    }
}
