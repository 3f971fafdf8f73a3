"""Anthropic's client for Python through Tollgate: whole messages, streams, counting, hanging up, and the right errors."""

import anthropic
from expect import GIVEN, MODEL, OTHER_MODEL, Counted, Told, equal, refused

counted = Counted()
http = anthropic.DefaultHttpxClient(event_hooks={"request": [counted]})
told = Told()


def client(key, **options):
    # The key travels as X-API-Key.
    return anthropic.Anthropic(base_url=GIVEN["url"], api_key=GIVEN["keys"][key], http_client=http, **options)


def hello(words="hello"):
    return [{"role": "user", "content": words}]


def messages(us):
    answer = us.messages.create(model=MODEL, max_tokens=7, system="be kind", messages=hello())
    equal((answer.stop_reason, answer.usage.output_tokens), ("max_tokens", 7), "a message")
    assert answer.content[0].text
    told.add(MODEL, prompt(answer.usage), answer.usage.output_tokens)
    thought = us.messages.create(model=MODEL, max_tokens=9, messages=hello("[[reasoning:4]] hello"))
    equal([block.type for block in thought.content], ["thinking", "text"], "blocks")
    told.add(MODEL, prompt(thought.usage), thought.usage.output_tokens)


def prompt(usage):
    """All of the prompt: Anthropic counts what was cached, or is now, apart from the input."""
    return usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)


def streams(us):
    with us.messages.stream(model=OTHER_MODEL, max_tokens=7, messages=hello()) as stream:
        text = "".join(stream.text_stream)
        answer = stream.get_final_message()
    equal(answer.content[0].text, text, "the text of a stream")
    equal(answer.usage.output_tokens, 7, "its tokens")
    told.add(OTHER_MODEL, prompt(answer.usage), answer.usage.output_tokens)
    events = list(us.messages.create(model=MODEL, max_tokens=2, messages=hello(), stream=True))
    kinds = [event.type for event in events]
    equal((kinds[0], kinds[-2], kinds[-1]), ("message_start", "message_delta", "message_stop"), "events")
    usage = events[-2].usage
    told.add(MODEL, prompt(usage), usage.output_tokens)


def counts(us):
    counted_tokens = client("hasty").messages.count_tokens(model=MODEL, messages=hello()).input_tokens
    answer = us.messages.create(model=MODEL, max_tokens=1, messages=hello())
    equal(prompt(answer.usage), counted_tokens, "tokens counted before")
    told.add(MODEL, prompt(answer.usage), answer.usage.output_tokens)


def errors():
    def message(key, model=MODEL, words="hello", **fields):
        return client(key).messages.create(model=model, messages=hello(words), max_tokens=5, **fields)

    with refused(anthropic.AuthenticationError, 401, counted, 1):
        message("wrong")
    with refused(anthropic.NotFoundError, 404, counted, 1):
        message("mine", "no-such-model")
    with refused(anthropic.PermissionDeniedError, 403, counted, 1):
        message("narrow", OTHER_MODEL)
    with refused(anthropic.BadRequestError, 400, counted, 1):
        message("hasty", extra_body={"temperature": -1})
    with refused(anthropic.RateLimitError, 429, counted, 1):
        message("spent")
    message("slow")
    with refused(anthropic.RateLimitError, 429, counted, 1):
        client("slow", max_retries=0).messages.create(model=MODEL, messages=hello(), max_tokens=5)
    with refused(anthropic.ServiceUnavailableError, 503, counted, 2):
        client("hasty", max_retries=1).messages.create(
            model=MODEL, messages=hello("[[fault:overload]]"), max_tokens=5
        )
    text = ""
    try:
        with client("hasty").messages.stream(
            model=MODEL, messages=hello("[[fault:error_mid_stream:5]]"), max_tokens=9
        ) as stream:
            for piece in stream.text_stream:
                text += piece
    except anthropic.APIStatusError as error:
        assert text, error
    else:
        raise AssertionError("a stream that broke ended as if it were whole")


def hang_up():
    with client("hasty").messages.stream(model=MODEL, max_tokens=5000, messages=hello()) as stream:
        for number, _ in enumerate(stream.text_stream):
            if number == 4:
                break
    return 1


us = client("mine")
for check in (messages, counts):
    check(us)
streams(us)
errors()
told.say(hang_up())
