"""A verifier of one's own: a service that says whether replies are right. Only the standard library.

    python examples/verifier_service.py 9000
    EVERLEARN_LEARNING__VERIFIER_HOSTS='["127.0.0.1:9000"]' everlearn up

and as a method's verifier: {"type": "http", "url": "http://127.0.0.1:9000/"}.

This one knows a task by itself, so its prompts need no answers: "What is 17 + 25?", any two numbers.
"""

import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

QUESTION = re.compile(r"What is (-?\d+) ([+*-]) (-?\d+)\?")


def is_right(messages: list[dict[str, str]], reply: str) -> bool | None:
    """Whether the last number of a reply is the answer; None where the question is another."""
    asked = QUESTION.search(messages[-1]["content"])
    if asked is None:
        return None
    first, sign, second = int(asked[1]), asked[2], int(asked[3])
    answer = {"+": first + second, "-": first - second, "*": first * second}[sign]
    given = re.findall(r"-?\d+", reply)
    return bool(given) and int(given[-1]) == answer


class Handler(BaseHTTPRequestHandler):
    """Answers each POST of {"messages", "reply", ...} with {"is_right": true, false or null}."""

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["content-length"])))
        verdict = {"is_right": is_right(question["messages"], question["reply"])}
        body = json.dumps(verdict).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: replies are nobody's business but the learner's."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    sys.stdout.write(f"listening on port {server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
