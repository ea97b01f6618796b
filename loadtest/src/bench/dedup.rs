//! What a key in the dedup window costs in memory.

use std::borrow::Cow;
use std::time::Duration;

use ingest_worker::dedup::{KeyBudget, Window};
use shared::event::UsageEvent;

use super::measure::{cpu_time, grouped, heading, memory_of, nanos_each, row};

/// Prints a row for each number of keys.
pub fn run(sizes: &[u32]) {
    heading(
        "Dedup window: memory per key",
        &["allocated: by the window's own account; resident: growth of this process (VmRSS), after smaller sizes"],
    );
    row("keys", ["allocated", "resident", "ns/insert"].map(str::to_owned));
    // Kept to the end: what one gave back to the heap would hide the growth of the next.
    let mut windows = Vec::new();
    for &keys in sizes {
        let resident_before = resident();
        let started = cpu_time();
        let mut window = Window::new(Duration::from_secs(3600), KeyBudget::new(usize::MAX));
        for number in 0..keys {
            let id = format!("0d6f2f0e-57a1-4c5e-9d2a-{number:012x}");
            window.insert(&event(&id), 0);
            window.settle(window.mark());
        }
        let spent = nanos_each(cpu_time() - started, keys as usize);
        let grown = resident().zip(resident_before).map(|(after, before)| after.saturating_sub(before));
        let each = |bytes: u64| format!("{:.1} bytes", bytes as f64 / f64::from(keys));
        let allocated = each(window.allocated_bytes() as u64);
        let resident = grown.map_or("-".to_owned(), each);
        row(&grouped(f64::from(keys)), [allocated, resident, format!("{spent:.0}")]);
        windows.push(window);
    }
}

fn resident() -> Option<u64> {
    memory_of(std::process::id()).map(|memory| memory.now)
}

fn event(unique_id: &str) -> UsageEvent<'_> {
    UsageEvent {
        tenant_id: Cow::Borrowed("tenant-0001"),
        meter_api_name: Cow::Borrowed("api-calls"),
        meter_value: Cow::Borrowed("1"),
        unique_id: Cow::Borrowed(unique_id),
        meter_time: 0,
        time_from_detail: false,
        dimensions: Vec::new(),
        redrive_count: 0,
    }
}
