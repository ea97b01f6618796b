//! A service's log as it grows, of which a terminal shows what somebody should look at.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use crate::service_process::{Service, ServiceSettings};

/// Follows one log file. A file, not a pipe: it stays when this program is killed, and blocks no service.
pub struct LogWatch {
    service: Service,
    path: PathBuf,
    offset: u64,
}

impl LogWatch {
    /// Follows it from its present end.
    #[must_use]
    pub fn new(settings: &ServiceSettings) -> Self {
        let path = settings.log_file();
        let offset = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        Self { service: settings.service, path, offset }
    }

    /// The whole lines written since the last call that are more than information, each with the service's name.
    pub fn news(&mut self) -> Vec<String> {
        let Ok(mut file) = File::open(&self.path) else { return Vec::new() };
        let mut added = Vec::new();
        // What cannot be read now is read the next time.
        if file.seek(SeekFrom::Start(self.offset)).and_then(|_| file.read_to_end(&mut added)).is_err() {
            return Vec::new();
        }
        let whole = added.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        self.offset += whole as u64;
        let text = String::from_utf8_lossy(&added[..whole]);
        text.lines().filter(|line| is_notable(line)).map(|line| format!("{}: {line}", self.service)).collect()
    }
}

/// The lines of a log that tell of a panic, also of one that its process outlived.
///
/// # Errors
/// When there is no such file, or it cannot be read.
pub fn panics(path: &Path) -> std::io::Result<Vec<String>> {
    let text = std::fs::read(path)?;
    let told = |line: &&str| line.contains("panicked") || line.contains("a shard task failed");
    Ok(String::from_utf8_lossy(&text).lines().filter(told).map(str::to_owned).collect())
}

/// Lines without a level are a panic's, or the last words of a program.
fn is_notable(line: &str) -> bool {
    !matches!(line.split_whitespace().nth(1), Some("INFO" | "DEBUG" | "TRACE"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn whole_lines_above_information_are_news_once() {
        let dir = tempfile::tempdir().unwrap();
        let service = Service::IngestWorker;
        let amberflo = ([127, 0, 0, 1], 1).into();
        let settings = ServiceSettings { service, dir: dir.path().to_owned(), amberflo, env: Vec::new() };
        let mut log = File::create(settings.log_file()).unwrap();
        log.write_all(b"2026-07-01T00:00:00Z ERROR shared: of an earlier run\n").unwrap();
        let mut watch = LogWatch::new(&settings);
        assert!(watch.news().is_empty());
        log.write_all(b"2026-07-01T00:00:01Z  INFO shared: started\n2026-07-01T00:00:02Z  WARN shared: slow\nthread ")
            .unwrap();
        assert_eq!(watch.news(), ["ingest-worker: 2026-07-01T00:00:02Z  WARN shared: slow"]);
        assert!(watch.news().is_empty());
        log.write_all("'main' panicked: ü\n".as_bytes()).unwrap();
        assert_eq!(watch.news(), ["ingest-worker: thread 'main' panicked: ü"]);
        log.write_all(b"2026-07-01T00:00:03Z ERROR ingest_worker: a shard task failed; its lease will expire\n")
            .unwrap();
        let panics = panics(&settings.log_file()).unwrap();
        assert_eq!(panics.len(), 2, "{panics:?}");
    }
}
