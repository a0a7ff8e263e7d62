"""The base model's greedy replies are asked for once, whoever runs the benchmark again."""

from pathlib import Path

from adapters.types import ChatMessage, SamplingParams
from benchmarks.remembered import RememberedSampler
from tests.support.workbench import ScriptedSampler

GREEDY = SamplingParams(max_tokens=8)


def say(text: str) -> list[ChatMessage]:
    return [{"role": "user", "content": text}]


def test_a_greedy_reply_is_asked_for_once_also_by_the_next_run(tmp_path: Path) -> None:
    model = ScriptedSampler(lambda said: said[-1]["content"].upper())
    first = RememberedSampler(model, tmp_path / "base.jsonl")
    assert first.chat([say("a"), say("b"), say("a")], GREEDY) == ["A", "B", "A"]

    again = RememberedSampler(model, tmp_path / "base.jsonl")

    assert again.chat([say("b"), say("c")], GREEDY) == ["B", "C"]
    assert [said[-1]["content"] for said in model.asked] == ["a", "b", "c"]


def test_other_settings_are_another_question(tmp_path: Path) -> None:
    model = ScriptedSampler(lambda said: str(len(model.asked)))
    sampler = RememberedSampler(model, tmp_path / "base.jsonl")

    replies = [
        sampler.chat([say("a")], params)
        for params in (GREEDY, SamplingParams(max_tokens=9), GREEDY)
    ]

    assert replies == [["1"], ["2"], ["1"]]


def test_sampled_replies_are_always_new(tmp_path: Path) -> None:
    model = ScriptedSampler(lambda said: str(len(model.asked)))
    sampler = RememberedSampler(model, tmp_path / "base.jsonl")
    sampled = SamplingParams(temperature=1.0)

    assert sampler.chat([say("a")], sampled) != sampler.chat([say("a")], sampled)
    assert not (tmp_path / "base.jsonl").exists()
