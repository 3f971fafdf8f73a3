//! What real engines sent, read whole and cut anywhere: the counts are theirs, and the bytes pass.

use bytes::BytesMut;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::counts::Totals;
use super::said::Usage;
use super::scanner::{Scanner, Stands};
use super::whole;
use crate::admit::request::Ask;
use crate::endpoint::{CHAT, COMPLETIONS, EMBEDDINGS, Endpoint, MESSAGES, RERANK, RESPONSES, SCORE, TOKENIZE};

/// A captured stream, and what is to be read in it.
struct Stream {
    endpoint: &'static Endpoint,
    /// Of the request, beside the model.
    ask: Value,
    body: &'static str,
    /// The engine's last word: prompt, completion, cached.
    sum: Option<(u64, u64, u64)>,
    /// The running totals at the end: input and output; the input is an estimate where no usage came.
    totals: (u64, u64),
    error: Option<&'static str>,
    aborted: bool,
}

macro_rules! data {
    ($name:literal) => {
        include_str!(concat!("../../tests/data/", $name))
    };
}

fn streams() -> Vec<Stream> {
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let of = |endpoint, body, sum, totals| {
        let ask = json!({"messages": "abcdefgh", "stream": true, "stream_options": options});
        Stream { endpoint, ask, body, sum, totals, error: None, aborted: false }
    };
    let message = |body, sum, totals| Stream {
        ask: json!({"stream": true, "max_tokens": 9}),
        ..of(&MESSAGES, body, sum, totals)
    };
    vec![
        // No usage was asked for: 8 tokens came in 8 pieces.
        of(&CHAT, data!("vllm/a_stream.sse"), None, (3, 8)),
        of(&CHAT, data!("vllm/a_stream_usage.sse"), Some((17, 8, 0)), (3, 8)),
        of(&CHAT, data!("vllm/a_stream_usage_continuous.sse"), Some((17, 8, 0)), (17, 8)),
        of(&CHAT, data!("vllm/a_stream_logprobs.sse"), None, (3, 3)),
        Stream {
            ask: json!({"n": 2, "stream": true, "stream_options": options}),
            ..of(&CHAT, data!("vllm/a_stream_n2_usage.sse"), Some((17, 8, 0)), (17, 8))
        },
        Stream {
            // Of 12 tokens two made no text of their own.
            ask: json!({"prompt": ["a", "b"], "n": 2, "stream": true, "stream_options": options}),
            ..of(&COMPLETIONS, data!("vllm/a_compl_n2_list_stream.sse"), Some((6, 12, 0)), (3, 10))
        },
        of(&CHAT, data!("vllm/b_tools_required_stream.sse"), Some((198, 56, 128)), (198, 56)),
        message(data!("vllm/a_messages_stream.sse"), Some((13, 6, 0)), (13, 6)),
        message(data!("vllm/b_cached_messages_stream.sse"), Some((372, 4, 256)), (372, 4)),
        Stream {
            ask: json!({"input": "abcdefgh", "stream": true}),
            ..of(&RESPONSES, data!("vllm/a_responses_stream.sse"), Some((13, 6, 0)), (13, 6))
        },
        // Of four tokens the last made no text.
        of(&CHAT, data!("tgi/stream.sse"), Some((17, 4, 0)), (3, 3)),
        of(&CHAT, data!("sglang/stream.sse"), Some((42, 6, 40)), (42, 6)),
        of(&CHAT, data!("openai_compatible/closing_usage.sse"), Some((11, 3, 8)), (11, 3)),
        Stream { error: Some("500"), ..of(&CHAT, data!("vllm/crash_worker_stream.sse"), None, (3, 7)) },
        Stream { aborted: true, ..of(&CHAT, data!("vllm/sigterm_api_stream.sse"), Some((12, 114, 0)), (12, 114)) },
    ]
}

fn scan(stream: &Stream, pieces: &[&[u8]]) -> (Scanner, Vec<u8>, Stands) {
    let mut ask = stream.ask.clone();
    ask["model"] = json!("m");
    let ask = Ask::read(stream.endpoint, ask.to_string().as_bytes()).unwrap();
    let (mut scanner, mut out, mut stands) = (Scanner::new(&ask, 1 << 20), BytesMut::new(), Stands::Open);
    for piece in pieces {
        stands = scanner.push(piece, &mut out).unwrap();
    }
    out.extend_from_slice(&scanner.rest());
    (scanner, out.to_vec(), stands)
}

#[test]
fn streams_are_counted_as_the_engine_counts_and_pass_byte_for_byte() {
    for stream in streams() {
        let (scanner, out, stands) = scan(&stream, &[stream.body.as_bytes()]);
        let sum = scanner.sum().map(|usage| (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens));
        assert_eq!((stands, sum), (Stands::Done, stream.sum), "{}", stream.body);
        let Totals { input, output, reasoning } = scanner.totals();
        assert_eq!((input, output, reasoning), (stream.totals.0, stream.totals.1, 0), "{}", stream.body);
        assert_eq!((scanner.error(), scanner.is_aborted()), (stream.error, stream.aborted));
        assert!(scanner.is_answered());
        assert_eq!(String::from_utf8(out).unwrap(), stream.body, "all of it was asked for");
    }
}

#[test]
fn whole_answers_are_counted_as_the_engine_counts() {
    for (endpoint, body, prompt_tokens, completion_tokens, cached_tokens) in [
        (&CHAT, data!("vllm/a_chat.json"), 17, 16, 0),
        (&CHAT, data!("vllm/a_chat_n3.json"), 17, 18, 0),
        (&CHAT, data!("vllm/a_chat_logprobs.json"), 17, 3, 0),
        (&CHAT, data!("vllm/b_cached_2.json"), 372, 4, 256),
        (&MESSAGES, data!("vllm/a_messages.json"), 13, 8, 0),
        (&MESSAGES, data!("vllm/b_cached_messages.json"), 372, 4, 256),
        (&RESPONSES, data!("vllm/a_responses.json"), 13, 8, 0),
        (&RESPONSES, data!("vllm/b_cached_responses.json"), 372, 4, 256),
        (&EMBEDDINGS, data!("vllm/p_embeddings_list.json"), 8, 0, 0),
        (&RERANK, data!("vllm/p_rerank.json"), 8, 0, 0),
        (&SCORE, data!("vllm/p_v1_score.json"), 3, 0, 0),
        (&TOKENIZE, data!("vllm/a_tokenize.json"), 0, 0, 0),
    ] {
        let said = whole::read(endpoint.wire, body.as_bytes()).unwrap();
        let wanted = Usage { prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens: 0 };
        assert_eq!((said.usage, said.error), (Some(wanted), None), "{body}");
    }
}

proptest! {
    #[test]
    fn the_cuts_make_no_difference(which in 0usize..64, cuts in prop::collection::vec(0usize..5000, 0..12)) {
        let streams = streams();
        let stream = &streams[which % streams.len()];
        let bytes = stream.body.as_bytes();
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
        cuts.sort_unstable();
        let pieces: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
        let ((one, out, stands), (cut, cut_out, cut_stands)) = (scan(stream, &[bytes]), scan(stream, &pieces));
        prop_assert_eq!((out, stands, one.totals(), one.sum()), (cut_out, cut_stands, cut.totals(), cut.sum()));
    }
}
