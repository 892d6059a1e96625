//! The logits of a language model with an adapter, for `scripts/interop_lm.py` to compare with PEFT's.
//!
//! ```text
//! cargo run --release -p fedpipe-model --example lm_logits -- MODEL ADAPTER FORMAT TEXTS.jsonl OUT.f32
//! ```
//!
//! Every line of `TEXTS.jsonl` is a list of token ids. The logits of all their tokens are written one text after the
//! other, `[tokens, vocabulary]` as little-endian f32.

use fedpipe_core::BaseFormat;
use fedpipe_model::BaseModel;
use fedpipe_model::adapter::Adapters;
use fedpipe_model::head::HeadKind;
use fedpipe_model::io::read_adapter;
use fedpipe_model::ops::{Offsets, Pass, Workspace};
use fedpipe_model::parameters::Parameters;
use std::error::Error;
use std::io::{BufWriter, Write};
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, adapter, format, texts, out] = arguments.as_slice() else {
        return Err("give a model, an adapter, a format of the base, texts and the file to write".into());
    };
    let format: BaseFormat = format.parse()?;
    let base = BaseModel::open(Path::new(model))?;
    let adapter = read_adapter(Path::new(adapter))?.adapter;
    base.check_adapter(&adapter, HeadKind::Vocabulary)?;
    let (layers, head) = (base.encoder(format)?, base.output_head(format)?);
    let workspace = Workspace::inference();
    let (adapters, parameters) = (Adapters::constant(&adapter), Parameters::default());
    let mut out = BufWriter::new(std::fs::File::create(out)?);
    for line in std::fs::read_to_string(texts)?.lines() {
        let ids: Vec<u32> = serde_json::from_str(line)?;
        let offsets: Offsets = vec![0, ids.len()].into();
        let mut ops = workspace.ops(&parameters, &adapters, Pass::Inference)?;
        let x = layers.embed(&mut *ops, &ids, &offsets)?;
        let states = layers.tail_from(&mut *ops, 0, x, &offsets, &offsets)?;
        for logit in ops.logits(&states, &head)? {
            out.write_all(&logit.to_le_bytes())?;
        }
    }
    Ok(out.flush()?)
}
