//! What is wrong with a configuration, shown at the line and the option that caused it.

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use std::fmt;
use std::ops::Range;
use std::path::Path;

/// Problems shown at once; the rest are counted.
const SHOWN: usize = 10;

/// The texts that a configuration comes from: the file, then every `--set` option.
#[derive(Debug)]
pub(super) struct Sources(Vec<(String, String)>);

impl Sources {
    pub fn new(file: &Path, text: String, options: &[String]) -> Self {
        let mut sources = vec![(file.display().to_string(), text)];
        sources.extend(options.iter().map(|option| ("--set".to_string(), option.clone())));
        Self(sources)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn text(&self, source: usize) -> &str {
        &self.0[source].1
    }
}

/// A stretch of one source, in bytes.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub source: usize,
    pub span: Range<usize>,
}

impl Place {
    pub fn new(source: usize, span: Range<usize>) -> Self {
        Self { source, span }
    }
}

/// One thing that is wrong.
#[derive(Debug)]
pub(super) struct Problem {
    title: String,
    at: Option<Place>,
    help: Option<String>,
}

impl Problem {
    pub fn new(title: impl Into<String>, at: impl Into<Option<Place>>) -> Self {
        Self { title: title.into(), at: at.into(), help: None }
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Names the candidate most like `name`, or all of them when none is like it.
    pub fn nearest<'a>(self, name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Self {
        let candidates: Vec<&str> = candidates.into_iter().collect();
        match (nearest(name, &candidates), candidates.as_slice()) {
            (Some(near), _) => self.help(format!("did you mean `{near}`?")),
            (None, []) => self,
            (None, all) => self.help(format!("known: {}", all.join(", "))),
        }
    }

    fn render(&self, sources: &Sources) -> String {
        let title = Level::ERROR.no_name().primary_title(self.title.as_str());
        let mut report = Group::with_title(title);
        if let Some(Place { source, span }) = &self.at {
            let (name, text) = &sources.0[*source];
            let annotation = AnnotationKind::Primary.span(span.start.min(text.len())..span.end.min(text.len()));
            report = report.element(Snippet::source(text.as_str()).path(name.as_str()).annotation(annotation));
        } else {
            report = report.element(Origin::path(sources.0[0].0.as_str()));
        }
        if let Some(help) = &self.help {
            report = report.element(Level::HELP.message(help.as_str()));
        }
        Renderer::plain().render(&[report])
    }
}

/// The candidate most like `name`; none when every one is rather another word.
pub(super) fn nearest<'a>(name: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let likeness = |candidate: &str| strsim::jaro_winkler(&name.to_lowercase(), &candidate.to_lowercase());
    let best = candidates.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) > 0.7).then_some(*best)
}

/// A configuration that cannot be used; shows every problem with its file, line and the text in question.
#[derive(Debug)]
pub struct ConfigError(String);

impl ConfigError {
    pub(super) fn of(sources: &Sources, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.at.as_ref().map(|at| (at.source, at.span.start)));
        let mut shown: Vec<String> = problems.iter().take(SHOWN).map(|problem| problem.render(sources)).collect();
        if problems.len() > SHOWN {
            shown.push(format!("… and {} more", problems.len() - SHOWN));
        }
        Self(shown.join("\n\n"))
    }

    /// An error of TOML's syntax.
    pub(super) fn of_toml(sources: &Sources, source: usize, error: &toml::de::Error) -> Self {
        let at = error.span().map(|span| Place::new(source, span));
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        Self::of(sources, vec![Problem::new(format!("not valid TOML: {message}"), at)])
    }

    pub(super) fn of_file(file: &Path, reason: impl fmt::Display) -> Self {
        Self(format!("cannot read {}: {reason}", file.display()))
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}
