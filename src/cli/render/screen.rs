//! The terminal that progress is drawn on.
//!
//! In: events. Out: what [`Tty`] makes of them, drawn by indicatif on standard error: lines that stay scroll up, the
//! frame below them is drawn anew. What always holds: until a step runs there is no second thread (the process may
//! still have to enter a user namespace, which only a process of one thread can); after [`Screen::finish`] or a drop
//! there is none either, and the frame is gone.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::tty::Tty;
use crate::cli::settings::Terminal;
use crate::diagnostic::Source;
use crate::event::Event;

/// A terminal in use.
#[derive(Debug)]
pub(crate) struct Screen {
    shared: Arc<Shared>,
    ticker: Option<JoinHandle<()>>,
    /// Lines that stay, of steps that took no time: written with the next ones.
    held: Vec<String>,
}

#[derive(Debug)]
struct Shared {
    /// One bar with a line for each thing that goes on, so that a frame is one write and nothing flickers.
    bar: ProgressBar,
    began: Instant,
    /// The size of the terminal now.
    size: fn() -> Terminal,
    state: Mutex<State>,
    over: Condvar,
}

#[derive(Debug)]
struct State {
    tty: Tty,
    over: bool,
}

/// Between frames.
const TICK: Duration = Duration::from_millis(100);

impl Screen {
    /// A screen on `target`, whose size `size` tells.
    pub(crate) fn new(tty: Tty, began: Instant, target: ProgressDrawTarget, size: fn() -> Terminal) -> Self {
        let bar = ProgressBar::with_draw_target(None, target);
        // A template that is not well-formed would leave indicatif's own look: ugly, no harm.
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            bar.set_style(style);
        }
        let state = Mutex::new(State { tty, over: false });
        Self {
            shared: Arc::new(Shared { bar, began, size, state, over: Condvar::new() }),
            ticker: None,
            held: Vec::new(),
        }
    }

    /// Takes note of `event`.
    pub(crate) fn event(&mut self, at: Duration, event: &Event<'_>, source: Option<&Source>) {
        let lines = {
            let mut state = self.shared.lock();
            let lines = state.tty.event(at, event, source, (self.shared.size)());
            // Output alone waits for the next frame; there may be very much of it.
            if matches!(event, Event::Output(..)) {
                return;
            }
            // Where all comes from the cache, all is written at once, and no frame flickers below it.
            if self.ticker.is_none() && matches!(event, Event::Planned(_) | Event::Cached(..) | Event::Missed(..)) {
                self.held.extend(lines);
                return;
            }
            self.shared.draw(&state);
            lines
        };
        self.held.extend(lines);
        self.print_held();
        if self.ticker.is_none() && matches!(event, Event::Started(_)) {
            let shared = Arc::clone(&self.shared);
            // Without a thread the frame is drawn at events alone.
            self.ticker = std::thread::Builder::new().name("progress".to_owned()).spawn(move || shared.tick()).ok();
        }
    }

    fn print_held(&mut self) {
        if !self.held.is_empty() {
            self.shared.bar.println(std::mem::take(&mut self.held).join("\n"));
        }
    }

    /// Ends it: the frame goes, and the line that sums up the build, if there is one, is returned.
    pub(crate) fn finish(&mut self, at: Duration) -> Option<String> {
        self.stop();
        self.shared.lock().tty.summary(at, (self.shared.size)())
    }

    fn stop(&mut self) {
        self.print_held();
        self.shared.lock().over = true;
        self.shared.over.notify_all();
        if let Some(ticker) = self.ticker.take()
            && let Err(panic) = ticker.join()
        {
            std::panic::resume_unwind(panic);
        }
        self.shared.bar.finish_and_clear();
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if !std::thread::panicking() && !self.shared.bar.is_finished() {
            self.stop();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere must not hide itself behind a second one here; the state is only what is shown.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self, state: &State) {
        let frame = state.tty.frame(self.began.elapsed(), (self.size)());
        // Never without a line: indicatif ends each by filling it, so what is cleared at the end must be one of these,
        // or the cursor stays behind the last text, where a shell's prompt would write over it.
        self.bar.set_message(if frame.is_empty() { " ".to_owned() } else { frame.join("\n") });
    }

    fn tick(&self) {
        let mut state = self.lock();
        while !state.over {
            self.draw(&state);
            state = self.over.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use indicatif::TermLike;

    use super::super::diagnostic::Look;
    use super::super::story;
    use super::*;

    const TERMINAL: Terminal = Terminal { columns: 50, rows: 12 };

    /// A terminal in memory that wraps lines as real ones do.
    #[derive(Debug, Clone, Default)]
    struct Paper(Arc<Mutex<Page>>);

    #[derive(Debug, Default)]
    struct Page {
        rows: Vec<Vec<char>>,
        row: usize,
        column: usize,
    }

    impl Page {
        fn write(&mut self, text: &str) {
            for letter in text.chars() {
                if letter == '\n' {
                    (self.row, self.column) = (self.row + 1, 0);
                    continue;
                }
                if letter == '\r' {
                    self.column = 0;
                    continue;
                }
                if self.column == TERMINAL.columns {
                    (self.row, self.column) = (self.row + 1, 0);
                }
                let rows = self.rows.len().max(self.row + 1);
                self.rows.resize(rows, vec![]);
                let line = &mut self.rows[self.row];
                line.resize(line.len().max(self.column + 1), ' ');
                line[self.column] = letter;
                self.column += 1;
            }
        }
    }

    impl Paper {
        fn text(&self) -> Vec<String> {
            let page = self.0.lock().unwrap();
            let mut lines: Vec<String> =
                page.rows.iter().map(|row| row.iter().collect::<String>().trim_end().to_owned()).collect();
            while lines.last().is_some_and(String::is_empty) {
                lines.pop();
            }
            lines
        }
    }

    impl TermLike for Paper {
        fn width(&self) -> u16 {
            TERMINAL.columns as u16
        }
        fn height(&self) -> u16 {
            TERMINAL.rows as u16
        }
        fn move_cursor_up(&self, n: usize) -> io::Result<()> {
            let mut page = self.0.lock().unwrap();
            page.row = page.row.saturating_sub(n);
            Ok(())
        }
        fn move_cursor_down(&self, n: usize) -> io::Result<()> {
            self.0.lock().unwrap().row += n;
            Ok(())
        }
        fn move_cursor_right(&self, n: usize) -> io::Result<()> {
            self.0.lock().unwrap().column += n;
            Ok(())
        }
        fn move_cursor_left(&self, n: usize) -> io::Result<()> {
            let mut page = self.0.lock().unwrap();
            page.column = page.column.saturating_sub(n);
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)?;
            self.write_str("\n")
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().write(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            let mut page = self.0.lock().unwrap();
            page.column = 0;
            let row = page.row;
            if let Some(line) = page.rows.get_mut(row) {
                line.clear();
            }
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn screen(paper: &Paper) -> Screen {
        let tty = Tty::new(Look { color: false, width: TERMINAL.columns }, false);
        let target = ProgressDrawTarget::term_like(Box::new(paper.clone()));
        Screen::new(tty, Instant::now(), target, || TERMINAL)
    }

    #[test]
    fn what_stays_is_there_in_the_end_and_nothing_else() {
        let paper = Paper::default();
        let mut screen = screen(&paper);
        story::tell(|at, event, source| {
            screen.event(at, event, Some(source));
            if matches!(event, Event::Started(_)) {
                assert!(screen.ticker.is_some());
            }
        });
        let summary = screen.finish(Duration::from_millis(2210));
        assert!(screen.ticker.is_none());
        let expected = [
            " => [internal] load build context            0.1s",
            " => CACHED [1/4] WORKDIR /app",
            " => [3/4] COPY . .                           0.4s",
            " => [2/4] RUN make                           2.0s",
            "warning[JSONArgsRecommended]: JSON arguments recom",
            "mended for CMD",
            " --> Dockerfile:2:1",
            "  |",
            "2 | CMD x",
            "  | ^^^^^",
            "something to know",
            " => ERROR [4/4] RUN false                    0.1s",
            " => CANCELED [other 1/1] RUN sleep 9         0.1s",
            " => exporting to image                       0.0s",
        ];
        assert_eq!(paper.text(), expected);
        assert_eq!(summary.as_deref(), Some("[+] Building 2.2s (7/7)"));
        let page = paper.0.lock().unwrap();
        assert_eq!((page.row, page.column), (expected.len(), 0), "the next text begins on a line of its own");
    }

    #[test]
    fn no_thread_before_a_step_runs() {
        let paper = Paper::default();
        let mut screen = screen(&paper);
        screen.event(Duration::ZERO, &Event::Began("exporting to image"), None);
        assert!(screen.ticker.is_none());
        assert_eq!(paper.text()[1].trim_end(), " => exporting to image                       0.0s");
        drop(screen);
        assert!(paper.text().is_empty());
    }
}
