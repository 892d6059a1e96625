//! How the numbers of a tensor are stored: plain floats, or blocks of small integers with scales.

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use rayon::prelude::*;

/// Values that are expanded at once; a multiple of every block, and small beside a tensor.
const CHUNK: usize = 1 << 16;

/// A format, by its number in the file. The blocks are candle's.
const FORMATS: [(u32, &str, GgmlDType); 13] = [
    (0, "F32", GgmlDType::F32),
    (1, "F16", GgmlDType::F16),
    (2, "Q4_0", GgmlDType::Q4_0),
    (3, "Q4_1", GgmlDType::Q4_1),
    (6, "Q5_0", GgmlDType::Q5_0),
    (7, "Q5_1", GgmlDType::Q5_1),
    (8, "Q8_0", GgmlDType::Q8_0),
    (10, "Q2_K", GgmlDType::Q2K),
    (11, "Q3_K", GgmlDType::Q3K),
    (12, "Q4_K", GgmlDType::Q4K),
    (13, "Q5_K", GgmlDType::Q5K),
    (14, "Q6_K", GgmlDType::Q6K),
    (30, "BF16", GgmlDType::BF16),
];

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format(GgmlDType);

impl Format {
    pub(super) fn of_number(number: u32) -> Result<Self, String> {
        FORMATS.iter().find(|row| row.0 == number).map(|row| Self(row.2)).ok_or_else(|| {
            let known = FORMATS.map(|row| row.1).join(", ");
            format!("is stored as type {number}, which cannot be read; {known} can")
        })
    }

    pub(super) fn name(self) -> &'static str {
        FORMATS.iter().find(|row| row.2 == self.0).map_or("?", |row| row.1)
    }

    /// Bytes of a tensor, of which each row is a whole number of blocks.
    pub(super) fn size(self, shape: &[usize]) -> Result<usize, String> {
        let block = self.0.block_size();
        let row = shape.last().copied().unwrap_or_default();
        if !row.is_multiple_of(block) {
            return Err(format!("has rows of {row} values, but {} has blocks of {block}", self.name()));
        }
        let values = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
        let bytes = values.and_then(|values| (values / block).checked_mul(self.0.type_size()));
        bytes.ok_or_else(|| format!("is {shape:?}, which no memory holds"))
    }

    /// The values of `bytes`, which are a whole number of blocks.
    pub(super) fn dequantise(self, bytes: &[u8]) -> candle_core::Result<Vec<f32>> {
        let (block, size) = (self.0.block_size(), self.0.type_size());
        let mut values = vec![0.0; bytes.len() / size * block];
        let pieces = values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK / block * size));
        pieces.try_for_each(|(to, from)| {
            // candle reads the bytes as blocks in place, so they have to be aligned as those are.
            let mut aligned = vec![0u32; from.len().div_ceil(size_of::<u32>())];
            let aligned = &mut bytemuck::cast_slice_mut::<u32, u8>(&mut aligned)[..from.len()];
            aligned.copy_from_slice(from);
            let blocks = qtensor_from_ggml(self.0, aligned, vec![to.len()], &Device::Cpu)?;
            to.copy_from_slice(&blocks.dequantize(&Device::Cpu)?.to_vec1::<f32>()?);
            candle_core::Result::Ok(())
        })?;
        Ok(values)
    }
}
