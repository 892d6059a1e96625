//! The tokenizer that a file carries: byte-level BPE, whose pre-tokenizer goes by a name.

use super::metadata::Metadata;
use super::value::Number;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

/// A token with a task of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialToken {
    /// Its number.
    pub id: u32,
    /// How it is written.
    pub text: String,
}

/// A tokenizer from a GGUF file, and what the file says of its special tokens.
#[derive(Debug)]
pub struct GgufTokenizer {
    /// The tokenizer; it adds the first and the last token where the file says so.
    pub tokenizer: Tokenizer,
    /// The first token of a text.
    pub bos: Option<SpecialToken>,
    /// The last token of a text, or of an answer.
    pub eos: Option<SpecialToken>,
    /// What fills batches up.
    pub pad: Option<SpecialToken>,
    /// What stands for what the vocabulary does not have.
    pub unk: Option<SpecialToken>,
    /// Whether a text begins with `bos`.
    pub add_bos: bool,
    /// Whether a text ends with `eos`.
    pub add_eos: bool,
}

/// How a text is cut before BPE merges bytes.
#[derive(Debug)]
enum Cut {
    /// By GPT-2's rule.
    Gpt2,
    /// Every digit alone, then by GPT-2's rule.
    DigitsGpt2,
    /// By a pattern.
    Pattern(&'static str),
}

/// A pre-tokenizer, by its name in `tokenizer.ggml.pre`.
#[derive(Debug)]
pub(super) struct Recipe {
    name: &'static str,
    cut: Cut,
    /// Whether the text is composed (Unicode NFC) first.
    composes: bool,
    /// Whether a piece that is a token is taken as it is, though merges may not lead to it.
    ignores_merges: bool,
    /// Whether a text begins with `bos` when the file does not say.
    adds_bos: bool,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const RECIPES: [Recipe; 4] = [
    Recipe { name: "gpt-2", cut: Cut::Gpt2, composes: false, ignores_merges: false, adds_bos: false },
    Recipe { name: "smollm", cut: Cut::DigitsGpt2, composes: false, ignores_merges: false, adds_bos: false },
    Recipe { name: "llama-bpe", cut: Cut::Pattern(LLAMA3), composes: false, ignores_merges: true, adds_bos: true },
    Recipe { name: "qwen2", cut: Cut::Pattern(QWEN2), composes: true, ignores_merges: false, adds_bos: false },
];

/// What a token is, by its number in `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenKind {
    Normal,
    /// Found in a text before it is cut.
    Added,
    /// As `Added`, and left out when tokens become text.
    Special,
}

impl TokenKind {
    fn of_number(number: Number) -> Option<Self> {
        match number.as_usize()? {
            // Normal, unused, a byte.
            1 | 5 | 6 => Some(Self::Normal),
            // Unknown, control.
            2 | 3 => Some(Self::Special),
            // Defined by the user.
            4 => Some(Self::Added),
            _ => None,
        }
    }
}

/// The tokenizer of a file whose model has `vocabulary` embeddings.
pub(super) fn read(metadata: &Metadata<'_>, vocabulary: u64) -> Result<GgufTokenizer, String> {
    let model = metadata.optional_text("tokenizer.ggml.model")?.ok_or("it holds no tokenizer")?;
    if model != "gpt2" {
        return Err(format!(
            "its tokenizer is of the kind `{model}`, which cannot be read; `gpt2`, byte-level BPE, can"
        ));
    }
    let recipe = recipe(metadata.optional_text("tokenizer.ggml.pre")?)?;
    let missing = |key: &str| format!("the metadata `tokenizer.ggml.{key}` is missing");
    let tokens = metadata.optional_texts("tokenizer.ggml.tokens")?.ok_or_else(|| missing("tokens"))?;
    let merges = metadata.optional_texts("tokenizer.ggml.merges")?.ok_or_else(|| missing("merges"))?;
    if tokens.len() as u64 != vocabulary {
        return Err(format!("its tokenizer has {} tokens, but its model embeds {vocabulary}", tokens.len()));
    }
    let kinds = match metadata.optional_numbers("tokenizer.ggml.token_type")? {
        Some(numbers) if numbers.len() == tokens.len() => numbers
            .into_iter()
            .map(TokenKind::of_number)
            .collect::<Option<Vec<_>>>()
            .ok_or("the metadata `tokenizer.ggml.token_type` holds a number that is no type of tokens")?,
        Some(numbers) => return Err(format!("it has types for {} of {} tokens", numbers.len(), tokens.len())),
        None => vec![TokenKind::Normal; tokens.len()],
    };
    let special = |name: &str| special(metadata, &tokens, name);
    let (bos, eos, pad, unk) = (special("bos")?, special("eos")?, special("padding")?, special("unknown")?);
    let add_bos = metadata.optional_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(recipe.adds_bos);
    let add_eos = metadata.optional_bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let mut tokenizer = assemble(recipe, &tokens, &merges, &kinds)?;
    let first = wanted(add_bos, &bos, "first")?;
    let last = wanted(add_eos, &eos, "last")?;
    frame(&mut tokenizer, first, last)?;
    Ok(GgufTokenizer { tokenizer, bos, eos, pad, unk, add_bos, add_eos })
}

fn recipe(name: Option<&str>) -> Result<&'static Recipe, String> {
    let known = || RECIPES.each_ref().map(|recipe| recipe.name).join(", ");
    let name = name.ok_or_else(|| {
        format!("its tokenizer does not name its pre-tokenizer ({} can be read); convert the model again", known())
    })?;
    RECIPES
        .iter()
        .find(|recipe| recipe.name == name)
        .ok_or_else(|| format!("its pre-tokenizer is `{name}`, which cannot be read; {} can", known()))
}

fn special(metadata: &Metadata<'_>, tokens: &[&str], name: &str) -> Result<Option<SpecialToken>, String> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(number) = metadata.optional_usize(&key)? else { return Ok(None) };
    match (u32::try_from(number), tokens.get(number)) {
        (Ok(id), Some(text)) => Ok(Some(SpecialToken { id, text: text.to_string() })),
        _ => Err(format!("the metadata `{key}` is {number}, but there are {} tokens", tokens.len())),
    }
}

fn wanted<'a>(add: bool, token: &'a Option<SpecialToken>, which: &str) -> Result<Option<&'a SpecialToken>, String> {
    match (add, token) {
        (true, None) => Err(format!("texts shall have a {which} token, but the file does not name it")),
        (true, Some(token)) => Ok(Some(token)),
        (false, _) => Ok(None),
    }
}

fn assemble(recipe: &Recipe, tokens: &[&str], merges: &[&str], kinds: &[TokenKind]) -> Result<Tokenizer, String> {
    let error = |e: tokenizers::Error| format!("its tokenizer cannot be built: {e}");
    let vocabulary: tokenizers::models::bpe::Vocab =
        tokens.iter().zip(0u32..).map(|(token, id)| (token.to_string(), id)).collect();
    if vocabulary.len() != tokens.len() {
        return Err("its tokenizer has a token twice".into());
    }
    let pairs = merges.iter().map(|merge| {
        // A token may begin with the blank's stand-in, but never with a blank.
        let (left, right) =
            merge.split_once(' ').ok_or_else(|| format!("its tokenizer's merge {merge:?} is no pair"))?;
        Ok((left.to_string(), right.to_string()))
    });
    let pairs = pairs.collect::<Result<Vec<_>, String>>()?;
    let model = BPE::builder().vocab_and_merges(vocabulary, pairs).ignore_merges(recipe.ignores_merges).build();
    let mut tokenizer = Tokenizer::new(model.map_err(error)?);
    if recipe.composes {
        tokenizer.with_normalizer(Some(NFC)).map_err(error)?;
    }
    tokenizer.with_pre_tokenizer(Some(recipe.pre_tokenizer().map_err(error)?));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let added = tokens.iter().zip(kinds).filter(|(_, kind)| **kind != TokenKind::Normal);
    let added = added.map(|(token, kind)| AddedToken::from(*token, *kind == TokenKind::Special).normalized(false));
    tokenizer.add_tokens(added.collect::<Vec<_>>()).map_err(error)?;
    Ok(tokenizer)
}

impl Recipe {
    fn pre_tokenizer(&self) -> Result<PreTokenizerWrapper, tokenizers::Error> {
        let bytes = |by_gpt2| ByteLevel::new(false, true, by_gpt2);
        Ok(match self.cut {
            Cut::Gpt2 => bytes(true).into(),
            Cut::DigitsGpt2 => Sequence::new(vec![Digits::new(true).into(), bytes(true).into()]).into(),
            Cut::Pattern(pattern) => {
                let pattern = SplitPattern::Regex(pattern.into());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
                Sequence::new(vec![split.into(), bytes(false).into()]).into()
            }
        })
    }
}

/// Lets texts begin and end with these tokens.
fn frame(tokenizer: &mut Tokenizer, first: Option<&SpecialToken>, last: Option<&SpecialToken>) -> Result<(), String> {
    if first.is_none() && last.is_none() {
        return Ok(());
    }
    let error = |e: String| format!("its first and last tokens cannot be added: {e}");
    let around = |text: &str| -> Vec<String> {
        let name = |token: Option<&SpecialToken>| token.map(|token| token.text.clone());
        name(first).into_iter().chain([text.to_string()]).chain(name(last)).collect()
    };
    let template = TemplateProcessing::builder()
        .try_single(around("$A"))
        .and_then(|builder| builder.try_pair([around("$A"), around("$B:1")].concat()))
        .map_err(error)?
        .special_tokens([first, last].into_iter().flatten().map(|t| (t.text.clone(), t.id)).collect::<Vec<_>>())
        .build()
        .map_err(|e| error(e.to_string()))?;
    tokenizer.with_post_processor(Some(template));
    Ok(())
}

/// The pieces that a pre-tokenizer cuts a text into, their bytes as characters.
#[cfg(test)]
pub(super) fn pieces(name: &str, text: &str) -> Vec<String> {
    use tokenizers::{Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};
    let recipe = recipe(Some(name)).unwrap();
    let mut normal = tokenizers::NormalizedString::from(text);
    if recipe.composes {
        NFC.normalize(&mut normal).unwrap();
    }
    let mut pieces = PreTokenizedString::from(normal);
    recipe.pre_tokenizer().unwrap().pre_tokenize(&mut pieces).unwrap();
    let splits = pieces.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
    splits.into_iter().map(|(piece, _, _)| piece.to_string()).collect()
}
