//! Hugging Face model folders.

use super::folder::{parse_json, read_bounded};
use super::{IoError, TensorFile, WeightSource, read_json};
use rayon::prelude::*;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A folder with `config.json` and `model.safetensors`, or its shards with their index.
///
/// Weights are found by their present-day names: old BERT files call those of a LayerNorm `gamma` and `beta`, which
/// stand for `weight` and `bias` here.
#[derive(Debug)]
pub struct HfFolder {
    path: PathBuf,
    config: Map<String, Value>,
    config_digest: [u8; 32],
    files: Vec<TensorFile>,
    /// File and stored name of every tensor.
    tensors: BTreeMap<String, (usize, String)>,
}

impl HfFolder {
    /// Opens a folder; checks that its files are whole, but reads no tensor yet.
    ///
    /// # Errors
    /// When a file is missing or broken, or the index names a file outside the folder.
    pub fn open(path: &Path) -> Result<Self, IoError> {
        if !path.is_dir() {
            return Err(IoError::Missing { path: path.into(), what: "there is no such model folder".into() });
        }
        let config_path = path.join(CONFIG);
        if !config_path.exists() {
            let what = format!("there is no {CONFIG}, so it is no Hugging Face model folder");
            return Err(IoError::Missing { path: path.into(), what });
        }
        let bytes = read_bounded(&config_path)?;
        let (config, config_digest) = (parse_json(&config_path, &bytes)?, Sha256::digest(&bytes).into());
        let files = weight_files(path)?;
        let files = files.iter().map(|name| TensorFile::open(&path.join(name))).collect::<Result<Vec<_>, _>>()?;
        let mut tensors = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            for stored in file.names() {
                tensors.insert(present_name(&stored), (number, stored));
            }
        }
        Ok(Self { path: path.into(), config, config_digest, files, tensors })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn find(&self, name: &str) -> Result<(&TensorFile, &str), IoError> {
        match self.tensors.get(name) {
            Some((file, stored)) => Ok((&self.files[*file], stored)),
            None => Err(IoError::MissingTensor { path: self.path.clone(), name: name.into() }),
        }
    }

    /// SHA-256, in hexadecimal, over the digests of `config.json` and of the weight files in the order of their names.
    /// It changes with any byte of them. The files are streamed, so that they do not count as memory of this process.
    ///
    /// # Errors
    /// When a file cannot be read any more.
    pub fn fingerprint(&self) -> Result<String, IoError> {
        let digests =
            self.files.par_iter().map(|file| file_digest(file.path())).collect::<Result<Vec<[u8; 32]>, _>>()?;
        let whole = digests.iter().fold(Sha256::new().chain_update(self.config_digest), |hash, d| hash.chain_update(d));
        Ok(whole.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl WeightSource for HfFolder {
    fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    fn config_path(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn tensor_names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn tensor_shape(&self, name: &str) -> Result<&[usize], IoError> {
        let (file, stored) = self.find(name)?;
        file.shape(stored)
    }

    fn tensor_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, IoError> {
        let (file, stored) = self.find(name)?;
        let got = file.shape(stored)?;
        if got != shape {
            return Err(IoError::Shape {
                path: file.path().into(),
                name: name.into(),
                expected: shape.to_vec(),
                got: got.to_vec(),
            });
        }
        file.values(stored)
    }
}

pub(super) fn file_digest(path: &Path) -> Result<[u8; 32], IoError> {
    let mut file = File::open(path).map_err(IoError::at(path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(IoError::at(path))? {
            0 => return Ok(hash.finalize().into()),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// The names of the files that hold the weights, sorted.
fn weight_files(folder: &Path) -> Result<Vec<String>, IoError> {
    if folder.join(WEIGHTS).exists() {
        return Ok(vec![WEIGHTS.into()]);
    }
    let index_path = folder.join(INDEX);
    if !index_path.exists() {
        let hint = if folder.join("pytorch_model.bin").exists() {
            "; it holds pytorch_model.bin, so load it with transformers and write it again with `save_pretrained`"
        } else {
            ""
        };
        let what = format!("there is neither {WEIGHTS} nor {INDEX}{hint}");
        return Err(IoError::Missing { path: folder.into(), what });
    }
    let index = read_json(&index_path)?;
    let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
        return Err(IoError::key(&index_path, "weight_map", "is missing or no object"));
    };
    let mut files = Vec::new();
    for (tensor, file) in map {
        let Some(file) = file.as_str().filter(|file| is_plain_name(file)) else {
            return Err(IoError::key(
                &index_path,
                tensor,
                format!("is {file}; it must name a file in the same folder"),
            ));
        };
        files.push(file.to_string());
    }
    files.sort_unstable();
    files.dedup();
    if let Some(missing) = files.iter().find(|file| !folder.join(file).exists()) {
        return Err(IoError::Missing { path: folder.into(), what: format!("the shard {missing} is missing") });
    }
    Ok(files)
}

/// Whether a name stays in its folder.
pub(super) fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
        && !name.contains('\\')
}

fn present_name(stored: &str) -> String {
    let renamed = |old: &str, new: &str| stored.strip_suffix(old).map(|start| format!("{start}{new}"));
    renamed("LayerNorm.gamma", "LayerNorm.weight")
        .or_else(|| renamed("LayerNorm.beta", "LayerNorm.bias"))
        .unwrap_or_else(|| stored.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::{tensors::LazyTensor, write_tensors};
    use super::*;
    use serde_json::json;
    use std::fs;
    use tempfile::TempDir;

    fn write(folder: &Path, file: &str, names: &[&str]) {
        let tensor = || LazyTensor { shape: vec![1, 2], values: Box::new(|| vec![1.0, 2.0]) };
        write_tensors(&folder.join(file), names.iter().map(|name| (name.to_string(), tensor()))).unwrap();
    }

    fn folder() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({"model_type": "bert", "hidden_size": 2, "eps": 1e-12, "null": null, "flag": true});
        fs::write(folder.path().join(CONFIG), config.to_string()).unwrap();
        write(folder.path(), WEIGHTS, &["a.weight", "a.LayerNorm.gamma", "a.LayerNorm.beta"]);
        folder
    }

    fn message(folder: &TempDir) -> String {
        HfFolder::open(folder.path()).unwrap_err().to_string().replace(&folder.path().display().to_string(), "M")
    }

    #[test]
    fn the_configuration_is_typed_and_its_errors_name_file_and_key() {
        let folder = folder();
        let model = HfFolder::open(folder.path()).unwrap();
        assert_eq!((model.config_str("model_type").unwrap(), model.config_usize("hidden_size").unwrap()), ("bert", 2));
        assert_eq!((model.config_f64("eps").unwrap(), model.config_f64("hidden_size").unwrap()), (1e-12, 2.0));
        assert_eq!((model.config_bool("flag").unwrap(), model.config_bool("null").unwrap()), (Some(true), None));
        assert_eq!(model.config_optional_str("other").unwrap(), None);
        let path = model.config_path().display().to_string();
        assert_eq!(model.config_usize("layers").unwrap_err().to_string(), format!("{path}: `layers` is missing"));
        assert_eq!(
            model.config_usize("eps").unwrap_err().to_string(),
            format!("{path}: `eps` is 1e-12; it must be a whole number")
        );
    }

    #[test]
    fn tensors_are_found_by_their_present_names() {
        let folder = folder();
        let model = HfFolder::open(folder.path()).unwrap();
        let names = model.tensor_names();
        assert_eq!(names, ["a.LayerNorm.bias", "a.LayerNorm.weight", "a.weight"]);
        assert_eq!(model.tensor_f32("a.LayerNorm.weight", &[1, 2]).unwrap(), [1.0, 2.0]);
        assert!(model.has_tensor("a.weight") && !model.has_tensor("b"));
        let error = model.tensor_f32("a.weight", &[2]).unwrap_err().to_string();
        assert!(error.ends_with("model.safetensors: the tensor `a.weight` is [1, 2], but [2] is needed"), "{error}");
        assert!(model.tensor_shape("b").unwrap_err().to_string().ends_with("there is no tensor `b`"));
    }

    #[test]
    fn shards_are_read_through_their_index() {
        let folder = folder();
        fs::remove_file(folder.path().join(WEIGHTS)).unwrap();
        write(folder.path(), "m-1.safetensors", &["a"]);
        write(folder.path(), "m-2.safetensors", &["b"]);
        let index = |file: &str| json!({"weight_map": {"a": "m-1.safetensors", "b": file}}).to_string();
        fs::write(folder.path().join(INDEX), index("m-2.safetensors")).unwrap();
        assert_eq!(HfFolder::open(folder.path()).unwrap().tensor_names().len(), 2);

        fs::write(folder.path().join(INDEX), index("m-3.safetensors")).unwrap();
        assert_eq!(message(&folder), "M: the shard m-3.safetensors is missing");
        for outside in ["../m-2.safetensors", "/etc/passwd", "a/../../b", "..", "", "a\\b", "./m-2.safetensors"] {
            fs::write(folder.path().join(INDEX), index(outside)).unwrap();
            assert!(message(&folder).ends_with("it must name a file in the same folder"), "{outside}");
        }
        fs::write(folder.path().join(INDEX), "{}").unwrap();
        assert_eq!(message(&folder), format!("M/{INDEX}: `weight_map` is missing or no object"));
    }

    #[test]
    fn what_is_missing_or_broken_is_named() {
        let folder = folder();
        fs::write(folder.path().join(WEIGHTS), [0; 20]).unwrap();
        assert!(message(&folder).starts_with("M/model.safetensors: not a whole safetensors file ("));
        fs::rename(folder.path().join(WEIGHTS), folder.path().join("pytorch_model.bin")).unwrap();
        assert!(message(&folder).starts_with("M: there is neither model.safetensors nor"));
        assert!(message(&folder).ends_with("write it again with `save_pretrained`"));
        fs::remove_file(folder.path().join(CONFIG)).unwrap();
        assert_eq!(message(&folder), "M: there is no config.json, so it is no Hugging Face model folder");
        let error = HfFolder::open(Path::new("nowhere")).unwrap_err();
        assert_eq!(error.to_string(), "nowhere: there is no such model folder");
    }

    #[test]
    fn the_fingerprint_covers_configuration_and_weights() {
        let folder = folder();
        let print = || HfFolder::open(folder.path()).unwrap().fingerprint().unwrap();
        let first = print();
        let digest = |file: &str| Sha256::digest(fs::read(folder.path().join(file)).unwrap());
        let expected = Sha256::digest([digest(CONFIG), digest(WEIGHTS)].concat());
        assert_eq!(first, expected.iter().map(|b| format!("{b:02x}")).collect::<String>());
        write(folder.path(), WEIGHTS, &["b.weight"]);
        let second = print();
        fs::write(folder.path().join(CONFIG), "{}").unwrap();
        assert!(first != second && second != print());
    }
}
