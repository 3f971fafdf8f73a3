"""What the scripts for Python share: what they were given, and how they say what they saw."""

import contextlib
import json
import os

GIVEN = json.loads(os.environ["TOLLGATE_TEST"])
MODEL, OTHER_MODEL, EMBEDDER = GIVEN["models"]


def equal(left, right, what):
    assert left == right, f"{what}: {left!r} is not {right!r}"


class Counted:
    """Counts the requests that a client really sends: an event hook of its HTTP library."""

    def __init__(self):
        self.sent = 0

    def __call__(self, _request):
        self.sent += 1


@contextlib.contextmanager
def refused(kind, status, counted, sent, code=None):
    """What is in it raises exactly this class with this status, after so many requests."""
    before = counted.sent
    try:
        yield
    except Exception as error:
        assert type(error) is kind, f"{type(error).__name__} is not {kind.__name__}: {error}"
        equal(error.status_code, status, "status")
        equal(counted.sent - before, sent, f"requests sent until {kind.__name__} {status}")
        if code is not None:
            body = error.body
            body = body.get("error", body)
            equal(body.get("code"), code, "code")
        assert error.request_id, "an id to ask about"
    else:
        raise AssertionError(f"no {kind.__name__}")


class Told:
    """Usage as the answers told it, to be held against the bill."""

    def __init__(self):
        self.models = {}

    def add(self, model, prompt, completion):
        row = self.models.setdefault(model, {"requests": 0, "prompt": 0, "completion": 0})
        row["requests"] += 1
        row["prompt"] += prompt
        row["completion"] += completion

    def say(self, hung_up):
        print(json.dumps({"told": self.models, "hung_up": hung_up}))
