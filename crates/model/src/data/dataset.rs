//! Token sequences packed end to end.

use super::{DataError, Spans};
use fedpipe_kernels::IGNORED;
use std::ops::Range;

/// What texts are trained and measured on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// Nothing: they are only read.
    None,
    /// The class of each text, `[texts]`.
    Classes(Vec<u32>),
    /// The token to write after each token, or [`IGNORED`](fedpipe_kernels::IGNORED), `[tokens]`.
    Tokens(Vec<u32>),
    /// Where the answer to a question stands in each text.
    Spans(Spans),
}

/// Marks a token of the second text of a pair, where the model tells the two apart.
pub const SECOND_TEXT: u32 = 1 << 31;

/// Encoded examples. Text `i` is `ids[offsets[i]..offsets[i + 1]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// Tokens of all texts, one after the other; those of a pair's second text may carry [`SECOND_TEXT`].
    pub ids: Vec<u32>,
    /// `[texts + 1]`; the first is 0.
    pub offsets: Vec<usize>,
    /// What is to be learnt of them.
    pub targets: Targets,
}

/// So many places, evenly spread over `all`; no more than there are.
pub fn spread(all: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = count.min(all);
    (0..count).map(move |i| i * all / count)
}

/// Some texts of a [`Dataset`], packed the same way: no padding.
pub type Batch = Dataset;

impl Dataset {
    /// Packs sequences.
    ///
    /// # Panics
    /// When there are classes or spans, but not one a text, or next tokens, but not one a token.
    pub fn pack(texts: &[impl AsRef<[u32]>], targets: Targets) -> Self {
        let mut ids = Vec::with_capacity(texts.iter().map(|t| t.as_ref().len()).sum());
        let mut offsets = Vec::with_capacity(texts.len() + 1);
        offsets.push(0);
        for text in texts {
            ids.extend_from_slice(text.as_ref());
            offsets.push(ids.len());
        }
        match &targets {
            Targets::None => {}
            Targets::Classes(classes) => assert_eq!(classes.len(), texts.len(), "one class a text"),
            Targets::Tokens(next) => assert_eq!(next.len(), ids.len(), "one next token a token"),
            Targets::Spans(spans) => assert_eq!(spans.places.len(), texts.len(), "one span a text"),
        }
        Self { ids, offsets, targets }
    }

    /// Number of texts.
    pub fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Whether there are no texts.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of all texts.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Tokens of each text.
    pub fn lengths(&self) -> impl Iterator<Item = usize> + Clone {
        self.offsets.windows(2).map(|pair| pair[1] - pair[0])
    }

    /// The class of each text; none where texts have no classes.
    pub fn classes(&self) -> &[u32] {
        match &self.targets {
            Targets::Classes(classes) => classes,
            Targets::None | Targets::Tokens(_) | Targets::Spans(_) => &[],
        }
    }

    /// The texts of each example: one, but where a passage was cut into several.
    pub fn by_example(&self) -> Vec<Range<usize>> {
        match &self.targets {
            Targets::Spans(spans) => spans.by_question(),
            Targets::None | Targets::Classes(_) | Targets::Tokens(_) => (0..self.len()).map(|i| i..i + 1).collect(),
        }
    }

    /// The tokens of one text.
    ///
    /// # Panics
    /// When there is no text `index`.
    pub fn text(&self, index: usize) -> &[u32] {
        &self.ids[self.offsets[index]..self.offsets[index + 1]]
    }

    /// The texts `indices` in that order, once for each mention.
    ///
    /// # Panics
    /// When an index reaches past the texts.
    pub fn subset(&self, indices: &[usize]) -> Self {
        let texts: Vec<&[u32]> = indices.iter().map(|&i| self.text(i)).collect();
        let targets = match &self.targets {
            Targets::None => Targets::None,
            Targets::Classes(classes) => Targets::Classes(indices.iter().map(|&i| classes[i]).collect()),
            Targets::Tokens(next) => {
                let of = |&i: &usize| &next[self.offsets[i]..self.offsets[i + 1]];
                Targets::Tokens(indices.iter().flat_map(of).copied().collect())
            }
            Targets::Spans(spans) => Targets::Spans(spans.subset(indices)),
        };
        Self::pack(&texts, targets)
    }

    /// All tokens one after the other, cut into texts of `length`; what is left at the end without anything to learn is
    /// dropped. Only for tokens that are to be written.
    pub fn packed(&self, length: usize) -> Self {
        let Targets::Tokens(next) = &self.targets else { return self.clone() };
        let blocks = self.ids.chunks(length.max(1)).zip(next.chunks(length.max(1)));
        let blocks = blocks.filter(|(_, next)| next.iter().any(|&token| token != IGNORED));
        let (ids, next): (Vec<&[u32]>, Vec<&[u32]>) = blocks.unzip();
        Self::pack(&ids, Targets::Tokens(next.concat()))
    }

    /// The texts of so many examples, evenly spread over all; all of them for 0 or where there are no more.
    pub fn spread(&self, count: usize) -> Self {
        let examples = self.by_example();
        match examples.len() {
            all if count == 0 || count >= all => self.clone(),
            all => self.subset(&spread(all, count).flat_map(|i| examples[i].clone()).collect::<Vec<_>>()),
        }
    }

    /// The same to learn from alone: answers are not to be read back as text, so their passages are let go.
    pub fn without_passages(mut self) -> Self {
        if let Targets::Spans(spans) = &mut self.targets {
            spans.questions = None;
        }
        self
    }

    /// Refuses tokens that a model of `vocabulary` tokens has no embedding for.
    ///
    /// # Errors
    /// When there is one, naming it.
    pub fn check_vocabulary(&self, vocabulary: usize) -> Result<(), DataError> {
        match self.ids.iter().map(|id| id & !SECOND_TEXT).find(|&token| token as usize >= vocabulary) {
            Some(token) => Err(DataError::TokenOutOfVocabulary { token, vocabulary }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset() -> Dataset {
        Dataset::pack(&[vec![1, 2, 3], vec![], vec![4]], Targets::Classes(vec![0, 1, 2]))
    }

    #[test]
    fn texts_lie_end_to_end_without_padding() {
        let all = dataset();
        assert_eq!((all.ids.as_slice(), all.offsets.as_slice()), ([1, 2, 3, 4].as_slice(), [0, 3, 3, 4].as_slice()));
        assert_eq!((all.len(), all.tokens(), all.lengths().collect::<Vec<_>>()), (3, 4, vec![3, 0, 1]));
    }

    #[test]
    fn a_subset_keeps_the_order_asked_for_and_the_targets() {
        let some = dataset().subset(&[2, 0, 2]);
        let classes = Targets::Classes(vec![2, 0, 2]);
        assert_eq!(some, Dataset::pack(&[vec![4], vec![1, 2, 3], vec![4]], classes));
        let next = Targets::Tokens(vec![2, 3, 9, 8]);
        let some = Dataset::pack(&[vec![1, 2, 3], vec![], vec![4]], next).subset(&[2, 1, 0]);
        assert_eq!(some.targets, Targets::Tokens(vec![8, 2, 3, 9]));
        assert!(dataset().subset(&[]).is_empty());
        assert_eq!(dataset().spread(2), dataset().subset(&[0, 1]));
        assert_eq!((dataset().spread(0), dataset().spread(9)), (dataset(), dataset()));
    }

    #[test]
    fn unlabelled_texts_stay_unlabelled() {
        let some = Dataset::pack(&[vec![1], vec![2]], Targets::None).subset(&[1]);
        assert_eq!((some.len(), some.targets), (1, Targets::None));
    }

    #[test]
    fn a_token_past_the_model_is_named() {
        let error = dataset().check_vocabulary(4).unwrap_err();
        assert!(error.to_string().starts_with("the tokenizer gives token 4, but the model knows 4 tokens"), "{error}");
        dataset().check_vocabulary(5).unwrap();
    }
}
