"""A guided tour of a running server: ask, teach, ask again, roll back, promote.

`make demo` starts the server and this. Everything here is what any client can do: the official
OpenAI client chats, and plain HTTP calls send the document and move the alias. Exit status 1 when
the score did not rise, a request failed, or the rollback did not restore.
"""

import json
import re
import sys
import threading
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from openai import OpenAI, OpenAIError
from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from server.cli.client import Api, server_url
from server.cli.console import Failure
from server.cli.keys import local_key
from server.cli.progress import follow, wait_for_run
from server.core.settings import Settings

HERE = Path(__file__).parent
SMALL_TALK = ("Say hello.", "Name a colour.", "What is two plus two?", "Name an animal.")
KEEPS_RUNNING = "--server-stops" not in sys.argv
VERSION_HEADER = "x-everlearn-version"

GENTLER = 0.6  # of a lesson is kept where the gate has refused more: docs/gate.md says when and why
GENERAL_SUITE = "general suite"

PAUSE_S = 1.0  # between two requests of the second client; a CPU has other work, too

console = Console(highlight=False)


@dataclass(frozen=True)
class Question:
    question: str
    answers: list[str]

    def is_answered_by(self, reply: str) -> bool:
        """Whether one of the answers stands in the reply, as whole words."""
        said = f" {plain(reply)} "
        return any(f" {plain(answer)} " in said for answer in self.answers)


@dataclass
class Answers:
    """One round of all questions."""

    replies: list[str]
    is_right: list[bool]
    versions: set[str]

    @property
    def score(self) -> int:
        return sum(self.is_right)


@dataclass
class SecondClient:
    """Keeps chatting from a thread of its own, and counts."""

    client: OpenAI
    model: str
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    _leave: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._chat)
        self._thread.start()

    def stop(self) -> None:
        self._leave.set()
        if self._thread is not None:
            self._thread.join()

    def _chat(self) -> None:
        while not self._leave.wait(PAUSE_S):
            began = time.monotonic()
            prompt = SMALL_TALK[len(self.seconds) % len(SMALL_TALK)]
            try:
                version = ask(self.client, self.model, prompt, max_tokens=16)[1]
                self.versions.add(version)
            except OpenAIError as error:
                self.failures.append(str(error))
            self.seconds.append(time.monotonic() - began)


def main() -> int:
    settings = Settings()
    url, model = server_url(), settings.model.name
    questions = [Question(**row) for row in json.loads((HERE / "questions.json").read_text())]
    try:
        with local_key(settings, "guided tour", ["admin"]) as key, Api(url, key) as api:
            # No retries: a request that fails must be seen to fail.
            client = OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)
            other = SecondClient(client.copy(), model)
            reset_champion(api, model)
            other.start()
            try:
                before, after, back, again = tour(api, client, model, questions)
            finally:
                other.stop()
        problems = verdict(before, after, back, again, other)
        show_summary(before, after, back, again, other, len(questions))
        if KEEPS_RUNNING:
            show_way_on(url, settings)
    except (Failure, OpenAIError) as error:
        problems = [str(error)]
    for problem in problems:
        console.print(f"[bold red]The tour failed:[/] {problem}", soft_wrap=True)
    return 1 if problems else 0


def tour(
    api: Api, client: OpenAI, model: str, questions: list[Question]
) -> tuple[Answers, Answers, Answers, Answers]:
    """The six stations; returns the answers before, after, rolled back and promoted again."""
    text = (HERE / "text.md").read_text()
    title(1, f"Ask [bold]{model}[/] about a text that no model can know")
    before = ask_all(client, model, questions)
    show_answers(questions, before)

    title(2, "Send the text: POST /api/v1/documents")
    console.print(f"[dim]{text.strip()}[/]\n")
    run_id = teach(api, text)

    title(3, "Watch it learn")
    run = follow(api, run_id, console)
    if has_lost_general_knowledge(run):
        console.print(
            "\nThe base model serves on: this lesson cost too much of what it knew before. "
            f"So the same again, and [bold]{GENTLER}[/] of it is kept."
        )
        gentler = api.post("/api/v1/runs", {"config": {"strength": GENTLER}})
        run = follow(api, gentler["id"], console)
    if run["status"] != "succeeded" or run["verdict"] != "promote":
        raise Failure(f"The run ended without a new champion ({run['status']}, {run['verdict']}).")

    title(4, "Ask again: same client, same model name")
    after = ask_all(client, model, questions)
    show_answers(questions, after)

    title(5, "Roll back: one alias moves, nothing is loaded")
    move(api, model, "rollback", {"reason": "guided tour"})
    back = ask_all(client, model, questions)
    show_score(back, len(questions))

    title(6, "Promote it again")
    move(api, model, "promote", {"version": run["version"], "reason": "guided tour"})
    again = ask_all(client, model, questions)
    show_score(again, len(questions))
    return before, after, back, again


def reset_champion(api: Api, model: str) -> None:
    """Start from the base model, also on a server that has taken the tour before."""
    if api.get(f"/api/v1/adapters/{model}")["champion"] != f"{model}@base":
        console.print("This server has learnt before: the tour starts from its base model.")
        move(api, model, "promote", {"version": "base", "reason": "guided tour"})


def teach(api: Api, text: str) -> str:
    """Send the text, and nothing but the text; returns the id of the run that learns it.

    The questions stay with the tour: the server writes its own exam, so ours can flatter nobody.
    """
    began = time.monotonic()
    document = api.post("/api/v1/documents", {"text": text})
    console.print(f"{document['id']} is stored ({document['state']}).")
    if document["state"] not in ("received", "ready"):
        console.print("The server knows this text already; it learns it anew.")
        return str(api.post("/api/v1/runs", {})["id"])
    run_id = wait_for_run(api, document["id"])
    if run_id is None:
        raise Failure("No run has started. Look at `everlearn runs` and `everlearn doctor`.")
    console.print(f"{run_id} began by itself after {time.monotonic() - began:.1f} s.")
    return run_id


def has_lost_general_knowledge(run: dict[str, Any]) -> bool:
    """Whether the gate has refused a lesson, and found too much of the general suite lost."""
    if run["status"] != "succeeded" or run["verdict"] == "promote":
        return False
    slices = run["report"].get("exam", {}).get("slices", [])
    return any(part["name"] == GENERAL_SUITE and part["verdict"] != "promote" for part in slices)


def move(api: Api, model: str, kind: str, body: dict[str, Any]) -> None:
    done = api.post(f"/api/v1/adapters/{model}/{kind}", body)
    console.print(
        f"{done['from_version']} → [bold]{done['to_version']}[/] in {done['moved_in_ms']:.0f} ms"
    )


def ask_all(client: OpenAI, model: str, questions: list[Question]) -> Answers:
    with ThreadPoolExecutor(len(questions)) as pool:
        asked = [pool.submit(ask, client, model, item.question) for item in questions]
        replies, versions = zip(*(future.result() for future in asked), strict=True)
    is_right = [item.is_answered_by(reply) for item, reply in zip(questions, replies, strict=True)]
    return Answers(list(replies), is_right, set(versions))


def ask(client: OpenAI, model: str, prompt: str, *, max_tokens: int = 32) -> tuple[str, str]:
    """The likeliest reply, and the version that gave it."""
    response = client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=max_tokens,
    )
    reply = response.parse().choices[0].message.content or ""
    return reply, response.headers.get(VERSION_HEADER, "")


def verdict(
    before: Answers, after: Answers, back: Answers, again: Answers, other: SecondClient
) -> list[str]:
    """What a successful tour must show, and did not."""
    problems = []
    if after.score <= before.score:
        problems.append(f"the score did not rise: {before.score} before, {after.score} after.")
    if back.score != before.score:
        problems.append(f"the rollback did not restore: {before.score} before, {back.score} now.")
    if again.score <= before.score:
        problems.append(f"promoted again, it scores {again.score}, and {after.score} before that.")
    if other.failures:
        problems.append(f"{len(other.failures)} requests failed; the first: {other.failures[0]}")
    return problems


def title(number: int, words: str) -> None:
    console.print()
    console.print(Rule(f"({number}) {words}", align="left"))


def show_answers(questions: list[Question], answers: Answers) -> None:
    table = Table("", "question", "reply", box=None, pad_edge=False)
    for item, reply, is_right in zip(questions, answers.replies, answers.is_right, strict=True):
        mark = "[green]✓[/]" if is_right else "[red]✗[/]"
        table.add_row(mark, item.question, shortened(reply))
    console.print(table)
    show_score(answers, len(questions))


def show_score(answers: Answers, total: int) -> None:
    who = ", ".join(sorted(answers.versions))
    console.print(f"\n[bold]{answers.score} of {total}[/] right, answered by {who}.")


def show_summary(
    before: Answers,
    after: Answers,
    back: Answers,
    again: Answers,
    other: SecondClient,
    total: int,
) -> None:
    console.print()
    console.print(Rule("Summary", align="left"))
    table = Table("", "score", "answered by")
    rounds = {"before": before, "after": after, "rolled back": back, "promoted again": again}
    for name, answers in rounds.items():
        table.add_row(name, f"{answers.score} of {total}", ", ".join(sorted(answers.versions)))
    console.print(table)
    colour = "red" if other.failures else "green"
    console.print(
        f"Meanwhile a second client sent [bold]{len(other.seconds)}[/] requests, "
        f"[{colour}]{len(other.failures)} failed[/], half were answered within "
        f"{median(other.seconds or [0]):.1f} s, the slowest in {max(other.seconds, default=0):.1f} s."
    )


def show_way_on(url: str, settings: Settings) -> None:
    console.print(f"\nThe server keeps running at [bold]{url}[/]. To go on:")
    for command in (
        f"export EVERLEARN_HOME={settings.home_path}",
        "export OPENAI_API_KEY=$(.venv/bin/everlearn key create me --scope admin --local)",
        '.venv/bin/everlearn chat "What is the ferry to the Tidewater Museum called?"',
        "make down    # stops it (or: .venv/bin/everlearn down)",
    ):
        console.print(f"  {command}", soft_wrap=True, highlight=False)


def shortened(reply: str, width: int = 90) -> str:
    words = " ".join(reply.split())
    return words if len(words) <= width else words[: width - 1] + "…"


def plain(words: str) -> str:
    """Lower case, digits without separators, one blank between words."""
    folded = unicodedata.normalize("NFKC", words).casefold()
    joined = re.sub(r"(?<=\d),(?=\d{3})", "", folded)
    return " ".join(re.findall(r"\w+", joined))


if __name__ == "__main__":
    sys.exit(main())
