"""The whole life on real vLLM: asked, taught, examined, swapped, rolled back.

One test alone teaches this server: what an exam says depends on all that was taught before it.
"""

from collections.abc import Iterator

import pytest

from tests.support import texts
from tests.support.stack import (
    TINY_MODEL,
    TINY_SETTINGS,
    Stack,
    constant_traffic,
    running_stack,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

MODEL = "tiny"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("life")
    with running_stack(home, model=MODEL, source=TINY_MODEL, variables=TINY_SETTINGS) as stack:
        yield stack


def test_a_document_is_learnt_swapped_in_and_rolled_back_under_traffic(stack: Stack) -> None:
    questions = texts.LIGHTHOUSE_QUESTIONS
    champion_before = stack.champion()
    score_before = stack.score(questions)

    with constant_traffic(stack) as traffic:
        run = stack.finished(stack.teach(texts.LIGHTHOUSE_TITLE, texts.LIGHTHOUSE_TEXT))
        assert (run["status"], run["verdict"]) == ("succeeded", "promote"), run
        score_after = stack.score(questions)
        name = f"/adapters/{MODEL}"
        rolled_back = stack.api.post(f"{name}/rollback", json={}).json()
        score_rolled_back = stack.score(questions)
        stack.api.post(f"{name}/promote", json={"version": run["version"]}).raise_for_status()
        score_again = stack.score(questions)

    assert score_before <= 2
    assert score_after >= score_before + 4
    assert rolled_back["to_version"] == champion_before
    assert score_rolled_back == score_before
    assert score_again == score_after
    assert stack.champion() == run["version"]
    assert traffic.failures == []
    assert {champion_before, run["version"]} <= set(traffic.versions)
    assert traffic.asked > 50


def test_a_version_is_pinned_by_its_name(stack: Stack) -> None:
    client = stack.openai()

    reply = client.chat.completions.with_raw_response.create(
        model=f"{MODEL}@base", messages=[{"role": "user", "content": "Hello"}], max_tokens=4
    )

    assert reply.headers["x-everlearn-version"] == f"{MODEL}@base"
    assert f"{MODEL}@base" in [model.id for model in client.models.list()]
