"""What the trainers are compared on: the same samples for all, cut as each case says."""

from pathlib import Path

import pytest

from adapters.training.advantages import grpo_advantages
from benchmarks import training
from benchmarks.training_cases import BATCH, CASES, STEP, reward, steps_of, text

TOKENS = list(range(5_000))


@pytest.mark.parametrize("case", CASES)
def test_every_contender_gets_the_same_samples(case: str):
    steps = steps_of(case, TOKENS, 3)

    assert steps == steps_of(case, TOKENS, 3)
    assert [len(step) for step in steps] == [BATCH] * 3
    assert steps[0] != steps[1]


def test_the_cases_are_what_their_names_say():
    first = {case: steps_of(case, TOKENS, 1)[0] for case in CASES}

    assert len({len(sample.ids) for sample in first["equal lengths"]}) == 1
    assert len({len(sample.ids) for sample in first["varied lengths"]}) == BATCH
    assert len({sample.ids[:24] for sample in first["short chats"]}) == 1
    assert len({sample.ids[:384] for sample in first["long shared prompt"]}) == 1
    assert {sample.group for sample in first["long shared prompt"]} == {"prompt"}


def test_trl_is_told_the_rewards_that_our_advantages_came_from():
    step = steps_of("GRPO", TOKENS, 1)[0]
    rewards = [reward(sample) for sample in step]

    assert set(rewards) == {0.0, 1.0}
    first = [(sample.advantages or ())[0] for sample in step]
    assert first == pytest.approx(grpo_advantages(rewards))


def test_there_is_text_enough_to_cut_from():
    assert len(text().split()) > 2_000


def test_contenders_take_turns_and_one_that_dies_is_named(tmp_path: Path, monkeypatch) -> None:
    """Two that note when they compute; a third that ends at its second step."""
    notes = tmp_path / "notes"
    (tmp_path / "a_contender.py").write_text(
        "import json, sys\n"
        "order = json.loads(sys.argv[1])\n"
        "for step in range(order['steps']):\n"
        "    sys.stdin.readline()\n"
        "    if order['contender'] == 'mortal' and step == 1: sys.exit(7)\n"
        f"    with open({str(notes)!r}, 'a') as file: file.write(order['contender'] + ' ')\n"
        "    print('words of a library')\n"
        f"    print({STEP!r}, flush=True)\n"
        "sys.stdin.readline()\n"
        "print(json.dumps({'name': order['contender']}))\n"
    )
    monkeypatch.setattr(training, "CONTENDER", "a_contender")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = training._parse(["--steps", "3"])

    reports = training._take_turns(["one", "other"], "short chats", tmp_path, options)

    assert reports == {"one": {"name": "one"}, "other": {"name": "other"}}
    assert notes.read_text().split() == ["one", "other"] * 3
    with pytest.raises(RuntimeError, match="mortal ended with status 7"):
        training._take_turns(["one", "mortal"], "short chats", tmp_path, options)
