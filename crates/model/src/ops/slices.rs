//! Views of CPU tensors as slices.

use candle_core::{CpuStorage, Device, Error, Layout, Result, Shape, Storage, Tensor};

/// The values of a contiguous `f32` storage.
pub(super) fn of<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| Error::Msg("a fast operation needs contiguous tensors; call contiguous() first".into()))?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Calls `body` with the values of a tensor, made contiguous if it is not.
pub(super) fn with<R>(tensor: &Tensor, body: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => body(of(storage, layout)?),
        _ => Err(Error::Msg("a fast operation runs on the CPU only; use Ops::Reference elsewhere".into())),
    }
}

/// A CPU tensor over `values`.
pub(super) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}
