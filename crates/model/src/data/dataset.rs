//! Token sequences packed end to end.

use super::DataError;

/// Encoded examples. Text `i` is `ids[offsets[i]..offsets[i + 1]]`; its class is `labels[i]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// Tokens of all texts, one after the other.
    pub ids: Vec<u32>,
    /// `[texts + 1]`; the first is 0.
    pub offsets: Vec<usize>,
    /// `[texts]`, or nothing when the texts are not labelled.
    pub labels: Vec<u32>,
}

/// Some texts of a [`Dataset`], packed the same way: no padding.
pub type Batch = Dataset;

impl Dataset {
    /// Packs sequences; `labels` has one a text, or is empty.
    ///
    /// # Panics
    /// When there are labels, but not one a text.
    pub fn pack(texts: &[impl AsRef<[u32]>], labels: Vec<u32>) -> Self {
        assert!(labels.is_empty() || labels.len() == texts.len(), "one label a text");
        let mut ids = Vec::with_capacity(texts.iter().map(|t| t.as_ref().len()).sum());
        let mut offsets = Vec::with_capacity(texts.len() + 1);
        offsets.push(0);
        for text in texts {
            ids.extend_from_slice(text.as_ref());
            offsets.push(ids.len());
        }
        Self { ids, offsets, labels }
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
        let labels = if self.labels.is_empty() { vec![] } else { indices.iter().map(|&i| self.labels[i]).collect() };
        Self::pack(&texts, labels)
    }

    /// Refuses tokens that a model of `vocabulary` tokens has no embedding for.
    ///
    /// # Errors
    /// When there is one, naming it.
    pub fn check_vocabulary(&self, vocabulary: usize) -> Result<(), DataError> {
        match self.ids.iter().find(|&&token| token as usize >= vocabulary) {
            Some(&token) => Err(DataError::TokenOutOfVocabulary { token, vocabulary }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset() -> Dataset {
        Dataset::pack(&[vec![1, 2, 3], vec![], vec![4]], vec![0, 1, 2])
    }

    #[test]
    fn texts_lie_end_to_end_without_padding() {
        let all = dataset();
        assert_eq!((all.ids.as_slice(), all.offsets.as_slice()), ([1, 2, 3, 4].as_slice(), [0, 3, 3, 4].as_slice()));
        assert_eq!((all.len(), all.tokens(), all.lengths().collect::<Vec<_>>()), (3, 4, vec![3, 0, 1]));
    }

    #[test]
    fn a_subset_keeps_the_order_asked_for_and_the_labels() {
        let some = dataset().subset(&[2, 0, 2]);
        assert_eq!(some, Dataset::pack(&[vec![4], vec![1, 2, 3], vec![4]], vec![2, 0, 2]));
        assert!(dataset().subset(&[]).is_empty());
    }

    #[test]
    fn unlabelled_texts_stay_unlabelled() {
        let some = Dataset::pack(&[vec![1], vec![2]], vec![]).subset(&[1]);
        assert_eq!((some.len(), some.labels.len()), (1, 0));
    }

    #[test]
    fn a_token_past_the_model_is_named() {
        let error = dataset().check_vocabulary(4).unwrap_err();
        assert!(error.to_string().starts_with("the tokenizer gives token 4, but the model knows 4 tokens"), "{error}");
        dataset().check_vocabulary(5).unwrap();
    }
}
