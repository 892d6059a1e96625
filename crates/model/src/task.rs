//! Tasks: what stands on top of an encoder.

use crate::Error;
use crate::parameters::ParameterId;
use std::collections::BTreeMap;

/// Weight and bias of a classifier over the pooled state, among a head's parameters: `<module>.weight`
/// `[classes, hidden]` and `<module>.bias` `[1, classes]`.
///
/// # Errors
/// When one is missing.
pub fn classification_head(module: &str, head: &BTreeMap<String, ParameterId>) -> Result<[ParameterId; 2], Error> {
    let get = |name: &str| {
        let name = format!("{module}.{name}");
        head.get(&name).copied().ok_or_else(|| Error::Misfit(format!("its head lacks {name}")))
    };
    Ok([get("weight")?, get("bias")?])
}
