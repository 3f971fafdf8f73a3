//! The simulator's tokenizer and text: four bytes are a token, and the output follows from the prompt.
//!
//! The rule, so that tests can predict every count:
//! - a text of `b` bytes is `ceil(b / 4)` tokens ([`count_text`]);
//! - a chat is 5 tokens, and per message 5 more than its text; tools add `ceil(bytes of their JSON / 4)`;
//! - a prompt given as token ids is those ids.

const VOCABULARY: u32 = 128_256;
const BYTES_PER_TOKEN: usize = 4;

/// The pieces that outputs are made of. Some need escapes in JSON, some several bytes.
const WORDS: [&str; 32] = [
    " keph",
    " anbaing",
    " lior",
    " moingse",
    "jumps",
    " quonalal",
    "zake",
    " stor",
    " stke",
    "seti",
    " kevo",
    " erlivoph",
    " thenunu",
    "tier",
    " raingli",
    " ratheph",
    " oronmo",
    " vozabaph",
    "A",
    "el",
    "og",
    " albaan",
    " tiing",
    " \"quoted\"",
    "\n",
    "\\",
    " 東京",
    " déjà",
    " 🦀",
    "\t",
    " &<>",
    " phtiza",
];

/// The first token of a character that takes two: its own text is empty, the next token's begins with the character.
const HALF: u64 = 32;
const FIRST_OUTPUT_TOKEN: u32 = 400;

/// One prompt token: its id and the bytes it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PromptToken {
    pub(super) id: u32,
    pub(super) bytes: Vec<u8>,
}

/// Tokens of a text: `ceil(bytes / 4)`.
#[must_use]
pub fn count_text(text: &str) -> u32 {
    u32::try_from(text.len().div_ceil(BYTES_PER_TOKEN)).unwrap_or(u32::MAX)
}

/// Tokens of a chat without tools: 5, and per message 5 more than its text.
#[must_use]
pub fn count_chat<'a>(contents: impl IntoIterator<Item = &'a str>) -> u32 {
    contents.into_iter().fold(5, |sum, content| sum.saturating_add(5).saturating_add(count_text(content)))
}

/// Whether a token id exists.
pub(super) fn in_vocabulary(id: u64) -> bool {
    id < u64::from(VOCABULARY)
}

/// The text of an id; a prompt's own text cannot be found again from its ids.
pub(super) fn text_of(id: u64) -> &'static str {
    let words = WORDS.len() as u64;
    usize::try_from(id % words).ok().and_then(|index| WORDS.get(index)).copied().unwrap_or("")
}

/// The tokens of a text.
pub(super) fn tokenize(text: &str) -> Vec<PromptToken> {
    text.as_bytes()
        .chunks(BYTES_PER_TOKEN)
        .map(|piece| PromptToken { id: piece_id(piece), bytes: piece.to_vec() })
        .collect()
}

/// A piece that the chat template writes, with a fixed id.
pub(super) fn special(id: u32, text: &str) -> PromptToken {
    PromptToken { id, bytes: text.as_bytes().to_vec() }
}

fn piece_id(piece: &[u8]) -> u32 {
    let hash = piece.iter().fold(0, |hash, byte| mix(hash ^ u64::from(*byte)));
    let room = u64::from(VOCABULARY - 1000);
    1000 + u32::try_from(hash % room).unwrap_or(0)
}

/// A well-stirred 64-bit value (the finalizer of SplitMix64); the only source of variety here.
pub(super) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The output of one choice: token after token, from the seed, the prompt and the choice's index.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    base: u64,
    position: u64,
    half_open: bool,
}

/// One output token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OutputToken {
    pub(super) id: u32,
    pub(super) text: String,
}

impl Writer {
    pub(super) fn new(seed: u64, prompt: &[u32], choice: u32) -> Self {
        let base = prompt.iter().fold(mix(seed), |hash, id| mix(hash ^ u64::from(*id)));
        Self { base: mix(base ^ u64::from(choice)), position: 0, half_open: false }
    }

    /// The next token. The last one of a choice never leaves half a character open.
    pub(super) fn next(&mut self, last: bool) -> OutputToken {
        let pick = mix(self.base ^ mix(self.position)) % (HALF + 1);
        self.position += 1;
        let before = if std::mem::take(&mut self.half_open) { "語" } else { "" };
        if pick == HALF && !last {
            self.half_open = true;
            return OutputToken { id: FIRST_OUTPUT_TOKEN + 32, text: before.to_owned() };
        }
        let word = usize::try_from(pick).ok().and_then(|index| WORDS.get(index)).copied().unwrap_or("\u{fffd}");
        OutputToken { id: FIRST_OUTPUT_TOKEN + u32::try_from(pick).unwrap_or(0), text: format!("{before}{word}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bytes_are_a_token() {
        assert_eq!(count_text(""), 0);
        assert_eq!(count_text("hello world"), 3);
        assert_eq!(count_chat(["hello world tell me a story"]), 17);
        assert_eq!(tokenize("hello world").len(), 3);
    }

    #[test]
    fn shared_prefixes_share_ids_and_no_id_is_out_of_vocabulary() {
        let (short, long) = (tokenize("hello world "), tokenize("hello world tell me"));
        assert_eq!(short[..], long[..3]);
        assert!(long.iter().all(|token| in_vocabulary(u64::from(token.id))));
    }

    #[test]
    fn the_same_prompt_gives_the_same_text_and_another_choice_another() {
        let text = |choice| {
            let mut writer = Writer::new(7, &[1, 2, 3], choice);
            (0..50).map(|i| writer.next(i == 49).text).collect::<String>()
        };
        assert_eq!(text(0), text(0));
        assert_ne!(text(0), text(1));
    }
}
