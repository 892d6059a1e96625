//! What a person sees on a terminal while files are read and their texts become tokens.

use super::progress::style;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};
use std::path::Path;
use std::time::Duration;

/// A line on standard error that goes away when the work is done, or the last clone is gone. The clones draw the same
/// line.
#[derive(Clone)]
pub struct Loading {
    bar: ProgressBar,
}

impl Loading {
    /// On a terminal; nothing anywhere else, or when `quiet`.
    pub fn new(quiet: bool) -> Self {
        Self::on(if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() })
    }

    fn on(target: ProgressDrawTarget) -> Self {
        Self { bar: ProgressBar::with_draw_target(None, target).with_finish(ProgressFinish::AndClear) }
    }

    /// The records of a file are read from now on.
    pub fn reads(&self, path: &Path) {
        self.begin(style("reading {msg}: {human_pos} records, {per_sec}"));
        self.bar.set_message(path.display().to_string());
    }

    /// So many texts become tokens from now on.
    pub fn encodes(&self, texts: u64) {
        self.begin(style("tokens [{bar:28}] {human_pos}/{human_len} texts, {per_sec}, {eta} left"));
        self.bar.set_length(texts);
    }

    fn begin(&self, style: ProgressStyle) {
        self.bar.unset_length();
        self.bar.reset();
        self.bar.set_style(style);
        self.bar.enable_steady_tick(Duration::from_millis(200));
    }

    /// One more is done.
    pub fn count(&self) {
        self.bar.inc(1);
    }

    /// All is done.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::InMemoryTerm;

    #[test]
    fn the_line_tells_what_is_done_and_goes_away() {
        let term = InMemoryTerm::new(4, 80);
        let loading = Loading::on(ProgressDrawTarget::term_like(Box::new(term.clone())));
        let screen = || {
            loading.bar.force_draw();
            term.contents()
        };
        loading.reads("notes.jsonl".as_ref());
        (0..1234).for_each(|_| loading.count());
        assert!(screen().starts_with("reading notes.jsonl: 1,234 records"), "{}", screen());
        loading.encodes(2000);
        (0..500).for_each(|_| loading.count());
        assert!(screen().contains("500/2,000 texts"), "{}", screen());
        loading.end();
        assert_eq!(term.contents(), "");
    }
}
