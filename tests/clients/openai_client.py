"""OpenAI's client for Python through Tollgate: whole answers, streams, hanging up, and the right errors."""

import asyncio

import openai
from expect import EMBEDDER, GIVEN, MODEL, OTHER_MODEL, Counted, Told, equal, refused

URL = GIVEN["url"] + "/v1"
counted = Counted()
http = openai.DefaultHttpxClient(event_hooks={"request": [counted]})
told = Told()


def client(key, **options):
    return openai.OpenAI(base_url=URL, api_key=GIVEN["keys"][key], http_client=http, **options)


def hello(words="hello"):
    return [{"role": "user", "content": words}]


def chats(us):
    answer = us.chat.completions.create(model=MODEL, messages=hello(), max_tokens=7)
    equal(answer.usage.completion_tokens, 7, "tokens of a chat")
    equal(answer.choices[0].finish_reason, "length", "its end")
    assert answer.choices[0].message.content and answer._request_id
    told.add(MODEL, answer.usage.prompt_tokens, answer.usage.completion_tokens)

    text, usage, chunks = "", None, 0
    stream = us.chat.completions.create(
        model=OTHER_MODEL, messages=hello(), max_tokens=7, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        chunks += 1
        for choice in chunk.choices:
            text += choice.delta.content or ""
        usage = chunk.usage or usage
    assert text and chunks >= 8, f"{chunks} chunks"
    equal(usage.completion_tokens, 7, "tokens of a streamed chat")
    told.add(OTHER_MODEL, usage.prompt_tokens, usage.completion_tokens)

    several = us.chat.completions.create(model=MODEL, messages=hello(), max_tokens=3, n=3, stop=["\u0001"])
    equal(len(several.choices), 3, "choices")
    told.add(MODEL, several.usage.prompt_tokens, several.usage.completion_tokens)


def completions(us):
    answer = us.completions.create(model=MODEL, prompt=["one", "another"], max_tokens=5)
    equal((len(answer.choices), answer.usage.completion_tokens), (2, 10), "completions")
    told.add(MODEL, answer.usage.prompt_tokens, answer.usage.completion_tokens)
    usage = None
    for chunk in us.completions.create(
        model=MODEL, prompt="one", max_tokens=5, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
    told.add(MODEL, usage.prompt_tokens, usage.completion_tokens)


def embeddings(us):
    # The client asks for base64 unless told otherwise, and decodes it.
    coded = us.embeddings.create(model=EMBEDDER, input=["hello world", "good morning"], dimensions=32)
    plain = us.embeddings.create(model=EMBEDDER, input="hello world", dimensions=32, encoding_format="float")
    equal([len(item.embedding) for item in coded.data], [32, 32], "vectors")
    for left, right in zip(coded.data[0].embedding, plain.data[0].embedding, strict=True):
        assert abs(left - right) < 1e-6
    for answer in (coded, plain):
        told.add(EMBEDDER, answer.usage.prompt_tokens, 0)


def responses(us):
    answer = us.responses.create(model=MODEL, input="hello", instructions="be kind", max_output_tokens=7)
    equal((answer.status, answer.usage.output_tokens), ("incomplete", 7), "a response")
    assert answer.output_text
    told.add(MODEL, answer.usage.input_tokens, answer.usage.output_tokens)
    with us.responses.stream(model=MODEL, input="hello", max_output_tokens=7) as stream:
        kinds = [event.type for event in stream]
        answer = stream.get_final_response()
    equal((kinds[0], kinds[-1]), ("response.created", "response.completed"), "events")
    assert answer.output_text
    told.add(MODEL, answer.usage.input_tokens, answer.usage.output_tokens)


def models(us):
    names = {model.id for model in us.models.list()}
    assert {MODEL, OTHER_MODEL, EMBEDDER} <= names, names
    equal(us.models.retrieve(MODEL).id, MODEL, "a model")


def errors():
    def chat(key, model=MODEL, words="hello", **fields):
        return client(key).chat.completions.create(model=model, messages=hello(words), max_tokens=5, **fields)

    with refused(openai.AuthenticationError, 401, counted, 1, "invalid_api_key"):
        chat("wrong")
    with refused(openai.NotFoundError, 404, counted, 1, "model_not_found"):
        chat("mine", "no-such-model")
    with refused(openai.PermissionDeniedError, 403, counted, 1, "model_not_allowed"):
        chat("narrow", OTHER_MODEL)
    with refused(openai.BadRequestError, 400, counted, 1):
        chat("hasty", temperature=-1)
    with refused(openai.BadRequestError, 400, counted, 1):
        chat("hasty", stream=True, temperature=-1)
    # No waiting mends a quota that is used up: the client does not try again, though it may try twice.
    with refused(openai.RateLimitError, 429, counted, 1, "insufficient_quota"):
        chat("spent")
    # A rate is one of those things that waiting mends, and for how long it says.
    chat("slow")
    try:
        client("slow", max_retries=0).chat.completions.create(model=MODEL, messages=hello(), max_tokens=5)
    except openai.RateLimitError as error:
        equal(error.code, "rate_limit_exceeded", "code")
        assert 1 <= int(error.response.headers["retry-after"]) <= 60
    else:
        raise AssertionError("a second request in a minute was served")
    # What may get better is tried again, as often as the client likes.
    with refused(openai.InternalServerError, 503, counted, 2):
        client("hasty", max_retries=1).chat.completions.create(
            model=MODEL, messages=hello("[[fault:overload]]"), max_tokens=5
        )
    # An engine that dies in the middle of a stream is an error, not a short answer.
    text = ""
    try:
        stream = client("hasty").chat.completions.create(
            model=MODEL, messages=hello("[[fault:error_mid_stream:4]]"), max_tokens=9, stream=True
        )
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    except openai.APIError as error:
        assert text, error
    else:
        raise AssertionError("a stream that broke ended as if it were whole")


def hang_up():
    us = client("hasty")
    long = {"model": MODEL, "stream": True, "max_tokens": 5000}
    stream = us.chat.completions.create(messages=hello(), **long)
    for number, _ in enumerate(stream):
        if number == 4:
            stream.close()
            break
    with us.completions.create(prompt="hello", **long) as stream:
        next(iter(stream))
    return 2


async def at_once():
    """The asynchronous client, several requests at a time."""
    async with openai.AsyncOpenAI(base_url=URL, api_key=GIVEN["keys"]["mine"]) as us:
        answers = await asyncio.gather(
            *(us.chat.completions.create(model=MODEL, messages=hello(f"number {i}"), max_tokens=4) for i in range(8))
        )
    for answer in answers:
        told.add(MODEL, answer.usage.prompt_tokens, answer.usage.completion_tokens)


us = client("mine")
for check in (chats, completions, embeddings, responses, models):
    check(us)
asyncio.run(at_once())
errors()
told.say(hang_up())
