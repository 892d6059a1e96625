//! What is fuzzed: one function for every kind of bytes that come from outside. None may panic, whatever the bytes.
//!
//! `crates/model/tests/mutations.rs` runs the same functions on the stable toolchain over mutations of the same seeds.

use fedpipe_model::data::{COMPRESSIONS, ChatTemplate, Columns, EXTENSIONS, Message, has_answer, read};
use fedpipe_model::io::{GgufFile, WeightSource, read_adapter};
use std::path::Path;

/// A GGUF file: its directory, tensors, template and tokenizer.
pub fn gguf(bytes: &[u8]) {
    let Ok(file) = GgufFile::from_bytes(Path::new("fuzz.gguf"), bytes.to_vec()) else { return };
    for name in file.tensor_names() {
        let shape = file.tensor_shape(name).map(<[usize]>::to_vec);
        let _ = shape.and_then(|shape| file.tensor_f32(name, &shape));
    }
    let _ = file.chat_template();
    if let Ok(tokenizer) = file.tokenizer() {
        let _ = tokenizer.tokenizer.encode("hello 12 <s> \u{e9}", true);
    }
}

/// A PEFT adapter in `folder`: the length of its configuration in two bytes, the configuration, and the safetensors file.
pub fn adapter(folder: &Path, bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let Some((config, weights)) = rest.split_at_checked(u16::from_le_bytes(*length).into()) else { return };
    std::fs::write(folder.join("adapter_config.json"), config).expect("a writable folder");
    std::fs::write(folder.join("adapter_model.safetensors"), weights).expect("a writable folder");
    let _ = read_adapter(folder);
}

/// A chat template, over a conversation that stays the same.
pub fn chat(bytes: &[u8]) {
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    let Ok(template) = ChatTemplate::new(source, Some("<s>"), Some("</s>")) else { return };
    let turn = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let turns = [turn("system", "Be brief."), turn("user", "h\u{e9}"), turn("assistant", " x\n"), turn("user", "")];
    if let Ok(conversation) = template.conversation(&turns) {
        for answer in conversation.answers {
            assert!(conversation.text.get(answer).is_some(), "an answer lies outside the text");
        }
    }
}

/// A data file in `folder`: the first byte chooses the format and its compression, the rest is the file.
pub fn data(folder: &Path, bytes: &[u8]) {
    let Some((&choice, content)) = bytes.split_first() else { return };
    let (choice, formats) = (usize::from(choice), EXTENSIONS.len());
    let mut name = format!("data.{}", EXTENSIONS[choice % formats]);
    if let Some(compression) = COMPRESSIONS.get((choice / formats) % (COMPRESSIONS.len() + 1)) {
        name = format!("{name}.{compression}");
    }
    let path = folder.join(name);
    std::fs::write(&path, content).expect("a writable folder");
    let _ = read(&path, &Columns::default());
    let questions = Columns {
        second: Some("context".into()),
        label: Some("answers".into()),
        structured: true,
        ..Columns::of_text("question")
    };
    for example in read(&path, &questions).unwrap_or_default() {
        let _ = has_answer(&example);
    }
}
