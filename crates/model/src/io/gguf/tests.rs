//! Against the `gguf` package and transformers (`scripts/golden_gguf.py`), and against files that lie. That no damage makes
//! it panic or allocate is in `tests/gguf_hostile.rs`.

use super::blocks::Format;
use super::*;
use serde_json::Value as Json;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/fixtures/gguf")
}

fn json(name: &str) -> Json {
    serde_json::from_slice(&std::fs::read(fixtures().join(name)).unwrap()).unwrap()
}

fn numbers(value: &Json) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
}

fn real() -> Option<GgufFile> {
    let path = "../../assets/models/SmolLM2-135M-Instruct-GGUF/SmolLM2-135M-Instruct.Q4_1.gguf";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if !path.exists() {
        eprintln!("SKIPPED: assets/ is not there; `make assets` fetches it");
        return None;
    }
    Some(GgufFile::open(&path).unwrap())
}

#[test]
fn every_block_format_gives_the_values_of_the_gguf_package() {
    for (name, case) in json("blocks.json").as_object().unwrap() {
        let format = Format::of_number(case["type"].as_u64().unwrap() as u32).unwrap();
        assert_eq!(format.name(), name);
        let hex = case["raw"].as_str().unwrap();
        let raw: Vec<u8> = (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
        let expected: Vec<f32> = numbers(&case["bits"]).into_iter().map(|bits| f32::from_bits(bits as u32)).collect();
        let got = format.dequantise(&raw).unwrap();
        assert_eq!(got.len(), expected.len());
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            // candle and the package multiply a block's scales in another order.
            assert!((got - expected).abs() <= 2e-6 * expected.abs().max(1.0), "{name}, value {i}: {got}, {expected}");
        }
    }
}

/// Configuration and tensors of `file` against what transformers read from it.
fn check(file: &GgufFile, expected: &Json) {
    for (key, value) in expected["config"].as_object().unwrap() {
        let got = &file.config()[key];
        match value.as_f64() {
            // transformers keeps the f32's digits.
            Some(value) => assert_eq!(got.as_f64().unwrap() as f32, value as f32, "{key}"),
            None => assert_eq!(got, value, "{key}"),
        }
    }
    for (name, tensor) in expected["tensors"].as_object().unwrap() {
        let shape = numbers(&tensor["shape"]);
        let values = file.tensor_f32(name, &shape).unwrap();
        for (place, bits) in numbers(&tensor["places"]).into_iter().zip(numbers(&tensor["bits"])) {
            assert_eq!(values[place].to_bits(), bits as u32, "{name}, value {place}");
        }
        let sum = |f: fn(f64) -> f64| values.iter().map(|&v| f(v.into())).sum::<f64>();
        for (got, key) in [(sum(|v| v), "sum"), (sum(|v| v * v), "squares")] {
            let expected = tensor[key].as_f64().unwrap();
            assert!((got - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{name}: {key} {got}, {expected}");
        }
    }
}

#[test]
fn a_small_model_is_read_as_transformers_reads_it() {
    let file = GgufFile::open(&fixtures().join("tiny.gguf")).unwrap();
    let expected = json("tiny.json");
    check(&file, &expected);
    let names: Vec<&String> = expected["tensors"].as_object().unwrap().keys().collect();
    assert_eq!(file.tensor_names().len(), names.len());
    assert!(names.iter().all(|name| file.has_tensor(name)) && !file.has_tensor("token_embd.weight"));
    let error = file.tensor_f32("model.norm.weight", &[31]).unwrap_err().to_string();
    assert!(error.ends_with("the tensor `model.norm.weight` is [32], but [31] is needed"), "{error}");
    assert!(file.tensor_f32("b", &[1]).unwrap_err().to_string().ends_with("there is no tensor `b`"));
}

#[test]
fn the_real_model_is_read_as_transformers_reads_it() {
    if let Some(file) = real() {
        check(&file, &json("smollm2.json"));
    }
}

#[test]
fn llama_3s_rotary_scaling_is_recognised_and_nothing_else() {
    for case in json("rope.json").as_array().unwrap() {
        let mut divisors: Vec<f32> =
            numbers(&case["bits"]).into_iter().map(|bits| f32::from_bits(bits as u32)).collect();
        let (theta, head_dim) = (case["theta"].as_f64().unwrap(), case["head_dim"].as_u64().unwrap() as usize);
        let scaling = config::llama3_scaling(&divisors, theta, head_dim).unwrap();
        assert_eq!(scaling["rope_type"], "llama3");
        // The fixture's divisors are quotients of f32, a rounding off the factor that a file holds.
        let (factor, expected) = (scaling["factor"].as_f64().unwrap(), case["factor"].as_f64().unwrap());
        assert!((factor / expected - 1.0).abs() < 1e-6, "{factor}, {expected}");
        divisors[head_dim / 4] *= 1.01;
        assert!(config::llama3_scaling(&divisors, theta, head_dim).unwrap_err().contains("follows no recipe"));
        assert!(config::llama3_scaling(&divisors[1..], theta, head_dim).is_err());
    }
    assert!(config::llama3_scaling(&[1.0; 32], 1e4, 64).unwrap().is_null());
}

#[test]
fn the_real_tokenizer_gives_the_reference_tokens() {
    let Some(file) = real() else { return };
    let expected = json("smollm2.json");
    let tokenizer = file.tokenizer().unwrap();
    for case in expected["tokens"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<usize> =
            tokenizer.tokenizer.encode(text, true).unwrap().get_ids().iter().map(|&id| id as usize).collect();
        assert_eq!(ids, numbers(&case["ids"]), "{text:?}");
    }
    for (token, key) in [(&tokenizer.bos, "bos_token"), (&tokenizer.eos, "eos_token")] {
        let token = token.as_ref().unwrap();
        assert_eq!(serde_json::json!([token.text, token.id]), expected["special"][key]);
    }
    let text = "Hello, <|im_end|> wörld 12";
    let ids = tokenizer.tokenizer.encode(text, false).unwrap().get_ids().to_vec();
    assert_eq!(tokenizer.tokenizer.decode(&ids, false).unwrap(), text);
    assert_eq!(tokenizer.tokenizer.decode(&ids, true).unwrap(), "Hello,  wörld 12");
}

#[test]
fn texts_are_cut_as_the_named_pre_tokenizer_cuts_them() {
    let expected = json("smollm2.json");
    for (name, cases) in expected["pieces"].as_object().unwrap() {
        for (case, text) in cases.as_array().unwrap().iter().zip(expected["tokens"].as_array().unwrap()) {
            let text = text["text"].as_str().unwrap();
            let pieces: Vec<&str> = case.as_array().unwrap().iter().map(|piece| piece.as_str().unwrap()).collect();
            assert_eq!(tokenizer::pieces(name, text), pieces, "{name}: {text:?}");
        }
    }
}

#[test]
fn a_text_gets_the_first_token_that_the_file_asks_for() {
    let tokenizer = GgufFile::open(&fixtures().join("tiny.gguf")).unwrap().tokenizer().unwrap();
    assert!(tokenizer.add_bos && !tokenizer.add_eos);
    let ids = |text| tokenizer.tokenizer.encode(text, true).unwrap().get_tokens().to_vec();
    assert_eq!(ids("hello hell</s>"), ["<s>", "hell", "o", "Ġhell", "</s>"]);
    assert_eq!(tokenizer.tokenizer.encode("hell", false).unwrap().len(), 1);
}

/// The small file with the first `old` replaced by a `new` of the same length.
fn changed(old: &[u8], new: &[u8]) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let mut bytes = std::fs::read(fixtures().join("tiny.gguf")).unwrap();
    let at = bytes.windows(old.len()).position(|window| window == old).unwrap();
    bytes[at..at + old.len()].copy_from_slice(new);
    bytes
}

/// As `changed`, but what follows `key`.
fn after(key: &str, skip: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = std::fs::read(fixtures().join("tiny.gguf")).unwrap();
    let at = bytes.windows(key.len()).position(|window| window == key.as_bytes()).unwrap() + key.len() + skip;
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

#[test]
fn every_lie_is_named() {
    let message = |bytes: Vec<u8>| {
        let file = GgufFile::from_bytes(Path::new("m.gguf"), bytes);
        let error = file.and_then(|file| file.tokenizer().map(|_| ())).unwrap_err().to_string();
        error.strip_prefix("m.gguf: GGUF: ").unwrap().to_string()
    };
    let long = u64::MAX.to_le_bytes();
    let dims = "blk.0.ffn_up.weight";
    let cases: [(Vec<u8>, &str); 27] = [
        (changed(b"GGUF", b"GGML"), "it does not begin with `GGUF`"),
        (changed(b"GGUF\x03\0\0\0", b"GGUF\x01\0\0\0"), "version 1 of the format; 2 and 3 can be read"),
        (changed(b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03"), "a big-endian file"),
        (changed(b"GGUF\x03\0\0\0\x0c\0\0\0", b"GGUF\x03\0\0\0\x0c\0\0\x01"), "it claims 16777228 tensors"),
        (changed(b"GGUF\x03\0\0\0\x0c\0", b"GGUF\x03\0\0\0\xff\xff"), "bytes; 1 to 64 are possible"),
        (after("GGUF", 12, &long), "it claims 18446744073709551615 metadata entries"),
        (
            after("general.architecture", 4, &long),
            "the metadata `general.architecture` takes 18446744073709551615 bytes",
        ),
        (after("general.architecture", 0, &[99]), "the metadata `general.architecture` is of type 99"),
        (after("tokenizer.ggml.tokens", 8, &long), "the metadata `tokenizer.ggml.tokens` takes"),
        (after("tokenizer.ggml.token_type", 8, &long), "claims 18446744073709551615 values"),
        (after("tokenizer.ggml.tokens", 4, &[9]), "is an array of arrays"),
        (after("tokenizer.ggml.add_bos_token", 4, &[7]), "is neither true nor false"),
        (
            changed(b"tokenizer.ggml.pre", b"tokenizer.ggml.pre").into_iter().take(3_000).collect(),
            "it is cut off or damaged",
        ),
        (after(dims, 0, &9u32.to_le_bytes()), "`blk.0.ffn_up.weight` has 9 dimensions"),
        (after(dims, 4, &[0; 8]), "has a dimension of 0"),
        (after(dims, 4, &31u64.to_le_bytes()), "has rows of 31 values, but Q8_0 has blocks of 32"),
        (
            after(dims, 4, &[&(1u64 << 40).to_le_bytes()[..], &(1u64 << 40).to_le_bytes()].concat()),
            "which no memory holds",
        ),
        (after(dims, 12, &(1u64 << 30).to_le_bytes()), "but the file ends before; it is cut off"),
        (after(dims, 20, &[77]), "is stored as type 77, which cannot be read; F32, F16, Q4_0"),
        (after(dims, 24, &[1]), "which is no multiple of the alignment 32"),
        (after(dims, 24, &[0; 8]), "overlaps another"),
        (after(dims, 24, &long), "but the file ends before"),
        (changed(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight"), "the tensor `blk.0.attn_q.weight` is there twice"),
        (changed(b"llama.block_count", b"llama.block_coumt"), "the metadata `llama.block_count` is missing or zero"),
        (
            changed(b"blk.0.ffn_up.weight", b"blk.0.ffn_uq.weight"),
            "the tensor `blk.0.ffn_uq.weight` is none of a llama model",
        ),
        (
            after("general.architecture", 12, b"gemma"),
            "a model of the architecture `gemma`, which cannot be read; llama, qwen2",
        ),
        (
            after("tokenizer.ggml.pre", 12, b"custom"),
            "its pre-tokenizer is `custom`, which cannot be read; gpt-2, smollm",
        ),
    ];
    for (bytes, expected) in cases {
        let message = message(bytes);
        assert!(message.contains(expected), "{message}\n  does not say: {expected}");
    }
}

#[test]
fn a_tokenizer_that_does_not_belong_to_the_model_is_refused() {
    let message = |bytes| GgufFile::from_bytes(Path::new("m"), bytes).unwrap().tokenizer().unwrap_err().to_string();
    // The array's length is followed by its texts: one token fewer, which leaves the metadata walkable at no other place.
    let mut fewer = std::fs::read(fixtures().join("tiny.gguf")).unwrap();
    let key = b"tokenizer.ggml.token_type";
    let at = fewer.windows(key.len()).position(|window| window == key).unwrap();
    fewer[at..at + key.len()].copy_from_slice(b"tokenizer.ggml.token_typo");
    assert!(GgufFile::from_bytes(Path::new("m"), fewer).unwrap().tokenizer().is_ok(), "types are optional");
    assert!(
        message(after("tokenizer.ggml.bos_token_id", 4, &9_999u32.to_le_bytes()))
            .contains("is 9999, but there are 262 tokens")
    );
    assert!(message(changed(b"\x02\0\0\0\0\0\0\0ll", b"\x02\0\0\0\0\0\0\0he")).contains("has a token twice"));
    assert!(message(changed(b"he ll", b"he_ll")).contains("is no pair"));
    assert!(message(changed(b"he ll", b"he xy")).contains("its tokenizer cannot be built"));
    assert!(
        message(changed(b"tokenizer.ggml.merges", b"tokenizer.ggml.nerges"))
            .contains("`tokenizer.ggml.merges` is missing")
    );
}
