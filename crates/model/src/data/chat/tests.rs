//! Against transformers (`scripts/golden_chat.py`), and against templates that mean no good.

use super::*;
use serde_json::Value;
use std::path::Path;

fn fixture() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/fixtures/chat.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn style(name: &str) -> ChatTemplate {
    template(fixture().iter().find(|style| style["name"] == name).unwrap())
}

fn template(style: &Value) -> ChatTemplate {
    ChatTemplate::new(style["source"].as_str().unwrap(), style["bos"].as_str(), style["eos"].as_str()).unwrap()
}

fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
    turns.iter().map(|(role, content)| Message { role: role.to_string(), content: content.to_string() }).collect()
}

#[test]
fn every_style_is_rendered_as_transformers_renders_it() {
    for style in fixture() {
        let (name, template) = (&style["name"], template(&style));
        for case in style["cases"].as_array().unwrap() {
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
            let prompt = if case["prompt"] == true { Prompt::Answer } else { Prompt::None };
            let got = template.render(&messages, prompt);
            match case["refused"].as_str() {
                Some(refused) => {
                    let error = got.unwrap_err();
                    assert!(matches!(&error, ChatError::Refused { message } if message == refused), "{name}: {error}");
                }
                None => assert_eq!(got.unwrap(), case["text"].as_str().unwrap(), "{name}: {messages:?}"),
            }
        }
    }
}

#[test]
fn answers_are_what_transformers_marks() {
    let mut answers = 0;
    for style in fixture() {
        let template = template(&style);
        for case in style["cases"].as_array().unwrap().iter().filter(|case| case["prompt"] == false) {
            let Some(expected) = case["answers"].as_array() else { continue };
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
            let got = template.conversation(&messages);
            if expected.is_empty() {
                assert!(matches!(got.unwrap_err(), ChatError::NoAnswer));
                continue;
            }
            let got = got.unwrap();
            let texts: Vec<&str> = got.answers.iter().map(|range| &got.text[range.clone()]).collect();
            assert_eq!(texts, expected.iter().map(|text| text.as_str().unwrap()).collect::<Vec<_>>());
            answers += texts.len();
        }
    }
    assert!(answers >= 5, "the fixture marks {answers} answers");
}

#[test]
fn an_answer_begins_behind_its_prompt_and_ends_with_its_last_token() {
    let turns = messages(&[
        ("system", "s"),
        ("user", "u"),
        ("assistant", "a <|eot_id|> b"),
        ("user", "v"),
        ("assistant", "c\n"),
    ]);
    let expected: [(&str, [&str; 2]); 4] = [
        ("smollm2", ["a <|eot_id|> b<|im_end|>", "c\n<|im_end|>"]),
        ("llama3", ["a <|eot_id|> b<|eot_id|>", "c<|eot_id|>"]),
        ("mistral", [" a <|eot_id|> b</s>", " c</s>"]),
        ("qwen", ["a <|eot_id|> b<|im_end|>", "c\n<|im_end|>"]),
    ];
    for (name, answers) in expected {
        let got = style(name).conversation(&turns).unwrap();
        assert_eq!(got.answers.iter().map(|range| &got.text[range.clone()]).collect::<Vec<_>>(), answers, "{name}");
    }
}

#[test]
fn a_template_that_rewrites_the_past_is_named() {
    let thoughts = "<think>x</think>y";
    let turns = messages(&[("user", "u"), ("assistant", thoughts), ("user", "v"), ("assistant", "z")]);
    let error = style("thinking").conversation(&turns).unwrap_err().to_string();
    assert!(
        error.starts_with("message 2 (of the role assistant): the chat template writes what comes before"),
        "{error}"
    );
    // One answer is the last one, and keeps its thoughts.
    let got = style("thinking").conversation(&turns[..2]).unwrap();
    assert_eq!(&got.text[got.answers[0].clone()], format!("{thoughts}</Assistant>\n"));
}

#[test]
fn the_tokens_of_answers_are_learned_and_no_others() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/fixtures/gguf/tiny.gguf");
    let file = crate::io::GgufFile::open(&path).unwrap();
    let tokenizer = file.tokenizer().unwrap();
    let source = file.chat_template().unwrap().unwrap();
    let token = |token: &Option<crate::io::SpecialToken>| token.as_ref().unwrap().text.clone();
    let (bos, eos) = (token(&tokenizer.bos), token(&tokenizer.eos));
    let template = ChatTemplate::new(source, Some(&bos), Some(&eos)).unwrap();
    let turns = messages(&[("user", "hé"), ("assistant", "hello ö"), ("user", "x")]);
    // This template asks for no answer, so its prompt is empty and the message's role is learned, too.
    let conversation = template.conversation(&turns).unwrap();
    assert_eq!(conversation.text, "<s>user: hé</s><s>assistant: hello ö</s><s>user: x</s>");
    let tokens = conversation.tokens(&tokenizer.tokenizer).unwrap();
    assert_eq!(tokens.ids.len(), tokens.learned.len());
    let learned: Vec<u32> = tokens.ids.iter().zip(&tokens.learned).filter(|(_, l)| **l).map(|(id, _)| *id).collect();
    assert_eq!(tokenizer.tokenizer.decode(&learned, false).unwrap(), "<s>assistant: hello ö</s>");
    let first = tokens.learned.iter().position(|&learned| learned).unwrap();
    assert_eq!((tokens.ids[first], first), (0, "<s>user:·hé</s>".chars().count() - "s>".len() - "/s>".len() + 1));
}

#[test]
fn hostile_templates_are_stopped() {
    let run = |source: &str| ChatTemplate::new(source, None, None)?.render(&messages(&[("user", "x")]), Prompt::None);
    let endless = [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{{ 'x' * 99999999 }}",
        "{{ ('x' * 9999) * 9999 }}",
        "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s.replace('x', 'xxxx') %}{% endfor %}",
    ];
    for source in endless {
        let error = run(source).unwrap_err();
        let stopped = matches!(error, ChatError::TooMuchWork { .. })
            || error.to_string().contains("recursion limit")
            || error.to_string().contains("too large");
        assert!(stopped, "{source}: {error}");
    }
    for source in [
        "{% include '/etc/passwd' %}",
        "{% import 'x' as y %}",
        "{% extends 'x' %}",
        "{% for %}",
        "{{ 'a",
        "{% generation %}",
    ] {
        let error = run(source).unwrap_err().to_string();
        assert!(error.starts_with("the chat template cannot be read: "), "{source}: {error}");
    }
    for source in [
        "{{ messages.x.y }}",
        "{{ open('/etc/passwd') }}",
        "{{ messages[0].__class__.__mro__ }}",
        "{{ 1 // 0 }}",
        "{{ missing + 'a' }}",
    ] {
        let error = run(source).unwrap_err().to_string();
        assert!(error.starts_with("the chat template fails: line 1: "), "{source}: {error}");
    }
    let deep = format!("{}1{}", "{{ (".repeat(5_000), ") }}".repeat(5_000));
    assert!(run(&deep).is_err());
    assert!(run(&format!("{{{{ {}1{} }}}}", "(".repeat(9_999), ")".repeat(9_999))).is_err());
    assert!(run(&"x".repeat(1 << 17)).unwrap_err().to_string().contains("32768 are possible"));
}

/// All of these end the process on an ordinary stack.
#[test]
fn what_nests_deep_is_stopped_or_done() {
    let run = |source: &str| ChatTemplate::new(source, None, None)?.render(&messages(&[("user", "x")]), Prompt::None);
    let nested = |times: usize, levels: usize, rest: &str| {
        let (open, close) = ("[".repeat(levels), "]".repeat(levels));
        let step = format!("{{% set ns.l = {open}ns.l{close} %}}");
        let rounds: String = (0..times).map(|_| format!("{{% for i in range(9999) %}}{step}{{% endfor %}}")).collect();
        format!("{{% set ns = namespace(l=[]) %}}{rounds}{rest}")
    };
    // 20,000 lists in each other, and as many as there is fuel for.
    for rest in ["{{ ns.l }}", "{{ ns.l | tojson }}", "{{ ns.l | string }}", "{{ ns.l ~ '' }}", "{{ ns.l == [ns.l] }}"]
    {
        let _ = run(&nested(2, 1, rest));
    }
    assert!(run(&nested(2, 1, "{{ ns.l }}")).unwrap_err().to_string().contains("nests more than 64 lists"));
    assert_eq!(run(&nested(2, 1, "ok")).unwrap(), "ok");
    let error = run(&nested(1, 60, "")).unwrap_err();
    assert!(matches!(error, ChatError::TooMuchWork { .. }), "{error}");

    let chain = |link: &str| format!("{{{{ x{} }}}}", link.repeat(4_000));
    for link in ["+1", ".b", "|f", "~1", "[0]", " or 1", "()", " if 1"] {
        let _ = run(&chain(link));
    }
    let doubled = format!("{{% set l = [1] %}}{}{{{{ l }}}}", "{% set l = [l, l] %}".repeat(30));
    assert!(run(&doubled).unwrap_err().to_string().contains("holds more than 65536 others"));
}

#[test]
fn a_folder_gives_its_template() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let render = || {
        let template = ChatTemplate::open(folder.path()).unwrap().unwrap();
        template.render(&messages(&[("user", "x")]), Prompt::None).unwrap()
    };
    assert!(ChatTemplate::open(folder.path()).unwrap().is_none());
    write(
        "tokenizer_config.json",
        r#"{"bos_token": {"content": "<s>"}, "eos_token": null, "chat_template": "{{ bos_token }}1"}"#,
    );
    assert_eq!(render(), "<s>1");
    let named =
        r#"{"chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]}"#;
    write("tokenizer_config.json", named);
    assert_eq!(render(), "yes");
    write("chat_template.jinja", "file{{ eos_token }}");
    assert_eq!(render(), "file");
    std::fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    write("tokenizer_config.json", r#"{"chat_template": 7}"#);
    assert!(ChatTemplate::open(folder.path()).unwrap_err().to_string().contains("neither a text nor a list"));
}
