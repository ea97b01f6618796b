//! The API keys of a run: each is better known somewhere sooner or later than elsewhere.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::json;

/// Makes keys, and puts the newest where workers look for it.
pub struct Keys {
    made: u32,
    files: Vec<PathBuf>,
    /// The URL of Secrets Manager, the secret's name and its member.
    secret: Option<(String, &'static str, &'static str)>,
}

impl Keys {
    /// The first key, known to nobody yet.
    #[must_use]
    pub fn new(secret: Option<(String, &'static str, &'static str)>) -> Self {
        Self { made: 1, files: Vec::new(), secret }
    }

    /// A file in which a worker looks.
    pub fn add_file(&mut self, path: PathBuf) {
        self.files.push(path);
    }

    /// The newest key.
    #[must_use]
    pub fn newest(&self) -> String {
        format!("chaos-key-{}", self.made)
    }

    /// Makes another.
    pub fn make(&mut self) -> String {
        self.made += 1;
        self.newest()
    }

    /// Puts the newest key where workers look.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub async fn publish(&self) -> anyhow::Result<()> {
        for path in &self.files {
            // Renamed, as a mounted secret changes: nobody reads half a key.
            let new = path.with_extension("new");
            std::fs::write(&new, self.newest())
                .and_then(|()| std::fs::rename(&new, path))
                .with_context(|| format!("the key file {}", path.display()))?;
        }
        if let Some((url, name, member)) = &self.secret {
            emulators::put_secret(url, name, &json!({ *member: self.newest() }).to_string()).await;
        }
        Ok(())
    }
}
