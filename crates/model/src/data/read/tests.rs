mod parquet;

use super::*;
use proptest::prelude::*;
use std::path::PathBuf;
use tempfile::TempDir;

fn file(name: &str, content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

fn rows(name: &str, content: impl AsRef<[u8]>) -> Vec<(String, String)> {
    let (_folder, path) = file(name, content);
    let examples = read(&path, &Columns::default()).unwrap();
    examples.into_iter().map(|e| (e.label, e.text)).collect()
}

/// The message without the temporary folder.
fn message(name: &str, content: impl AsRef<[u8]>, columns: &Columns) -> String {
    let (folder, path) = file(name, content);
    let message = read(&path, columns).unwrap_err().to_string();
    message.replace(&format!("{}/", folder.path().display()), "")
}

fn default_message(name: &str, content: impl AsRef<[u8]>) -> String {
    message(name, content, &Columns::default())
}

fn pairs(rows: &[(&str, &str)]) -> Vec<(String, String)> {
    rows.iter().map(|(label, text)| (label.to_string(), text.to_string())).collect()
}

/// What `predict` reads: files without labels.
#[test]
fn texts_are_read_without_labels_when_none_are_asked_for() {
    let columns = Columns { label: None, ..Columns::default() };
    for (name, content) in
        [("a.tsv", "text\tx\nhello\t1\n"), ("a.csv", "text\nhello\n"), ("a.jsonl", "{\"text\": \"hello\"}\n")]
    {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let examples = read(&path, &columns).unwrap();
        assert_eq!((examples[0].text.as_str(), examples[0].label.as_str()), ("hello", ""), "{name}");
    }
}

fn with_site() -> Columns {
    Columns { site: Some("site".into()), ..Columns::default() }
}

#[test]
fn tsv_reads_quotes_as_they_are_and_forgives_blank_lines_and_endings() {
    let content = "\u{feff}label\ttext\r\nacq\t\"said\r\n\r\nearn\the \"paid\", \\n 5\nearn\t";
    assert_eq!(rows("a.tsv", content), pairs(&[("acq", "\"said"), ("earn", "he \"paid\", \\n 5"), ("earn", "")]));
}

#[test]
fn every_line_of_a_text_file_is_an_example() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.txt");
    std::fs::write(&path, "one\ttab\n\ntwo\n").unwrap();
    let examples = read(&path, &Columns::of_text("text")).unwrap();
    assert_eq!(examples.iter().map(|e| e.text.as_str()).collect::<Vec<_>>(), ["one\ttab", "two"]);
    let error = read(&path, &Columns::default()).unwrap_err().to_string();
    assert!(error.contains("a text file has no column `label`"), "{error}");
}

#[test]
fn a_second_text_and_lists_are_read_where_they_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(&path, r#"{"text": [{"role": "user"}], "input": "", "label": "x"}"#).unwrap();
    let columns = Columns { second: Some("input".into()), structured: true, ..Columns::default() };
    let example = read(&path, &columns).unwrap().remove(0);
    assert_eq!((example.text.as_str(), example.second.as_deref()), (r#"[{"role":"user"}]"#, Some("")));
    let error = read(&path, &Columns { structured: false, ..columns }).unwrap_err().to_string();
    assert!(error.contains("`text` is not a string"), "{error}");
}

#[test]
fn squad_is_read_with_its_titles() {
    let squad = r#" {"version": "v2.0", "data": [{"title": "Grain", "paragraphs": [
        {"context": "wheat rose", "qas": [
            {"id": "1", "question": "what?", "answers": [{"text": "wheat", "answer_start": 0}], "is_impossible": false},
            {"id": "2", "question": "who?", "answers": [], "plausible_answers": [{"text": "rose"}], "is_impossible": true}
        ]}]}]}"#;
    let columns = Columns {
        second: Some("context".into()),
        label: Some("answers".into()),
        site: Some("title".into()),
        structured: true,
        ..Columns::of_text("question")
    };
    let (_folder, path) = file("train-v2.0.json", squad);
    let found = read(&path, &columns).unwrap();
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let found: Vec<_> = found.iter().map(|e| (e.text.as_str(), e.second.as_deref(), json(&e.label))).collect();
    let answer = json(r#"[{"answer_start": 0, "text": "wheat"}]"#);
    assert_eq!(found, [("what?", Some("wheat rose"), answer), ("who?", Some("wheat rose"), json("[]"))]);
    assert_eq!(read(&path, &columns).unwrap()[0].site.as_deref(), Some("Grain"));
    assert_eq!(
        message("a.json", r#"{"data": [{"title": "x"}]}"#, &columns),
        "a.json:1: not JSON: missing field `paragraphs` at line 1 column 24"
    );
    // What Hugging Face's viewer gives: one object a line.
    let line = r#"{"id": "1", "title": "Grain", "context": "c", "question": "q", "answers": {"text": ["c"], "answer_start": [0]}}"#;
    let (_folder, path) = file("a.jsonl", line);
    assert_eq!(json(&read(&path, &columns).unwrap()[0].label), json(r#"{"text": ["c"], "answer_start": [0]}"#));
}

#[test]
fn a_site_may_be_read_off_the_text_itself() {
    let columns = Columns { site: Some("text".into()), ..Columns::default() };
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [
        ("a.csv", "text,label\nhi,x\n"),
        ("a.tsv", "text\tlabel\nhi\tx\n"),
        ("a.jsonl", r#"{"text": "hi", "label": "x"}"#),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let example = read(&path, &columns).unwrap().remove(0);
        assert_eq!((example.text.as_str(), example.site.as_deref()), ("hi", Some("hi")), "{name}");
    }
}

#[test]
fn csv_follows_rfc_4180() {
    let content = "text,extra,label\r\n\"a, \"\"b\"\"\r\nc\",1,x\r\nplain,2,y\r\n";
    assert_eq!(rows("a.csv", content), pairs(&[("x", "a, \"b\"\r\nc"), ("y", "plain")]));
}

#[test]
fn json_is_lines_or_an_array_and_labels_may_be_numbers() {
    let expected = pairs(&[("3", "a\nb"), ("x", "c")]);
    let lines = "{\"text\": \"a\\nb\", \"label\": 3, \"other\": [1]}\n\n{\"label\": \"x\", \"text\": \"c\"}\n";
    for name in ["a.jsonl", "a.ndjson", "a.json", "A.JSONL"] {
        assert_eq!(rows(name, lines), expected);
    }
    let array = format!(" [\n{}]", lines.trim_end().replace("\n\n", ","));
    assert_eq!(rows("a.json", array), expected);
}

#[test]
fn every_example_knows_its_site_and_where_it_was_read() {
    for (name, content) in [
        ("a.tsv", "label\ttext\tsite\n\na\tb\tnorth\n"),
        ("a.csv", "label,text,site\n\na,b,north\n"),
        ("a.csv", "\r\nlabel,text,site\r\na,b,north"),
        ("a.csv", "label,\"text\",site,\"\n\"\na,b,north,c"),
        ("a.jsonl", "\n\n{\"label\": \"a\", \"text\": \"b\", \"site\": \"north\"}\n"),
    ] {
        let (_folder, path) = file(name, content);
        let examples = read(&path, &with_site()).unwrap();
        assert_eq!(examples[0].site.as_deref(), Some("north"));
        assert_eq!(examples[0].origin, Origin::new(&path, 3), "{name}");
    }
}

#[test]
fn a_missing_column_is_reported_with_the_nearest() {
    let expected =
        |at| format!("{at}: there is no column `label` (did you mean `Labels`?); the columns are `Labels`, `text`");
    assert_eq!(default_message("a.tsv", "Labels\ttext\na\tb\n"), expected("a.tsv:1"));
    assert_eq!(default_message("a.csv", "Labels,text\na,b\n"), expected("a.csv:1"));
    assert_eq!(default_message("a.jsonl", "{\"Labels\": 1, \"text\": \"\"}"), expected("a.jsonl:1"));
    assert_eq!(
        default_message("a.csv", "label;text\na;b\n"),
        "a.csv:1: the header is one column, `label;text`; separate the columns by commas instead of semicolons"
    );
    assert_eq!(
        default_message("a.tsv", "text\tx\ta\tb\n"),
        "a.tsv:1: there is no column `label`; the columns are `text`, `x`, `a`, `b`"
    );
    assert_eq!(
        default_message("a.tsv", "label\ttext\ttext\n"),
        "a.tsv:1: the column `text` is there more than once; rename or remove all but one"
    );
}

#[test]
fn a_broken_record_is_reported_with_its_line() {
    for (name, content, expected) in [
        ("a.tsv", "label\ttext\na\tb\nc\n", "a.tsv:3: the header has 2 columns, but this line has 1"),
        ("a.csv", "label,text\na,b\nc,d,e\n", "a.csv:3: the header has 2 columns, but this record has 3"),
        ("a.jsonl", "{\"label\": 1, \"text\": \"\"}\n{\"label\": \n", "a.jsonl:2: not JSON: "),
        ("a.json", "[\n{\"label\": 1,\n ]", "a.json:3: not JSON: "),
        ("a.jsonl", "{\"label\": 1.5, \"text\": \"\"}", "a.jsonl:1: `label` is neither a string nor a whole number"),
        ("a.jsonl", "{\"label\": 1, \"text\": 7}", "a.jsonl:1: `text` is not a string"),
        ("a.jsonl", "[1]", "a.jsonl:1: expected an object"),
        ("a.tsv", "label\ttext\n \tb\n", "a.tsv:2: the column `label` is empty"),
        ("a.csv", "label,text\n,b\n", "a.csv:2: the column `label` is empty"),
        ("a.jsonl", "{\"label\": null, \"text\": \"\"}", "a.jsonl:1: the column `label` is empty"),
    ] {
        let message = default_message(name, content);
        assert!(message.starts_with(expected), "{name}: {message}");
    }
}

#[test]
fn text_that_is_not_utf8_is_reported_with_its_line() {
    for (name, content) in [
        ("a.tsv", b"label\ttext\na\tb\nc\t\xff\n".as_slice()),
        ("a.csv", b"label,text\na,b\nc,\xff\n"),
        ("a.jsonl", b"{\"label\": 1, \"text\": \"\"}\n\n{\"label\": 1, \"text\": \"\xff\"}"),
        ("a.json", b"[\n\n\"\xff\"]"),
    ] {
        assert!(default_message(name, content).starts_with(&format!("{name}:3: the text is not UTF-8")), "{name}");
    }
}

#[test]
fn a_file_without_examples_is_refused() {
    for (name, content) in [("a.tsv", ""), ("a.tsv", "label\ttext\n\n"), ("a.csv", "label,text\n"), ("a.json", "[]")] {
        assert_eq!(default_message(name, content), format!("{name}: there are no examples in it"));
    }
}

#[test]
fn an_unreadable_path_and_an_unknown_extension_say_what_to_do() {
    let error = read(Path::new("nowhere/a.tsv"), &Columns::default()).unwrap_err().to_string();
    assert!(error.starts_with("cannot read nowhere/a.tsv: "), "{error}");
    assert_eq!(
        default_message("a.xlsx", ""),
        "a.xlsx: no reader for this kind of file; use one of .tsv, .csv, .jsonl, .ndjson, .json, .parquet, .txt; all \
         but .parquet may be compressed, with .gz, .zst after that"
    );
}

/// With a stray quote at the start of a field, all the rest of the file would be one text.
#[test]
fn a_quote_that_is_never_closed_is_refused_even_where_bad_records_are_skipped() {
    for (content, record, line) in [
        ("label,text\na,\"b \"\"c\"\" \"\na,5\" d\na,\"e\nb,f\n", 4, 4),
        ("\u{feff}\"label\",\"text\"\r\n\"a\r\nb\",\"\"\"c\r\na,d\"\"", 2, 3),
    ] {
        let told =
            format!("a.csv:{record}: a quote that opens in line {line} is closed nowhere up to the end of the file");
        assert_eq!(default_message("a.csv", content), told);
        let (_folder, path) = file("a.csv", content);
        let skipping = read_records(&path, &Columns::default(), OnBadRecord::Skip, &|| ()).unwrap_err();
        assert!(skipping.to_string().ends_with(&told), "{skipping}");
    }
    assert_eq!(rows("a.csv", "\u{feff}\"label\",text\nx,\"b\n5\"\"\""), pairs(&[("x", "b\n5\"")]));
}

#[test]
fn a_record_without_end_is_refused_before_it_takes_all_memory() {
    let long = "x".repeat(MAX_RECORD_BYTES + 10);
    assert!(default_message("a.tsv", format!("label\ttext\na\t{long}")).contains("a.tsv:2: the line is longer than"));
    let open_quote = format!("label,text\na,b\na,\"{}", long.replace('x', "x\n"));
    assert!(default_message("a.csv", open_quote).contains("a.csv:3: the record is longer than"));
}

#[test]
fn every_extension_in_the_table_has_a_reader() {
    for extension in EXTENSIONS {
        let error = read(Path::new(&format!("missing.{extension}")), &Columns::default()).unwrap_err();
        assert!(matches!(error, DataError::Io { .. }), "{extension}: {error}");
    }
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, content).unwrap();
    encoder.finish().unwrap()
}

fn zstandard(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 1).unwrap()
}

#[test]
fn compressed_files_are_read_whole_even_if_they_are_several_joined() {
    for (name, content) in [
        ("a.tsv", "label\ttext\na\tb\nc\tgröße\n"),
        ("a.csv", "label,text\na,b\nc,größe\n"),
        ("a.jsonl", "{\"label\": \"a\", \"text\": \"b\"}\n{\"label\": \"c\", \"text\": \"größe\"}\n"),
        ("a.json", "[{\"label\": \"a\", \"text\": \"b\"}, {\"label\": \"c\", \"text\": \"größe\"}]"),
    ] {
        let (first, second) = content.as_bytes().split_at(11);
        let expected = pairs(&[("a", "b"), ("c", "größe")]);
        assert_eq!(rows(&format!("{name}.gz"), [gzip(first), gzip(second)].concat()), expected, "{name}");
        assert_eq!(rows(&format!("{name}.ZST"), [zstandard(first), zstandard(second)].concat()), expected, "{name}");
    }
    assert!(default_message("a.parquet.gz", "").starts_with("a.parquet.gz: no reader for this kind of file"));
    assert!(default_message("a.gz", "").starts_with("a.gz: no reader for this kind of file"));
}

#[test]
fn a_damaged_or_falsely_named_compressed_file_is_an_error() {
    let content = "label\ttext\na\tb\n".repeat(50);
    for (name, bytes) in [("a.tsv.gz", gzip(content.as_bytes())), ("a.tsv.zst", zstandard(content.as_bytes()))] {
        let message = default_message(name, &bytes[..bytes.len() - 6]);
        assert!(message.starts_with(&format!("cannot read {name}: ")), "{message}");
        assert!(default_message(name, &content).starts_with(&format!("cannot read {name}: ")));
    }
}

/// 200 MB of one line in 200 kB of file.
#[test]
fn a_long_line_in_a_compressed_file_is_refused_without_being_held() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::copy(&mut std::io::Read::take(std::io::repeat(b'x'), 200_000_000), &mut encoder).unwrap();
    let (_folder, path) = file("a.jsonl.gz", encoder.finish().unwrap());
    let mut lines = text::Lines::open(&path).unwrap();
    let error = lines.next().unwrap().unwrap().unwrap_err().to_string();
    assert!(error.contains("a.jsonl.gz:1: the line is longer than"), "{error}");
    assert!(lines.held_bytes() <= 2 * MAX_RECORD_BYTES, "{}", lines.held_bytes());
    assert!(lines.next().unwrap().is_none(), "the rest of the line is passed over");
}

#[test]
fn bad_records_are_skipped_and_counted_on_request() {
    let long = "x".repeat(MAX_RECORD_BYTES + 10);
    let json = [
        b"{\"label\": 1, \"text\": \"first\"}\nnot JSON\n{\"label\": 1, \"text\": \"\xff\"}\n{\"label\": 1}\n"
            .as_slice(),
        long.as_bytes(),
        b"\n{\"label\": 2, \"text\": \"last\"}\n",
    ]
    .concat();
    let tsv = [b"label\ttext\n1\tfirst\n\tempty\n1\t\xff\nthree\tcells\there\n".as_slice(), b"2\tlast\n"].concat();
    let csv = [b"label,text\n1,first\n,empty\n1,\xff\nthree,cells,here\n".as_slice(), b"2,last\n"].concat();
    for (name, content, bad) in
        [("a.jsonl", json, vec![2, 3, 4, 5]), ("a.tsv", tsv, vec![3, 4, 5]), ("a.csv", csv, vec![3, 4, 5])]
    {
        let (_folder, path) = file(name, &content);
        let found = read_records(&path, &Columns::default(), OnBadRecord::Skip, &|| ()).unwrap();
        let texts: Vec<&str> = found.examples.iter().map(|e| e.text.as_str()).collect();
        assert_eq!((texts, found.skipped), (vec!["first", "last"], bad.len() as u64), "{name}");
        for (reason, line) in found.reasons.iter().zip(&bad) {
            assert!(reason.to_string().contains(&format!("{name}:{line}: ")), "{reason}");
        }
        let first = read_records(&path, &Columns::default(), OnBadRecord::Error, &|| ()).unwrap_err().to_string();
        assert_eq!(first, found.reasons[0].to_string(), "{name}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_even_if_records_are_skipped() {
    let skip = |name: &str, content: &str| {
        let (_folder, path) = file(name, content);
        read_records(&path, &Columns::default(), OnBadRecord::Skip, &|| ()).map(|r| r.skipped).unwrap_err().to_string()
    };
    assert!(skip("a.tsv", "labels\ttext\na\tb\n").contains("there is no column `label`"));
    assert!(skip("a.csv", "").contains("there are no examples"));
    assert!(skip("a.jsonl", "no\nJSON\n").contains("a.jsonl:1: not JSON"), "the first reason, when nothing is left");
    let open_quote = format!("label,text\na,b\na,\"{}", "x\n".repeat(MAX_RECORD_BYTES));
    assert!(skip("a.csv", &open_quote).contains("a.csv:3: the record is longer than"));
    let many = format!("label\ttext\na\tb\n{}", "bad\n".repeat(1000));
    let (_folder, path) = file("a.tsv", many);
    let found = read_records(&path, &Columns::default(), OnBadRecord::Skip, &|| ()).unwrap();
    assert_eq!((found.skipped, found.reasons.len()), (1000, 10), "only the first reasons are kept");
}

proptest! {
    #[test]
    fn no_reader_panics_on_random_bytes(bytes: Vec<u8>, header in 0usize..3) {
        let start: &[u8] = [b"".as_slice(), b"label\ttext\n", b"label,text\n"][header];
        for extension in EXTENSIONS.iter().map(|e| e.to_string()).chain(COMPRESSIONS.map(|e| format!("tsv.{e}"))) {
            let (_folder, path) = file(&format!("a.{extension}"), [start, &bytes].concat());
            let _ = read(&path, &Columns::default());
            let _ = read_records(&path, &Columns::default(), OnBadRecord::Skip, &|| ());
        }
    }
}
