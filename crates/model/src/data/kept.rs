//! Datasets as bytes, to be kept from one run to the next.

use super::{Dataset, Questions, Span, Spans, Targets};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::HashMap;
use std::sync::Arc;

const IDS: &str = "ids";
const OFFSETS: &str = "offsets";
const CLASSES: &str = "classes";
const NEXT: &str = "next";
const SPANS: &str = "spans";
/// JSON.
const QUESTIONS: &str = "questions";
const NOTE: &str = "note";

impl Dataset {
    /// As a safetensors file with a note: [`Dataset::from_bytes`] reads both.
    ///
    /// # Errors
    /// When the texts are too long for the format.
    pub fn to_bytes(&self, note: String) -> Result<Vec<u8>, safetensors::SafeTensorError> {
        let numbers = |values: &[u32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let offsets = self.offsets.iter().flat_map(|&offset| (offset as u64).to_le_bytes()).collect();
        let mut tensors = vec![(IDS, Dtype::U32, numbers(&self.ids)), (OFFSETS, Dtype::U64, offsets)];
        match &self.targets {
            Targets::None => {}
            Targets::Classes(classes) => tensors.push((CLASSES, Dtype::U32, numbers(classes))),
            Targets::Tokens(next) => tensors.push((NEXT, Dtype::U32, numbers(next))),
            Targets::Spans(spans) => {
                let places = spans.places.iter().flat_map(|span| [span.question, span.window, span.start, span.end]);
                tensors.push((SPANS, Dtype::U32, numbers(&places.collect::<Vec<u32>>())));
                if let Some(questions) = &spans.questions {
                    let json = serde_json::to_vec(&**questions)
                        .map_err(|error| safetensors::SafeTensorError::IoError(error.into()))?;
                    tensors.push((QUESTIONS, Dtype::U8, json));
                }
            }
        }
        let views = tensors.iter().map(|(name, dtype, bytes)| {
            TensorView::new(*dtype, vec![bytes.len() * 8 / dtype.bitsize()], bytes).map(|view| (*name, view))
        });
        let views: Vec<_> = views.collect::<Result<_, _>>()?;
        safetensors::serialize(views, Some(HashMap::from([(NOTE.to_string(), note)])))
    }

    /// What [`Dataset::to_bytes`] wrote, with its note; nothing where the bytes are something else.
    pub fn from_bytes(bytes: &[u8]) -> Option<(Self, String)> {
        let file = SafeTensors::deserialize(bytes).ok()?;
        let (_, header) = SafeTensors::read_metadata(bytes).ok()?;
        let note = header.metadata().as_ref()?.get(NOTE)?.clone();
        let tensor = |name: &str, dtype: Dtype| {
            file.tensor(name).ok().filter(|tensor| tensor.dtype() == dtype).map(|tensor| tensor.data())
        };
        let numbers = |name: &str| {
            tensor(name, Dtype::U32).map(|bytes| bytes.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect())
        };
        let ids: Vec<u32> = numbers(IDS)?;
        let offsets = tensor(OFFSETS, Dtype::U64)?.as_chunks().0.iter();
        let offsets: Vec<usize> = offsets.map(|&b| u64::from_le_bytes(b) as usize).collect();
        if offsets.first() != Some(&0) || offsets.last() != Some(&ids.len()) || !offsets.is_sorted() {
            return None;
        }
        let texts = offsets.len() - 1;
        let targets = match (numbers(CLASSES), numbers(NEXT), numbers(SPANS)) {
            (None, None, None) => Targets::None,
            (Some(classes), None, None) if classes.len() == texts => Targets::Classes(classes),
            (None, Some(next), None) if next.len() == ids.len() => Targets::Tokens(next),
            (None, None, Some(places)) if places.len() == 4 * texts => {
                let place = |&[question, window, start, end]: &[u32; 4]| Span { question, window, start, end };
                let places: Vec<Span> = places.as_chunks().0.iter().map(place).collect();
                let questions: Option<Questions> = match tensor(QUESTIONS, Dtype::U8) {
                    Some(json) => Some(serde_json::from_slice(json).ok()?),
                    None => None,
                };
                if questions.as_ref().is_some_and(|questions| !places.iter().all(|&place| questions.has(place))) {
                    return None;
                }
                Targets::Spans(Spans { places, questions: questions.map(Arc::new) })
            }
            _ => return None,
        };
        Some((Self { ids, offsets, targets }, note))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_back_as_it_was() {
        let texts = [vec![1, 2 | super::super::SECOND_TEXT, 3], vec![], vec![4]];
        let span = |question, window| Span { question, window, start: 1, end: 2 };
        let spans = |questions| Targets::Spans(Spans { places: vec![span(0, 0), span(0, 1), span(1, 2)], questions });
        let questions = Arc::new(Questions::of_windows(2, 3));
        for targets in [
            Targets::None,
            Targets::Classes(vec![2, 0, 1]),
            Targets::Tokens(vec![2, u32::MAX, 4, 0]),
            spans(None),
            spans(Some(questions.clone())),
        ] {
            let data = Dataset::pack(&texts, targets);
            let bytes = data.to_bytes("three texts".into()).unwrap();
            assert_eq!(Dataset::from_bytes(&bytes), Some((data, "three texts".into())));
            for end in 0..bytes.len() {
                assert_eq!(Dataset::from_bytes(&bytes[..end]), None);
            }
        }
        // A window that the questions do not have.
        let data =
            Dataset::pack(&texts[..1], Targets::Spans(Spans { places: vec![span(0, 3)], questions: Some(questions) }));
        assert_eq!(Dataset::from_bytes(&data.to_bytes(String::new()).unwrap()), None);
    }
}
