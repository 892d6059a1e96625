//! safetensors files.

use super::IoError;
use fedpipe_kernels::{MappedFile, map_file};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo, View};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// A safetensors file, mapped into memory: a tensor is read from the disk when it is asked for.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    bytes: MappedFile,
    /// Where the tensors' bytes begin.
    start: usize,
    metadata: Metadata,
}

impl TensorFile {
    /// Opens a file and checks that it is whole.
    ///
    /// # Errors
    /// When it is missing or truncated, or its header contradicts itself.
    pub fn open(path: &Path) -> Result<Self, IoError> {
        let bytes = map_file(path).map_err(IoError::at(path))?;
        let (header, metadata) = SafeTensors::read_metadata(&bytes)
            .map_err(|e| IoError::Safetensors { path: path.into(), reason: e.to_string() })?;
        Ok(Self { path: path.into(), bytes, start: size_of::<u64>() + header, metadata })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of its tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.metadata.offset_keys();
        names.sort_unstable();
        names
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// When it is not there.
    pub fn shape(&self, name: &str) -> Result<&[usize], IoError> {
        Ok(&self.info(name)?.shape)
    }

    /// The values of a tensor, row by row.
    ///
    /// # Errors
    /// When it is not there or holds something else than F32, F16 or BF16.
    pub fn values(&self, name: &str) -> Result<Vec<f32>, IoError> {
        let info = self.info(name)?;
        let (begin, end) = info.data_offsets;
        let Some(bytes) = self.bytes.get(self.start..).and_then(|data| data.get(begin..end)) else {
            return Err(IoError::Safetensors { path: self.path.clone(), reason: format!("`{name}` is cut off") });
        };
        match info.dtype {
            Dtype::F32 => Ok(numbers(bytes, f32::from_le_bytes)),
            Dtype::F16 => Ok(numbers(bytes, |b| f16::from_le_bytes(b).to_f32())),
            Dtype::BF16 => Ok(numbers(bytes, |b| bf16::from_le_bytes(b).to_f32())),
            other => Err(IoError::Dtype { path: self.path.clone(), name: name.into(), dtype: format!("{other:?}") }),
        }
    }

    fn info(&self, name: &str) -> Result<&TensorInfo, IoError> {
        let missing = || IoError::MissingTensor { path: self.path.clone(), name: name.into() };
        self.metadata.info(name).ok_or_else(missing)
    }
}

fn numbers<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|&chunk| number(chunk)).collect()
}

/// A tensor to be written as F32, made when its turn comes, so that a large model is never in memory as a whole.
pub struct LazyTensor<'a> {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Makes its values, row by row.
    pub values: Box<dyn Fn() -> Vec<f32> + 'a>,
}

impl View for LazyTensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        (self.values)().iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * size_of::<f32>()
    }
}

/// Writes tensors as F32, marked as Hugging Face's libraries expect.
///
/// # Errors
/// When the file cannot be written.
pub fn write_tensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, LazyTensor<'a>)>,
) -> Result<(), IoError> {
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    // The library replaces the file by a temporary one, which only its owner may read.
    let permissions = File::create(path).and_then(|file| file.metadata()).map_err(IoError::at(path))?.permissions();
    safetensors::serialize_to_file(tensors, Some(metadata), path)
        .map_err(|e| IoError::File { path: path.into(), source: std::io::Error::other(e) })?;
    fs::set_permissions(path, permissions).map_err(IoError::at(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use safetensors::tensor::TensorView;

    fn open(bytes: &[u8]) -> Result<TensorFile, IoError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        fs::write(&path, bytes).unwrap();
        TensorFile::open(&path)
    }

    /// `a` [2, 2] of 1, −2, 0.5, 3 in every float type, `i` of integers.
    fn file(dtype: Dtype) -> Vec<u8> {
        let values = [1.0f32, -2.0, 0.5, 3.0];
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|&v| match dtype {
                Dtype::F16 => f16::from_f32(v).to_le_bytes().to_vec(),
                Dtype::BF16 => bf16::from_f32(v).to_le_bytes().to_vec(),
                _ => v.to_le_bytes().to_vec(),
            })
            .collect();
        let a = TensorView::new(dtype, vec![2, 2], &bytes).unwrap();
        let i = TensorView::new(Dtype::I64, vec![1], &[0; 8]).unwrap();
        safetensors::serialize([("a", a), ("i", i)], None).unwrap()
    }

    #[test]
    fn every_float_type_is_read_and_others_are_named() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let file = open(&file(dtype)).unwrap();
            assert_eq!(
                (file.values("a").unwrap(), file.shape("a").unwrap()),
                (vec![1.0, -2.0, 0.5, 3.0], [2, 2].as_slice())
            );
            let error = file.values("i").unwrap_err().to_string();
            assert!(error.ends_with("the tensor `i` holds I64; F32, F16 and BF16 can be read"), "{error}");
            assert!(file.values("b").unwrap_err().to_string().ends_with("there is no tensor `b`"));
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let tensor = LazyTensor { shape: vec![3], values: Box::new(|| vec![1.0, f32::MIN_POSITIVE, -0.0]) };
        write_tensors(&path, [("x".to_string(), tensor)]).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.names(), ["x"]);
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&file.values("x").unwrap()), bits(&[1.0, f32::MIN_POSITIVE, -0.0]));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let whole = file(Dtype::F32);
        for length in 0..whole.len() {
            let error = open(&whole[..length]).unwrap_err();
            assert!(error.to_string().contains("not a whole safetensors file"), "{length}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_damaged_file_never_panics(at in 0usize..300, value: u8, random: Vec<u8>) {
            let mut damaged = file(Dtype::BF16);
            let place = at % damaged.len();
            damaged[place] = value;
            for bytes in [damaged, random] {
                if let Ok(file) = open(&bytes) {
                    for name in file.names() {
                        let _ = file.values(&name);
                    }
                }
            }
        }
    }
}
