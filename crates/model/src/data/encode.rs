//! Texts into tokens, by the tokenizer that came with the model.

use super::{DataError, Dataset, Example, Labels, SECOND_TEXT, Targets};
use rayon::prelude::*;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokenizers::{
    EncodeInput, Encoding, PostProcessor, Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy,
};

/// A model's tokenizer with a bound on the tokens of a text.
#[derive(Debug, Clone)]
pub struct TextEncoder {
    tokenizer: Tokenizer,
    /// The same, but cutting nothing.
    whole: Tokenizer,
    path: PathBuf,
    max_length: usize,
    vocabulary: usize,
    /// Whether tokens of a pair's second text are marked.
    segments: bool,
    on_text: Option<OnText>,
}

/// Told of every text that became tokens, from several threads.
#[derive(Clone)]
struct OnText(Arc<dyn Fn() + Send + Sync>);

impl fmt::Debug for OnText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnText")
    }
}

impl TextEncoder {
    /// With the tokenizer of `model`. A text becomes at most `max_length` tokens, special tokens such as `[CLS]` included;
    /// what is longer loses its end. Padding that the tokenizer asks for is switched off.
    ///
    /// Every token is checked against the model's `vocabulary`; with `segments` it tells the texts of a pair apart.
    ///
    /// # Errors
    /// When `max_length` leaves no room beside the special tokens.
    pub fn new(
        mut tokenizer: Tokenizer,
        model: &Path,
        max_length: usize,
        vocabulary: usize,
        segments: bool,
    ) -> Result<Self, DataError> {
        let path = model.to_path_buf();
        let error = |reason: String| DataError::Tokenizer { path: path.clone(), reason };
        let special = tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(false));
        if max_length <= special {
            return Err(error(format!(
                "it adds {special} special tokens, so a maximum length of {max_length} leaves no room for text"
            )));
        }
        let truncation = TruncationParams {
            direction: TruncationDirection::Right,
            max_length,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        };
        tokenizer.with_padding(None);
        let mut whole = tokenizer.clone();
        whole.with_truncation(None).map_err(|e| error(e.to_string()))?;
        tokenizer.with_truncation(Some(truncation)).map_err(|e| error(e.to_string()))?;
        Ok(Self { tokenizer, whole, path, max_length, vocabulary, segments, on_text: None })
    }

    /// The same, which says of every text that it is done, from several threads.
    pub fn watched(self, on_text: impl Fn() + Send + Sync + 'static) -> Self {
        Self { on_text: Some(OnText(Arc::new(on_text))), ..self }
    }

    /// All that its tokens hang on.
    ///
    /// # Errors
    /// When the tokenizer cannot be written.
    pub fn identity(&self) -> Result<String, DataError> {
        let tokenizer = self.tokenizer.to_string(false).map_err(|e| self.unfit(e.to_string()))?;
        Ok(format!("{} {} {}\n{tokenizer}", self.max_length, self.vocabulary, self.segments))
    }

    /// The tokenizer, which cuts nothing.
    pub fn whole(&self) -> &Tokenizer {
        &self.whole
    }

    pub(super) fn refused(&self, reason: String) -> DataError {
        self.unfit(format!("it refuses a text: {reason}"))
    }

    pub(super) fn unfit(&self, reason: String) -> DataError {
        DataError::Tokenizer { path: self.path.clone(), reason }
    }

    /// The dataset, if the model knows all its tokens.
    pub(super) fn checked(&self, dataset: Dataset) -> Result<Dataset, DataError> {
        dataset.check_vocabulary(self.vocabulary)?;
        Ok(dataset)
    }

    /// Most tokens of a text.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The tokens of labelled texts or pairs, in their order.
    ///
    /// # Errors
    /// When a label is not among `labels`, or a token is not in the model's vocabulary.
    pub fn examples(&self, examples: &[Example], labels: &Labels) -> Result<Dataset, DataError> {
        let classes = examples.iter().map(|e| labels.class_of(e)).collect::<Result<Vec<u32>, _>>()?;
        let texts: Vec<_> = examples.iter().map(|e| (e.text.as_str(), e.second.as_deref())).collect();
        Ok(Dataset { targets: Targets::Classes(classes), ..self.texts(&texts)? })
    }

    /// The tokens of texts, or of pairs of texts, without labels, in their order.
    ///
    /// # Errors
    /// When a token is not in the model's vocabulary.
    pub fn texts(&self, texts: &[(&str, Option<&str>)]) -> Result<Dataset, DataError> {
        let tokens = self.each(texts, |&(text, second)| self.tokens(text, second))?;
        self.checked(Dataset::pack(&tokens, Targets::None))
    }

    /// What `encode` makes of every item, in parallel, in their order.
    pub(super) fn each<I: Sync, T: Send>(
        &self,
        items: &[I],
        encode: impl Fn(&I) -> Result<T, DataError> + Sync,
    ) -> Result<Vec<T>, DataError> {
        let one = |item| {
            let encoded = encode(item)?;
            if let Some(OnText(on_text)) = &self.on_text {
                on_text();
            }
            Ok(encoded)
        };
        // Gathered first, so that the first bad record is told however threads take turns.
        items.par_iter().map(one).collect::<Vec<Result<T, DataError>>>().into_iter().collect()
    }

    fn tokens(&self, text: &str, second: Option<&str>) -> Result<Vec<u32>, DataError> {
        let input = second.map_or_else(|| EncodeInput::from(text), |second| EncodeInput::from((text, second)));
        match self.tokenizer.encode_fast(input, true) {
            Ok(encoding) if encoding.is_empty() => {
                Err(self
                    .unfit(format!("it makes no token of {text:?}; a classifier needs at least one, such as [CLS]")))
            }
            Ok(encoding) => Ok(self.marked(&encoding)),
            Err(e) => Err(self.refused(e.to_string())),
        }
    }

    /// The tokens, those of a pair's second text marked where the model tells them apart.
    pub(super) fn marked(&self, encoding: &Encoding) -> Vec<u32> {
        let marked = |(&id, &kind): (&u32, &u32)| if self.segments && kind > 0 { id | SECOND_TEXT } else { id };
        encoding.get_ids().iter().zip(encoding.get_type_ids()).map(marked).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Origin;
    use crate::io::read_tokenizer;

    /// Words by number, `[CLS] … [SEP]` around a text, and fixed padding as sentence-transformers models ask for it.
    const TOKENIZER: &str = r#"{
        "version": "1.0", "truncation": null,
        "padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [], "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]},
                               "[SEP]": {"id": "[SEP]", "ids": [2], "tokens": ["[SEP]"]}}},
        "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "[UNK]",
                  "vocab": {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "wheat": 4, "oil": 5, "price": 6}}
    }"#;

    fn encoder(max_length: usize, vocabulary: usize) -> Result<TextEncoder, DataError> {
        let tokenizer = Tokenizer::from_bytes(TOKENIZER).unwrap();
        TextEncoder::new(tokenizer, "tokenizer.json".as_ref(), max_length, vocabulary, true)
    }

    fn example(text: &str, label: &str) -> Example {
        Example {
            text: text.into(),
            label: label.into(),
            second: None,
            site: None,
            origin: Origin::new("a.tsv".as_ref(), 2),
        }
    }

    #[test]
    fn a_text_is_cut_to_the_length_with_its_special_tokens_and_never_padded() {
        let encoder = encoder(4, 7).unwrap();
        let examples = [example("Oil price wheat", "b"), example("", "a"), example("gold", "b")];
        let labels = Labels::of(&examples).unwrap();
        let dataset = encoder.examples(&examples, &labels).unwrap();
        assert_eq!(
            dataset,
            Dataset::pack(&[vec![1, 5, 6, 2], vec![1, 2], vec![1, 3, 2]], Targets::Classes(vec![1, 0, 1]))
        );
    }

    #[test]
    fn the_second_text_of_a_pair_is_marked_and_the_longer_one_is_cut() {
        let tokenizer = Tokenizer::from_bytes(TOKENIZER).unwrap();
        let pair = [("oil price wheat oil", Some("wheat"))];
        for (segments, last) in [(true, 4 | SECOND_TEXT), (false, 4)] {
            let encoder = TextEncoder::new(tokenizer.clone(), "t".as_ref(), 4, 7, segments).unwrap();
            assert_eq!(encoder.texts(&pair).unwrap().ids, [5, 6, 4, last]);
        }
    }

    #[test]
    fn of_several_bad_records_the_first_is_told_though_another_thread_is_faster() {
        let lines: Vec<u64> = (1..=64).collect();
        let refuse = |&line: &u64| -> Result<(), DataError> {
            std::thread::sleep(std::time::Duration::from_millis(if line == 1 { 100 } else { 0 }));
            Err(DataError::NotUtf8 { origin: Origin::new("a.tsv".as_ref(), line) })
        };
        let error = encoder(8, 7).unwrap().each(&lines, refuse).unwrap_err();
        assert!(error.to_string().starts_with("a.tsv:1: "), "{error}");
    }

    #[test]
    fn a_model_with_fewer_tokens_is_refused() {
        let encoder = encoder(8, 6).unwrap();
        let error = encoder.texts(&[("wheat price", None)]).unwrap_err();
        assert!(error.to_string().contains("gives token 6, but the model knows 6"), "{error}");
    }

    #[test]
    fn what_is_no_tokenizer_says_so() {
        assert!(encoder(2, 7).unwrap_err().to_string().contains("a maximum length of 2 leaves no room"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let message = || read_tokenizer(&path).unwrap_err().to_string();
        assert!(message().contains("tokenizer.json: missing; a model folder needs it"));
        std::fs::write(&path, "{}").unwrap();
        assert!(message().contains("not a tokenizer that can be read"));
    }
}
