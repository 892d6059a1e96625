//! Adapters as llama.cpp reads them.
//!
//! For a weight `W` of its file llama.cpp looks for `W.lora_a` and `W.lora_b` and adds alpha / rank · B·A·x, with one alpha
//! for all and the rank of each (llama.cpp, `src/llama-adapter.cpp` and `convert_lora_to_gguf.py`).

use super::names::{GPT2_MODULES, MODULES, Module, Rows, interleaved};
use crate::io::folder::write_folder;
use crate::io::{IoError, WeightSource};
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use fedpipe_core::{Adapter, LowRank, WeightId};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// The file in the folder that [`write_gguf_adapter`] writes.
pub const GGUF_ADAPTER: &str = "adapter.gguf";

/// How the weights of a kind of models are called in GGUF files.
struct Naming {
    /// `model_type` of a Hugging Face configuration.
    model_type: &'static str,
    /// `general.architecture`.
    architecture: &'static str,
    /// What stands before the number of a layer in Hugging Face's names.
    layers: &'static str,
    modules: &'static [Module],
    /// Whether the rows of query and key are put in the order of interleaved rotary pairs.
    interleaved: bool,
}

const LLAMA: Naming = Naming {
    model_type: "llama",
    architecture: "llama",
    layers: "model.layers.",
    modules: &MODULES,
    interleaved: true,
};

const NAMINGS: [Naming; 5] = [
    LLAMA,
    Naming { model_type: "mistral", ..LLAMA },
    Naming { model_type: "qwen2", architecture: "qwen2", interleaved: false, ..LLAMA },
    Naming { model_type: "qwen3", architecture: "qwen3", interleaved: false, ..LLAMA },
    Naming {
        model_type: "gpt2",
        architecture: "gpt2",
        layers: "transformer.h.",
        modules: &GPT2_MODULES,
        interleaved: false,
    },
];

impl Naming {
    fn of(base: &dyn WeightSource) -> Result<&'static Self, IoError> {
        let model_type = base.config_str("model_type")?;
        NAMINGS.iter().find(|naming| naming.model_type == model_type).ok_or_else(|| {
            let known = NAMINGS.each_ref().map(|naming| naming.model_type).join(", ");
            let reason = format!("is {model_type:?}, for which llama.cpp takes no adapters; it does for {known}");
            IoError::key(&base.config_path(), "model_type", reason)
        })
    }

    /// The name of a weight in GGUF files, without `.weight`, and what its rows are.
    fn stored(&self, weight: &WeightId) -> Option<(String, Rows)> {
        let (layer, module) = weight.as_str().strip_prefix(self.layers)?.split_once('.')?;
        let (stored, _, rows) = self.modules.iter().find(|row| row.1 == module)?;
        Some((format!("blk.{layer}.{stored}"), *rows))
    }

    /// How many heads the rows of a weight are put in rotary order for, if they are.
    fn heads(&self, rows: Rows, base: &dyn WeightSource) -> Result<Option<usize>, IoError> {
        let queries = || base.config_usize("num_attention_heads");
        match rows {
            _ if !self.interleaved => Ok(None),
            Rows::Plain => Ok(None),
            Rows::Query => queries().map(Some),
            // Without the key every query has a key of its own.
            Rows::Key => base.config_optional_usize("num_key_value_heads")?.map_or_else(queries, Ok).map(Some),
        }
    }
}

/// Writes the folder `target` with one file, [`GGUF_ADAPTER`]: the factors of an adapter that fits `base`, in f32.
///
/// B of a weight whose rank is below the highest is scaled by the quotient of the two, so that one alpha is right for all.
///
/// # Errors
/// When the adapter has a head or no factors, llama.cpp has no name for a weight, `target` is there and not empty, or the
/// disk refuses.
pub fn write_gguf_adapter(target: &Path, adapter: &Adapter, base: &dyn WeightSource) -> Result<(), IoError> {
    let error = |reason: String| IoError::adapter(target, reason);
    if !adapter.head.is_empty() {
        return Err(error("llama.cpp's adapters hold no classification head; export the merged model".into()));
    }
    let ranked = || adapter.factors.iter().filter(|(_, factors)| factors.rank() > 0);
    let Some(highest) = ranked().map(|(_, factors)| factors.rank()).max() else {
        return Err(error("there are no factors to export".into()));
    };
    let naming = Naming::of(base)?;
    let mut tensors = Vec::new();
    for (weight, factors) in ranked() {
        let (stored, rows) = naming
            .stored(weight)
            .ok_or_else(|| error(format!("llama.cpp takes no adapter of `{weight}`; export the merged model")))?;
        let heads = naming.heads(rows, base)?;
        if heads.is_some_and(|heads| heads == 0 || !factors.b().rows().is_multiple_of(2 * heads)) {
            return Err(error(format!("`{weight}` has {} rows, which are no pairs a head", factors.b().rows())));
        }
        let [a, b] = pair(factors, highest, heads).map_err(|e| error(format!("`{weight}`: {e}")))?;
        tensors.push((format!("{stored}.weight.lora_a"), a));
        tensors.push((format!("{stored}.weight.lora_b"), b));
    }
    let text = |text: &str| Value::String(text.into());
    let metadata = [
        ("general.type", text("adapter")),
        ("general.architecture", text(naming.architecture)),
        ("adapter.type", text("lora")),
        ("adapter.lora.alpha", Value::F32(adapter.scaling * highest as f32)),
    ];
    write_folder(target, |folder| write(&folder.join(GGUF_ADAPTER), &metadata, &tensors))
}

/// A `[rank, inputs]` and B `[outputs, rank]` as they go into the file, which names the fastest dimension first.
fn pair(factors: &LowRank, highest: usize, heads: Option<usize>) -> candle_core::Result<[QTensor; 2]> {
    let (a, rank) = (factors.a(), factors.rank());
    let b = match heads {
        Some(heads) => interleaved(factors.b().data(), heads, rank),
        None => factors.b().data().to_vec(),
    };
    let ratio = rank as f32 / highest as f32;
    let b = b.into_iter().map(|value| value * ratio).collect();
    let tensor = |values: Vec<f32>, rows, columns| {
        QTensor::quantize(&Tensor::from_vec(values, (rows, columns), &Device::Cpu)?, GgmlDType::F32)
    };
    Ok([tensor(a.data().to_vec(), rank, a.cols())?, tensor(b, factors.b().rows(), rank)?])
}

fn write(path: &Path, metadata: &[(&str, Value)], tensors: &[(String, QTensor)]) -> Result<(), IoError> {
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = BufWriter::new(File::create(path).map_err(IoError::at(path))?);
    gguf_file::write(&mut file, &metadata, &tensors)
        .map_err(|e| std::io::Error::other(e.to_string()))
        .and_then(|()| file.flush())
        .map_err(IoError::at(path))
}

#[cfg(test)]
mod tests {
    use super::super::container::Container;
    use super::super::metadata::Metadata;
    use super::*;
    use crate::io::HfFolder;
    use fedpipe_core::Matrix;
    use serde_json::json;
    use std::fs;
    use tempfile::TempDir;

    fn base(config: serde_json::Value) -> (TempDir, HfFolder) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let tensor = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &[0; 4]).unwrap();
        safetensors::serialize_to_file([("x", tensor)], None, &folder.path().join("model.safetensors")).unwrap();
        let opened = HfFolder::open(folder.path()).unwrap();
        (folder, opened)
    }

    fn llama() -> (TempDir, HfFolder) {
        base(json!({"model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 1}))
    }

    /// Row i of A is i + 1 times ones, column j of B is the row's number shifted by 100 · j.
    fn factors(rank: usize, inputs: usize, outputs: usize) -> LowRank {
        let a = Matrix::from_fn(rank, inputs, |i, _| (i + 1) as f32);
        LowRank::new(a, Matrix::from_fn(outputs, rank, |i, j| (i + 100 * j) as f32)).unwrap()
    }

    fn adapter(factors: impl IntoIterator<Item = (&'static str, LowRank)>) -> Adapter {
        let factors = factors.into_iter().map(|(name, factors)| (name.into(), factors)).collect();
        Adapter { scaling: 2.0, factors, head: Default::default() }
    }

    fn refused(adapter: &Adapter, base: &HfFolder) -> String {
        let root = tempfile::tempdir().unwrap();
        let error = write_gguf_adapter(&root.path().join("out"), adapter, base).unwrap_err().to_string();
        assert_eq!(root.path().read_dir().unwrap().count(), 0, "a refused export left something behind");
        error
    }

    #[test]
    fn the_file_is_what_llama_cpp_looks_for() {
        let (_folder, base) = llama();
        let adapter = adapter([
            ("model.layers.0.self_attn.q_proj", factors(1, 3, 8)),
            ("model.layers.1.self_attn.k_proj", factors(2, 3, 4)),
            ("model.layers.1.mlp.down_proj", factors(2, 5, 3)),
            ("model.layers.1.mlp.up_proj", factors(0, 3, 5)),
        ]);
        let root = tempfile::tempdir().unwrap();
        write_gguf_adapter(&root.path().join("out"), &adapter, &base).unwrap();
        let bytes = fs::read(root.path().join("out").join(GGUF_ADAPTER)).unwrap();
        let container = Container::read(&bytes).unwrap();
        let metadata = Metadata::new(&bytes, &container);
        let text = |key| metadata.optional_text(key).unwrap();
        assert_eq!(text("general.type"), Some("adapter"));
        assert_eq!(text("general.architecture"), Some("llama"));
        assert_eq!(text("adapter.type"), Some("lora"));
        assert_eq!(metadata.f64("adapter.lora.alpha").unwrap(), 4.0);
        let names: Vec<&String> = container.tensors.keys().collect();
        assert_eq!(
            names,
            [
                "blk.0.attn_q.weight.lora_a",
                "blk.0.attn_q.weight.lora_b",
                "blk.1.attn_k.weight.lora_a",
                "blk.1.attn_k.weight.lora_b",
                "blk.1.ffn_down.weight.lora_a",
                "blk.1.ffn_down.weight.lora_b",
            ]
        );
        let tensor = |name: &str| (container.tensors[name].shape.clone(), metadata.tensor(name).unwrap().unwrap());
        assert_eq!(tensor("blk.0.attn_q.weight.lora_a"), (vec![1, 3], vec![1.0; 3]));
        // Heads of rows 0 to 3 and 4 to 7, each 0 2 1 3; rank 1 of 2 at alpha 4 would be scaled by 4 instead of 2.
        assert_eq!(tensor("blk.0.attn_q.weight.lora_b"), (vec![8, 1], vec![0.0, 1.0, 0.5, 1.5, 2.0, 3.0, 2.5, 3.5]));
        assert_eq!(
            tensor("blk.1.attn_k.weight.lora_b"),
            (vec![4, 2], vec![0.0, 100.0, 2.0, 102.0, 1.0, 101.0, 3.0, 103.0])
        );
        assert_eq!(tensor("blk.1.ffn_down.weight.lora_b"), (vec![3, 2], vec![0.0, 100.0, 1.0, 101.0, 2.0, 102.0]));
    }

    #[test]
    fn every_architecture_has_its_names_and_only_llama_s_rows_move() {
        let config = |kind: &str| json!({"model_type": kind, "num_attention_heads": 1, "num_key_value_heads": 1});
        for (kind, weight, stored, rows) in [
            ("mistral", "model.layers.7.self_attn.q_proj", "blk.7.attn_q", [0.0, 2.0, 1.0, 3.0]),
            ("qwen2", "model.layers.0.self_attn.q_proj", "blk.0.attn_q", [0.0, 1.0, 2.0, 3.0]),
            ("qwen3", "model.layers.0.self_attn.k_proj", "blk.0.attn_k", [0.0, 1.0, 2.0, 3.0]),
            ("gpt2", "transformer.h.3.attn.c_attn", "blk.3.attn_qkv", [0.0, 1.0, 2.0, 3.0]),
            ("gpt2", "transformer.h.3.mlp.c_proj", "blk.3.ffn_down", [0.0, 1.0, 2.0, 3.0]),
        ] {
            let (_folder, base) = base(config(kind));
            let root = tempfile::tempdir().unwrap();
            write_gguf_adapter(root.path(), &adapter([(weight, factors(1, 3, 4))]), &base).unwrap();
            let bytes = fs::read(root.path().join(GGUF_ADAPTER)).unwrap();
            let container = Container::read(&bytes).unwrap();
            let b = Metadata::new(&bytes, &container).tensor(&format!("{stored}.weight.lora_b")).unwrap();
            assert_eq!(b.as_deref(), Some(&rows[..]), "{kind}");
        }
    }

    #[test]
    fn what_llama_cpp_cannot_take_is_refused_by_name() {
        let (_folder, llama) = llama();
        let q = || adapter([("model.layers.0.self_attn.q_proj", factors(1, 3, 8))]);
        let mut classifier = q();
        classifier.head.insert("score.weight".into(), Matrix::zeros(2, 3));
        assert!(refused(&classifier, &llama).contains("no classification head"));
        assert!(refused(&adapter([]), &llama).contains("no factors"));
        let other = adapter([("model.layers.0.self_attn.x_proj", factors(1, 3, 8))]);
        assert!(refused(&other, &llama).contains("no adapter of `model.layers.0.self_attn.x_proj`"));
        let odd = adapter([("model.layers.0.self_attn.q_proj", factors(1, 3, 6))]);
        assert!(refused(&odd, &llama).contains("no pairs a head"));
        let (_folder, bert) = base(json!({"model_type": "bert"}));
        assert!(refused(&q(), &bert).contains("`model_type` is \"bert\""));
    }
}
