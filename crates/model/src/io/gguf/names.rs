//! The families of models whose files are read, and their tensors' names.

/// A family: its name in the file and how its tensors become Hugging Face's.
#[derive(Debug)]
pub(super) struct Family {
    /// `general.architecture`.
    pub(super) architecture: &'static str,
    /// `model_type` of a Hugging Face configuration.
    pub(super) model_type: &'static str,
    /// `architectures` of a Hugging Face configuration.
    pub(super) class: &'static str,
    /// Whether the rows of query and key were put in the order of interleaved rotary pairs.
    pub(super) interleaved: bool,
}

pub(super) const FAMILIES: [Family; 3] = [
    Family { architecture: "llama", model_type: "llama", class: "LlamaForCausalLM", interleaved: true },
    Family { architecture: "qwen2", model_type: "qwen2", class: "Qwen2ForCausalLM", interleaved: false },
    Family { architecture: "qwen3", model_type: "qwen3", class: "Qwen3ForCausalLM", interleaved: false },
];

pub(super) const EMBEDDING: &str = "token_embd.weight";
pub(super) const OUTPUT: &str = "output.weight";
/// Divisors of the rotary frequencies, in files of Llama 3.1 and later.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Names outside the layers: (in the file, Hugging Face).
const OUTSIDE: [(&str, &str); 3] =
    [(EMBEDDING, "model.embed_tokens.weight"), ("output_norm.weight", "model.norm.weight"), (OUTPUT, "lm_head.weight")];

/// A module of a layer: (in the file, Hugging Face, the heads whose rows are in rotary order).
pub(super) type Module = (&'static str, &'static str, Rows);

pub(super) const MODULES: [Module; 11] = [
    ("attn_norm", "input_layernorm", Rows::Plain),
    ("attn_q", "self_attn.q_proj", Rows::Query),
    ("attn_k", "self_attn.k_proj", Rows::Key),
    ("attn_v", "self_attn.v_proj", Rows::Plain),
    ("attn_output", "self_attn.o_proj", Rows::Plain),
    ("attn_q_norm", "self_attn.q_norm", Rows::Plain),
    ("attn_k_norm", "self_attn.k_norm", Rows::Plain),
    ("ffn_norm", "post_attention_layernorm", Rows::Plain),
    ("ffn_gate", "mlp.gate_proj", Rows::Plain),
    ("ffn_up", "mlp.up_proj", Rows::Plain),
    ("ffn_down", "mlp.down_proj", Rows::Plain),
];

/// GPT-2's weights, in layers `transformer.h.N`. Its files are not read, but adapters for them are written.
pub(super) const GPT2_MODULES: [Module; 4] = [
    ("attn_qkv", "attn.c_attn", Rows::Plain),
    ("attn_output", "attn.c_proj", Rows::Plain),
    ("ffn_up", "mlp.c_fc", Rows::Plain),
    ("ffn_down", "mlp.c_proj", Rows::Plain),
];

/// What the rows of a tensor are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    /// Outputs in the order of Hugging Face.
    Plain,
    /// Heads of the queries.
    Query,
    /// Heads of the keys.
    Key,
}

/// Hugging Face's name of a tensor of the file, and what its rows are. None for a tensor that no family has.
pub(super) fn hugging_face(stored: &str) -> Option<(String, Rows)> {
    if let Some((_, name)) = OUTSIDE.iter().find(|row| row.0 == stored) {
        return Some((name.to_string(), Rows::Plain));
    }
    let (layer, rest) = stored.strip_prefix("blk.")?.split_once('.')?;
    let number: u32 = layer.parse().ok().filter(|number: &u32| number.to_string() == layer)?;
    let (module, kind) = rest.split_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    let (_, name, rows) = MODULES.iter().find(|row| row.0 == module)?;
    Some((format!("model.layers.{number}.{name}.{kind}"), *rows))
}

/// Puts the rows of `heads` heads from the order of interleaved rotary pairs, (0, half, 1, half + 1, …), into that of
/// Hugging Face, (0, 1, …, half, half + 1, …). `values` is `[rows, columns]`, the rows a multiple of `2 · heads`.
pub(super) fn half_split(values: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let mut split = Vec::with_capacity(values.len());
    for head in values.chunks_exact(values.len() / heads) {
        for parity in [0, 1] {
            for row in head.chunks_exact(columns).skip(parity).step_by(2) {
                split.extend_from_slice(row);
            }
        }
    }
    split
}

/// The reverse of [`half_split`].
pub(super) fn interleaved(values: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let mut pairs = Vec::with_capacity(values.len());
    for head in values.chunks_exact(values.len() / heads) {
        let (first, second) = head.split_at(head.len() / 2);
        for (real, imaginary) in first.chunks_exact(columns).zip(second.chunks_exact(columns)) {
            pairs.extend_from_slice(real);
            pairs.extend_from_slice(imaginary);
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_get_the_names_of_hugging_face() {
        let name = |stored| hugging_face(stored).map(|(name, _)| name);
        assert_eq!(name("token_embd.weight").as_deref(), Some("model.embed_tokens.weight"));
        assert_eq!(name("blk.12.attn_q.bias").as_deref(), Some("model.layers.12.self_attn.q_proj.bias"));
        assert_eq!(name("blk.0.ffn_norm.weight").as_deref(), Some("model.layers.0.post_attention_layernorm.weight"));
        for other in ["blk.0.ffn_gate_inp.weight", "blk.01.attn_q.weight", "blk.0.attn_q.scale", "blk.0", "attn_q", ""]
        {
            assert_eq!(name(other), None, "{other}");
        }
    }

    /// Two heads of four rows of one column: the file has 0 2 1 3, its first and second halves in turn.
    #[test]
    fn rows_go_back_to_the_order_of_the_halves() {
        let stored = [0.0, 2.0, 1.0, 3.0, 10.0, 12.0, 11.0, 13.0];
        let split = [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0];
        assert_eq!(half_split(&stored, 2, 1), split);
        assert_eq!(interleaved(&split, 2, 1), stored);
        // One head of two columns.
        assert_eq!(interleaved(&split, 1, 2), [0.0, 1.0, 10.0, 11.0, 2.0, 3.0, 12.0, 13.0]);
    }
}
