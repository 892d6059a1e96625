//! Files as memory: the one place that maps, because a mapped file is only as immutable as the file system keeps it.

use memmap2::Mmap;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A read-only file in memory.
#[derive(Debug)]
pub struct MappedFile(Mmap);

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Maps a file that nobody writes to while it is mapped, such as a model's weights.
///
/// # Errors
/// When the file cannot be opened or mapped.
pub fn map_file(path: &Path) -> io::Result<MappedFile> {
    let file = File::open(path)?;
    // SAFETY: the mapping is read-only and private to this process. That another process truncates or rewrites the file
    // meanwhile cannot be excluded by any reader; model files are replaced by rename, never written in place.
    let map = unsafe { Mmap::map(&file) }?;
    Ok(MappedFile(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_holds_the_bytes_of_the_file() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        assert_eq!(&*map_file(&path).unwrap(), std::fs::read(&path).unwrap());
        assert!(map_file(Path::new("no such file")).is_err());
    }
}
