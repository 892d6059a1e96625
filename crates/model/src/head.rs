//! Heads of classifiers and of models that find answers, which train along with an adapter: what Hugging Face's classes
//! have, as data.

use crate::Error;
use crate::ops::{ClassifierHead, HeadActivation, TrainedLinear};
use crate::parameters::ParameterId;
use std::collections::BTreeMap;

/// A head over states, pooled or of every token: a linear layer, or two with an activation between them.
#[derive(Debug, PartialEq, Eq)]
pub struct HeadLayout {
    /// Module of a layer `[hidden, hidden]` before the output, and what follows that layer.
    pub inner: Option<(&'static str, HeadActivation)>,
    /// Module of the output `[classes, hidden]`.
    pub output: &'static str,
    /// Whether the layers have biases.
    pub bias: bool,
}

/// Over a pooler that belongs to the model: BERT.
pub const POOLED: HeadLayout = HeadLayout { inner: None, output: "classifier", bias: true };
/// RoBERTa.
pub const ROBERTA: HeadLayout =
    HeadLayout { inner: Some(("classifier.dense", HeadActivation::Tanh)), output: "classifier.out_proj", bias: true };
/// DistilBERT.
pub const DISTILBERT: HeadLayout =
    HeadLayout { inner: Some(("pre_classifier", HeadActivation::Relu)), output: "classifier", bias: true };
/// Over the last token of a language model.
pub const SCORE: HeadLayout = HeadLayout { inner: None, output: "score", bias: false };

/// Over every token of an encoder: where an answer begins, and where it ends.
pub const SPAN: HeadLayout = HeadLayout { inner: None, output: "qa_outputs", bias: true };

/// Every head.
pub const HEADS: [&HeadLayout; 5] = [&POOLED, &ROBERTA, &DISTILBERT, &SCORE, &SPAN];

/// What stands on a model's layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadKind {
    /// A classifier with so many classes.
    Classes(usize),
    /// What finds the span of an answer.
    Span,
    /// A language model's own frozen output.
    Vocabulary,
}

impl HeadLayout {
    fn layers(&self) -> impl Iterator<Item = &'static str> {
        self.inner.map(|(module, _)| module).into_iter().chain([self.output])
    }

    /// Rows and columns of its tensors, by name; a bias has one row.
    pub fn shapes(&self, hidden: usize, classes: usize) -> BTreeMap<String, (usize, usize)> {
        let mut shapes = BTreeMap::new();
        for module in self.layers() {
            let outputs = if module == self.output { classes } else { hidden };
            shapes.insert(format!("{module}.weight"), (outputs, hidden));
            if self.bias {
                shapes.insert(format!("{module}.bias"), (1, outputs));
            }
        }
        shapes
    }

    /// The head among the parameters of an adapter's head, by the names of [`HeadLayout::shapes`].
    ///
    /// # Errors
    /// When one is missing.
    pub fn parameters(&self, parameters: &BTreeMap<String, ParameterId>) -> Result<ClassifierHead, Error> {
        let get = |name: String| match parameters.get(&name) {
            Some(&id) => Ok(id),
            None => Err(Error::Misfit(format!("its head lacks {name}"))),
        };
        let layer = |module: &str| {
            let bias = self.bias.then(|| get(format!("{module}.bias"))).transpose()?;
            Ok::<_, Error>(TrainedLinear { weight: get(format!("{module}.weight"))?, bias })
        };
        let inner = self.inner.map(|(module, activation)| Ok::<_, Error>((layer(module)?, activation))).transpose()?;
        Ok(ClassifierHead { inner, output: layer(self.output)? })
    }
}

/// The modules of all heads at the root of a model, which PEFT saves whole.
pub(crate) fn modules() -> impl Iterator<Item = &'static str> {
    HEADS.iter().flat_map(|head| head.layers()).filter_map(|module| module.split('.').next())
}

/// Whether a tensor or a module belongs to a head.
pub(crate) fn is_head(name: &str) -> bool {
    name.split('.').next().is_some_and(|first| modules().any(|module| module == first))
}

/// The modules of all heads, for messages.
pub(crate) fn module_names() -> String {
    let names: std::collections::BTreeSet<&str> = modules().collect();
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and shapes of the heads of `RobertaForSequenceClassification` and `DistilBertForSequenceClassification`.
    #[test]
    fn heads_have_the_tensors_of_their_classes() {
        let shapes = |head: &HeadLayout| head.shapes(4, 3).into_iter().collect::<Vec<_>>();
        let named = |list: &[(&str, (usize, usize))]| list.iter().map(|(n, s)| (n.to_string(), *s)).collect::<Vec<_>>();
        assert_eq!(shapes(&SCORE), named(&[("score.weight", (3, 4))]));
        assert_eq!(
            shapes(&ROBERTA),
            named(&[
                ("classifier.dense.bias", (1, 4)),
                ("classifier.dense.weight", (4, 4)),
                ("classifier.out_proj.bias", (1, 3)),
                ("classifier.out_proj.weight", (3, 4)),
            ])
        );
        assert_eq!(
            shapes(&DISTILBERT),
            named(&[
                ("classifier.bias", (1, 3)),
                ("classifier.weight", (3, 4)),
                ("pre_classifier.bias", (1, 4)),
                ("pre_classifier.weight", (4, 4)),
            ])
        );
        assert_eq!(module_names(), "`classifier`, `pre_classifier`, `qa_outputs`, `score`");
        assert!(is_head("classifier.dense.weight") && is_head("score") && !is_head("pooler.dense.weight"));
    }

    #[test]
    fn a_head_that_lacks_a_tensor_is_refused_by_its_name() {
        let mut parameters = crate::parameters::Parameters::default();
        let mut id = || parameters.add(fedpipe_core::Matrix::zeros(1, 1));
        let mut ids: BTreeMap<String, ParameterId> =
            DISTILBERT.shapes(4, 3).into_keys().map(|name| (name, id())).collect();
        assert!(DISTILBERT.parameters(&ids).is_ok());
        ids.remove("pre_classifier.bias");
        let error = DISTILBERT.parameters(&ids).unwrap_err().to_string();
        assert!(error.ends_with("its head lacks pre_classifier.bias"), "{error}");
    }
}
