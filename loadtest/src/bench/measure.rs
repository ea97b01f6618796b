//! CPU time, memory, medians, and how they are printed.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Ticks a second in /proc/PID/stat: `USER_HZ`, which Linux fixes at 100 for every architecture we build for.
const TICKS_PER_SECOND: u64 = 100;

/// CPU time of this process so far: user and system, all threads.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or_default(), time.tv_nsec.try_into().unwrap_or_default())
}

/// CPU time of another process, to 10 ms; `None` where there is no /proc.
pub fn cpu_time_of(process: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in parentheses, may hold anything; utime and stime are the 12th and 13th fields after it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// A process's resident memory.
#[derive(Clone, Copy)]
pub struct Memory {
    /// Bytes now.
    pub now: u64,
    /// The most bytes so far.
    pub peak: u64,
}

/// `None` where there is no /proc, or no such process.
pub fn memory_of(process: u32) -> Option<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
    };
    Some(Memory { now: bytes("VmRSS")?, peak: bytes("VmHWM")? })
}

/// The middle value.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The value that `share` of all lie below.
pub fn percentile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get((values.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN)
}

/// Nanoseconds of `spent` for each of `events`.
pub fn nanos_each(spent: Duration, events: usize) -> f64 {
    spent.as_nanos() as f64 / events as f64
}

/// Prints a heading, and below it what is measured.
pub fn heading(title: &str, notes: &[&str]) {
    println!("\n{title}");
    for note in notes {
        println!("  {note}");
    }
}

/// Prints a heading, and why nothing was measured.
pub fn skipped(title: &str, reason: &str) {
    heading(title, &[&format!("skipped: {reason}")]);
}

/// Prints a row: a name, then columns to the right.
pub fn row<const COLUMNS: usize>(name: &str, columns: [String; COLUMNS]) {
    let columns: String = columns.iter().map(|column| format!("{column:>18}")).collect();
    println!("  {name:<38}{columns}");
}

/// A whole number in groups of three digits.
pub fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes as MiB.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
