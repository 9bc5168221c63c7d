//! Whether the process before this one stopped in order: a file that stands in the data directory while a hub runs.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

const FILE_NAME: &str = "running";

/// The file of the process that runs. Dropping it leaves the file, as a crash does; [`Running::end`] removes it.
#[derive(Debug)]
pub struct Running(PathBuf);

impl Running {
    /// Begins to run, and whether one before has not stopped in order. The caller holds the directory's lock.
    ///
    /// # Errors
    /// The file cannot be made or synced.
    pub fn begin(data: &Path) -> io::Result<(Self, bool)> {
        let path = data.join(FILE_NAME);
        let is_unclean = path.try_exists()?;
        if !is_unclean {
            File::create(&path)?.sync_all()?;
            // The entry itself must outlive a power loss too: that is what it is for.
            File::open(data)?.sync_all()?;
        }
        Ok((Self(path), is_unclean))
    }

    /// Everything was stopped in order.
    pub fn end(self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "the next start will take this stop for a crash");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_in_order_is_told_from_a_crash() {
        let data = std::env::temp_dir().join(format!("forebay-running-{}", std::process::id()));
        fs::create_dir_all(&data).unwrap();
        let (first, was_unclean) = Running::begin(&data).unwrap();
        assert!(!was_unclean, "a new directory");
        first.end();
        let (crashed, was_unclean) = Running::begin(&data).unwrap();
        assert!(!was_unclean, "the first one ended in order");
        drop(crashed);
        let (third, was_unclean) = Running::begin(&data).unwrap();
        assert!(was_unclean, "the second one did not");
        third.end();
        assert!(!Running::begin(&data).unwrap().1);
        fs::remove_dir_all(&data).unwrap();
    }
}
