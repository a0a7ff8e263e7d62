"""Commands: chat."""

import json

from tests.support.scripted_server import run


def test_chat_streams_and_names_the_version(server):
    pieces = [{"choices": [{"delta": {"content": word}}]} for word in ("Pale ", "Heron")]
    stream = "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces) + "data: [DONE]\n\n"
    server.answers["POST /v1/chat/completions"] = (200, stream)

    result = run("chat", "Which ferry?", "--model", "smollm2@v1")

    assert result.exit_code == 0, result.output
    assert result.stdout == "Pale Heron\n"
    assert "smollm2@v1" in result.stderr
    assert server.asked[0][1]["model"] == "smollm2@v1"


def test_conversation_carries_what_was_said(server):
    piece = {"choices": [{"delta": {"content": "Yes."}}]}
    server.answers["POST /v1/chat/completions"] = (
        200,
        f"data: {json.dumps(piece)}\n\ndata: [DONE]\n\n",
    )

    result = run("chat", input="One?\nTwo?\n\n")

    assert result.exit_code == 0, result.output
    roles = [message["role"] for message in server.asked[1][1]["messages"]]
    assert roles == ["user", "assistant", "user"]
