//! Tasks: what stands on top of a model.

use crate::Error;
use crate::ops::ClassifierHead;
use crate::parameters::ParameterId;
use std::collections::BTreeMap;

/// The classifier over the pooled state among a head's parameters: `<module>.weight` `[classes, hidden]`, and
/// `<module>.bias` `[1, classes]` where it has one.
///
/// # Errors
/// When the weight is missing.
pub fn classification_head(module: &str, head: &BTreeMap<String, ParameterId>) -> Result<ClassifierHead, Error> {
    let get = |name: &str| head.get(&format!("{module}.{name}")).copied();
    let weight = get("weight").ok_or_else(|| Error::Misfit(format!("its head lacks {module}.weight")))?;
    Ok(ClassifierHead { weight, bias: get("bias") })
}
