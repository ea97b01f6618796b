//! What is logged on a test's thread.

use std::cell::RefCell;
use std::sync::Once;
use std::{io, mem};

use tracing::{Level, callsite, subscriber};
use tracing_subscriber::filter::dynamic_filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;

thread_local! {
    static CAPTURED: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

struct Captured;

impl io::Write for Captured {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        CAPTURED.with_borrow_mut(|captured| captured.as_mut().map_or(Ok(text.len()), |lines| lines.write(text)))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Captures what this thread logs from INFO on, until it is dropped.
pub struct Lines(());

impl Lines {
    pub fn capture() -> Lines {
        static SUBSCRIBER: Once = Once::new();
        // One for the whole process: with a subscriber of each test's own, the first thread that comes to an event
        // decides for all whether anybody wants it, and the other tests' threads want none.
        SUBSCRIBER.call_once(|| {
            let format =
                tracing_subscriber::fmt().with_ansi(false).with_max_level(Level::INFO).with_writer(|| Captured);
            let captures = dynamic_filter_fn(|_, _| CAPTURED.with_borrow(Option::is_some));
            subscriber::set_global_default(format.finish().with(captures)).expect("there is no other");
            // Of events that a thread came to while there was a subscriber and it was not yet the default.
            callsite::rebuild_interest_cache();
        });
        CAPTURED.set(Some(Vec::new()));
        Lines(())
    }

    /// What was logged since the last call. Without the end of what other tests' workers could not list: they share the
    /// process, and the next worker that can list tells it.
    pub fn take(&self) -> Vec<String> {
        let text = CAPTURED.with_borrow_mut(|captured| captured.as_mut().map(mem::take)).unwrap_or_default();
        let lines = String::from_utf8(text).unwrap();
        lines.lines().filter(|line| !line.contains("leases and shards can be read again")).map(str::to_owned).collect()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        CAPTURED.set(None);
    }
}
