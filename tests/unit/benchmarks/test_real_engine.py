"""What counts as a token of a real engine."""

from benchmarks.load import Reply
from benchmarks.real_engine import Quota, tokens_of

USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":8}}\n\n'
WHOLE = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n' + USAGE + b"data: [DONE]\n\n"


def reply(body: bytes = WHOLE, status: int = 200) -> Reply:
    return Reply(0.0, status=status, parts=[body])


def test_tokens_are_those_that_the_stream_tells():
    assert tokens_of(WHOLE) == 8
    assert tokens_of(b'data: {"choices":[]}\n\ndata: [DONE]\n\n') is None
    assert tokens_of(b"") is None


def test_clients_are_let_go_when_all_replies_are_asked_for():
    quota = Quota(5, clients=2, tokens=8)

    assert [quota.take(reply()) for _ in range(5)] == [True, True, True, False, False]
    assert quota.tokens == 40


def test_a_short_or_refused_reply_is_a_failure_and_no_token():
    quota = Quota(3, clients=1, tokens=9)

    quota.take(reply())
    quota.take(reply(status=500))
    quota.lose()

    assert quota.tokens == 0
    assert dict(quota.failures) == {"8 tokens": 1, "status 500": 1, "connection lost": 1}
