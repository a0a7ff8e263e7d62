"""The general suite is well formed, and a file of the user's own is checked with clear errors."""

import json
from collections import Counter
from pathlib import Path

import pytest

from adapters.evaluation.general import GeneralSuiteInvalid, load_general_suite, slice_of
from adapters.rewards.answers import is_correct
from adapters.types import ItemKind

ROW = {"id": "facts-01", "slice": "facts", "prompt": "Capital of France?", "answers": ["Paris"]}


def test_ours_has_four_slices_of_ten_different_questions():
    items = load_general_suite()

    assert Counter(slice_of(item.id) for item in items) == {
        "facts": 10,
        "words": 10,
        "numbers": 10,
        "form": 10,
    }
    assert len({item.prompt for item in items}) == 40
    assert {(item.kind, item.document_id) for item in items} == {(ItemKind.GENERAL, None)}


def test_every_answer_of_ours_is_right_by_the_grader():
    for item in load_general_suite():
        for answer in item.answers:
            assert is_correct(f"I think it is {answer}.", item.answers), item.id


def test_an_echo_of_the_question_is_right_only_where_repeating_is_the_task():
    echoed = {item.id for item in load_general_suite() if is_correct(item.prompt, item.answers)}

    assert {slice_of(id_) for id_ in echoed} == {"form"}


def test_a_file_of_the_users_own_is_read(tmp_path: Path):
    (tmp_path / "suite.json").write_text(json.dumps([ROW]))

    (item,) = load_general_suite(tmp_path / "suite.json")

    assert (item.id, item.prompt, item.answers) == ("facts-01", "Capital of France?", ("Paris",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file: Invalid JSON"),
        ("{}", "must be a JSON list"),
        ("[]", "is empty"),
        (json.dumps([{"id": "facts-01"}]), r"\[0\]\['slice'\]: Field required"),
        (json.dumps([ROW | {"answers": []}]), r"\[0\]\['answers'\]"),
        (json.dumps([ROW | {"answers": "Paris"}]), r"\[0\]\['answers'\]"),
        (json.dumps([ROW | {"prompt": ""}]), r"\[0\]\['prompt'\]"),
        (json.dumps([ROW | {"points": 3}]), r"\[0\]\['points'\]"),
        (json.dumps([ROW | {"answers": ["the"]}]), "answer 'the' of facts-01 can never match"),
        (json.dumps([ROW | {"id": "words-01"}]), "id 'words-01' must be 'facts', a hyphen"),
        (json.dumps([ROW | {"id": "facts-"}]), 'write it as "facts-01"'),
        (json.dumps([ROW, ROW | {"prompt": "Other?"}]), "'id facts-01' stands twice"),
        (json.dumps([ROW, ROW | {"id": "facts-02"}]), "stands twice"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, content: str, message: str):
    (tmp_path / "suite.json").write_text(content)

    with pytest.raises(GeneralSuiteInvalid, match=message) as refused:
        load_general_suite(tmp_path / "suite.json")

    assert "suite.json" in str(refused.value)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(GeneralSuiteInvalid, match="cannot be read"):
        load_general_suite(tmp_path / "none.json")
