//! Parquet: files that pyarrow wrote, and files that nobody writes.

use super::*;
use ::parquet::basic::Compression::{self, GZIP, SNAPPY, UNCOMPRESSED, ZSTD};
use ::parquet::data_type::{
    ByteArray, ByteArrayType, DataType, FixedLenByteArray, FixedLenByteArrayType, Int32Type, Int64Type,
};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use ::parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};

type Group<'a> = SerializedRowGroupWriter<'a, Vec<u8>>;

/// A Parquet file of one row group, whose columns `fill` writes one after the other.
fn parquet(schema: &str, compression: Compression, fill: impl FnOnce(&mut Group<'_>)) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    fill(&mut group);
    group.close().unwrap();
    writer.into_inner().unwrap()
}

/// Writes the next column: its values, with the levels of definition and of repetition that the format tells lists by.
fn column<T: DataType>(group: &mut Group<'_>, values: &[T::T], levels: Option<(&[i16], &[i16])>) {
    let mut column = group.next_column().unwrap().unwrap();
    let (definitions, repetitions) = levels.unzip();
    column.typed::<T>().write_batch(values, definitions, repetitions).unwrap();
    column.close().unwrap();
}

/// Three columns, the label as numbers.
fn parquet_file(compression: Compression) -> Vec<u8> {
    let schema = "message m { required binary text (UTF8); required int64 label; optional binary site (UTF8); }";
    parquet(schema, compression, |group| {
        column::<ByteArrayType>(group, &[ByteArray::from("wheat price"), ByteArray::from("größe")], None);
        column::<Int64Type>(group, &[4, 5], None);
        column::<ByteArrayType>(group, &[ByteArray::from("north")], Some((&[1, 0], &[0, 0])));
    })
}

#[test]
fn parquet_reads_every_compression_that_hugging_face_writes() {
    for compression in [UNCOMPRESSED, SNAPPY, GZIP(Default::default()), ZSTD(Default::default())] {
        assert_eq!(rows("a.parquet", parquet_file(compression)), pairs(&[("4", "wheat price"), ("5", "größe")]));
    }
    let bytes = parquet_file(UNCOMPRESSED);
    assert_eq!(message("a.parquet", &bytes, &with_site()), "a.parquet:2: the column `site` is empty");
    let columns = Columns { text: "txt".into(), ..Columns::default() };
    assert_eq!(
        message("a.parquet", &bytes, &columns),
        "a.parquet:1: there is no column `txt` (did you mean `text`?); the columns are `text`, `label`, `site`"
    );
    assert!(default_message("a.parquet", &bytes[..100]).starts_with("a.parquet:1: not a Parquet file"));
}

/// Lists and structs of pyarrow's, missing values among them: the same as from JSON Lines (`scripts/golden_parquet.py`).
#[test]
fn nested_parquet_columns_are_the_json_that_they_would_be_in_json_lines() {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testkit/fixtures/parquet");
    for column in ["messages", "answers", "scores"] {
        let columns = Columns { structured: true, ..Columns::of_text(column) };
        let values = |file: &str| -> Vec<Value> {
            let examples = read(&fixtures.join(file), &columns).unwrap();
            examples.iter().map(|example| serde_json::from_str(&example.text).unwrap()).collect()
        };
        let (parquet, lines) = (values("nested.parquet"), values("nested.jsonl"));
        assert_eq!((parquet.len(), &parquet), (8, &lines), "{column}");
    }
    let asked = Columns { label: Some("answers".into()), structured: true, ..Columns::of_text("question") };
    let example = read(&fixtures.join("nested.parquet"), &asked).unwrap().swap_remove(5);
    let answers = json!({"answer_start": [5, 15], "text": ["answer 0", "answer 1"]});
    assert_eq!(serde_json::from_str::<Value>(&example.label).unwrap(), answers);
    assert!(example.text == "question 5" && example.origin.to_string().ends_with("nested.parquet:6"));
    let plain = read(&fixtures.join("nested.parquet"), &Columns::of_text("messages")).unwrap_err().to_string();
    assert!(
        plain.ends_with("nested.parquet:1: the column `messages` is nested, and this task reads plain values there")
    );
}

/// What a message says beside its text may be of a kind that JSON does not have; the time is one that chrono cannot write.
#[test]
fn a_conversation_is_read_whatever_its_messages_say_besides() {
    let schema = "message m { required group messages (LIST) { repeated group list { required group element {
        required binary role (UTF8); required binary content (UTF8); required int64 at (TIMESTAMP_MICROS);
        required int32 day (DATE); required int32 price (DECIMAL(9, 2));
        required fixed_len_byte_array (2) share (FLOAT16); required binary picture;
        required group marks (MAP) { repeated group key_value { required int32 key; required binary value (UTF8); } }
    } } } }";
    let text = |texts: [&str; 2]| texts.map(ByteArray::from);
    let bytes = parquet(schema, UNCOMPRESSED, |group| {
        let two: Option<(&[i16], &[i16])> = Some((&[1, 1], &[0, 1]));
        column::<ByteArrayType>(group, &text(["user", "assistant"]), two);
        column::<ByteArrayType>(group, &text(["hi", "yes?"]), two);
        column::<Int64Type>(group, &[1_700_000_000_000_000, i64::MAX], two);
        column::<Int32Type>(group, &[19_000, 19_001], two);
        column::<Int32Type>(group, &[199, 299], two);
        // 0.5 and 1 in half precision.
        let shares = [[0x00_u8, 0x38], [0x00, 0x3c]].map(|share| FixedLenByteArray::from(share.to_vec()));
        column::<FixedLenByteArrayType>(group, &shares, two);
        column::<ByteArrayType>(group, &[vec![0xff, 0xd8], b"GIF".to_vec()].map(ByteArray::from), two);
        // The first message has one mark, the second none.
        let one: Option<(&[i16], &[i16])> = Some((&[2, 1], &[0, 1]));
        column::<Int32Type>(group, &[7], one);
        column::<ByteArrayType>(group, &[ByteArray::from("good")], one);
    });
    let (_folder, path) = file("a.parquet", bytes);
    let columns = Columns { structured: true, ..Columns::of_text("messages") };
    let examples = read(&path, &columns).unwrap();
    let expected = json!([
        {"role": "user", "content": "hi", "at": null, "day": null, "price": null, "share": 0.5, "picture": null,
         "marks": {"7": "good"}},
        {"role": "assistant", "content": "yes?", "at": null, "day": null, "price": null, "share": 1.0,
         "picture": "GIF", "marks": {}},
    ]);
    assert_eq!(examples.len(), 1);
    assert_eq!(serde_json::from_str::<Value>(&examples[0].text).unwrap(), expected);
}

/// A list as Arrow writes it, and one as Parquet has it without a word about lists.
const LISTS: [&str; 2] = [
    "message m { required group text (LIST) { repeated group list { required binary element (UTF8); } } }",
    "message m { repeated binary text (UTF8); }",
];

/// A list of `count` times the same text, which the file holds once.
fn repeated(schema: &str, count: usize, text: &str) -> Vec<u8> {
    let repetitions: Vec<i16> = std::iter::once(0).chain(std::iter::repeat_n(1, count - 1)).collect();
    parquet(schema, UNCOMPRESSED, |group| {
        let values = vec![ByteArray::from(text); count];
        column::<ByteArrayType>(group, &values, Some((&vec![1; count], &repetitions)));
    })
}

#[test]
fn a_small_parquet_file_cannot_take_all_memory() {
    let columns = Columns { structured: true, ..Columns::of_text("text") };
    let told = |bytes: &[u8]| message("a.parquet", bytes, &columns);
    for schema in LISTS {
        let long = repeated(schema, 20_000, &"x".repeat(1000));
        assert!(long.len() < 1 << 20);
        assert_eq!(told(&long), format!("a.parquet:1: the record is longer than {MAX_RECORD_BYTES} bytes"));
    }
    let many = repeated(LISTS[0], (8 << 20) + 1, "");
    assert!(many.len() < 1 << 20);
    assert!(
        told(&many).starts_with("a.parquet:1: a row group has 8388609 values in a nested column"),
        "{}",
        told(&many)
    );
}

#[test]
fn a_list_is_one_however_it_is_written_and_no_text_where_a_task_reads_texts() {
    let plain = Columns::of_text("text");
    for schema in LISTS {
        let bytes = repeated(schema, 3, "x");
        let told = message("a.parquet", &bytes, &plain);
        assert_eq!(told, "a.parquet:1: the column `text` is nested, and this task reads plain values there");
        let (_folder, path) = file("a.parquet", bytes);
        let examples = read(&path, &Columns { structured: true, ..plain.clone() }).unwrap();
        assert_eq!(examples[0].text, r#"["x","x","x"]"#);
    }
}

/// The decoder panics at this damage, which `a_damaged_parquet_file_…` found.
#[test]
fn a_parquet_file_that_makes_the_decoder_panic_is_an_error() {
    let mut bytes = parquet_file(SNAPPY);
    bytes[388] = 5;
    assert!(default_message("a.parquet", bytes).starts_with("a.parquet:1: not a Parquet file that can be read"));
}

proptest! {
    #[test]
    fn a_damaged_parquet_file_is_an_error_or_reads_but_never_a_panic(
        at in 0usize..1000, value: u8, cut in proptest::option::of(0usize..1000),
    ) {
        let mut bytes = parquet_file(SNAPPY);
        let place = at % bytes.len();
        bytes[place] = value;
        bytes.truncate(cut.unwrap_or(usize::MAX));
        let (_folder, path) = file("a.parquet", bytes);
        let _ = read(&path, &Columns::default());
    }

    #[test]
    fn a_damaged_nested_parquet_file_is_an_error_or_reads_but_never_a_panic(at in 0usize..5695, value: u8) {
        let mut bytes = include_bytes!("../../../../../testkit/fixtures/parquet/nested.parquet").to_vec();
        bytes[at] = value;
        let (_folder, path) = file("a.parquet", bytes);
        for column in ["messages", "answers", "scores"] {
            let _ = read(&path, &Columns { structured: true, ..Columns::of_text(column) });
        }
    }
}
