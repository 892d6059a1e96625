//! A real language model from a GGUF file writes what it should.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{World, assets};

#[test]
fn a_gguf_model_continues_a_prompt_and_nothing_else_is_printed() {
    let Some(assets) = assets() else { return };
    let model = assets.join("models/SmolLM2-135M-Instruct-GGUF");
    if !model.exists() {
        eprintln!("SKIPPED: {} is absent; `make assets` fetches it", model.display());
        return;
    }
    let world = World::new();
    let model = model.display().to_string();
    let prompt = ["--template", "plain", "--prompt", "The capital of France is", "--max-new-tokens", "2"];
    let written = world.succeed(&[&["generate", &model], &prompt[..]].concat());
    assert_eq!(written, " Paris.\n");
    let drawn =
        |seed| world.succeed(&[&["generate", &model], &prompt[..], &["--temperature", "1.5", "--seed", seed]].concat());
    assert_eq!(drawn("1"), drawn("1"));
}
