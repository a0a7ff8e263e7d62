"""Free edits: asked for in turn under seeds of their own, split by the form that was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.corpus.reading import read_text
from adapters.methods.edit_prompts import edit_prompt
from adapters.methods.free_edits import (
    PassageEdit,
    Piece,
    as_self_edits,
    recall,
    split_reply,
    titled_passages,
    write_free_edits,
)
from adapters.spec import EditPrompt, SelfEditSpec
from adapters.types import (
    ChatMessage,
    EditKind,
    ProgressCallback,
    SamplingParams,
    SourceDocument,
)

CHUNKS = ("The Harbour of Quill was dug in 1874. ", "It has 12 cranes.", "  \n")
DOCUMENT = SourceDocument("doc", "Quill", "".join(CHUNKS), CHUNKS)
SPEC = SelfEditSpec()
WRITING = [kind for kind in EditPrompt if kind is not EditPrompt.NO_PROMPT]


@dataclass
class RecordingSampler:
    """Says under which seed it was asked, and remembers how."""

    calls: list[tuple[list[str], SamplingParams]] = field(default_factory=list)

    def chat(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[str]:
        self.calls.append(([said[-1]["content"] for said in conversations], params))
        return [f"Seed {params.seed} says so." for _ in conversations]


def test_edits_take_the_prompts_in_turn_each_under_a_seed_of_its_own() -> None:
    editor = RecordingSampler()

    edits = write_free_edits(
        DOCUMENT, (EditPrompt.REWRITE, EditPrompt.IMPLICATIONS), 3, editor=editor, spec=SPEC, seed=7
    )

    assert [edit[0].kind for edit in edits] == ["rewrite", "implications", "rewrite"]
    assert [edit[0].pieces[0].text for edit in edits] == [f"Seed {n} says so." for n in (7, 8, 9)]
    assert {(p.temperature, p.top_p, p.max_tokens) for _, p in editor.calls} == {(1.0, 0.95, 512)}


def test_each_passage_is_asked_about_under_the_title_and_blank_ones_are_not() -> None:
    editor = RecordingSampler()

    write_free_edits(DOCUMENT, (EditPrompt.REWRITE,), 1, editor=editor, spec=SPEC, seed=0)

    [(asked, _)] = editor.calls
    assert [passage in prompt for passage, prompt in zip(CHUNKS, asked, strict=False)] == [
        False,  # the passage is asked about without the white space around it
        True,
    ]
    assert "Text: The Harbour of Quill was dug in 1874.\n" in asked[0]
    assert all("Title: Quill\n" in prompt for prompt in asked)


def test_a_long_document_is_written_about_as_far_as_the_config_says() -> None:
    spec = SelfEditSpec(passages_per_document=1)
    editor = RecordingSampler()

    [edit] = write_free_edits(DOCUMENT, (EditPrompt.REWRITE,), 1, editor=editor, spec=spec, seed=0)

    assert [each.passage for each in edit] == ["The Harbour of Quill was dug in 1874."]


@pytest.mark.parametrize("prompts", [(), (EditPrompt.NO_PROMPT,)])
def test_without_a_prompt_nothing_is_asked(prompts: tuple[EditPrompt, ...]) -> None:
    editor = RecordingSampler()

    edits = write_free_edits(DOCUMENT, prompts, 2, editor=editor, spec=SPEC, seed=0)

    assert not any(edits)
    assert editor.calls == []


@pytest.mark.parametrize("kind", WRITING)
def test_every_kind_has_a_prompt_of_its_own_with_title_and_text(kind: EditPrompt) -> None:
    prompt = edit_prompt(kind, title="A {t}", passage="Text with {braces}.")

    assert "A {t}" in prompt
    assert "Text with {braces}." in prompt
    others = {edit_prompt(o, title="A {t}", passage="Text with {braces}.") for o in WRITING}
    assert len(others) == len(WRITING)


@pytest.mark.parametrize(
    ("kind", "reply", "texts"),
    [
        pytest.param(
            EditPrompt.IMPLICATIONS,
            "Here are some facts:\n1. Ships come.\n2) It is deep.\n\n- *Meg* is old.",
            ["Ships come.", "It is deep.", "*Meg* is old."],
            id="a list loses its introduction and its marks",
        ),
        pytest.param(
            EditPrompt.IMPLICATIONS,
            "Ships come.\nIt is deep.",
            ["Ships come.", "It is deep."],
            id="a first line that announces nothing stays",
        ),
        pytest.param(
            EditPrompt.IMPLICATIONS_LONG,
            "Sure\n1. Ships come.",
            ["Ships come."],
            id="what stands before item 1 is an introduction",
        ),
        pytest.param(
            EditPrompt.IMPLICATIONS,
            "Implications:\n1. Ships come.",
            ["Ships come."],
            id="a header is no piece",
        ),
        pytest.param(
            EditPrompt.REWRITE,
            "Version 1:\nIt was dug\nin 1874.\n---\nIn 1874 they dug it.\n ----- \n",
            ["It was dug in 1874.", "In 1874 they dug it."],
            id="rules divide rewrites, line breaks do not",
        ),
        pytest.param(
            EditPrompt.REWRITE,
            "It was dug in 1874.\n\n2. They dug it in 1874.",
            ["It was dug in 1874.", "They dug it in 1874."],
            id="blank lines divide where no rule does",
        ),
        pytest.param(EditPrompt.REWRITE, " \n---\n", [], id="nothing"),
    ],
)
def test_a_reply_is_split_into_statements(kind: EditPrompt, reply: str, texts: list[str]) -> None:
    assert [piece.text for piece in split_reply(kind, reply)] == texts


def test_a_reply_is_split_into_questions_with_answers() -> None:
    reply = (
        "Sure, here they are.\n**Question 1:** When was it dug?\nAnswer: In 1874.\n\n"
        "Q2. Who dug it?\nA: Ada Penhallow\n\nI hope this helps.\nQuestion 3: And why?\n"
        "Question 4: Where is it?\nAnswer:"
    )

    assert split_reply(EditPrompt.SELF_QA, reply) == [
        Piece("In 1874.", "When was it dug?"),
        Piece("Ada Penhallow", "Who dug it?"),
    ]


@given(st.sampled_from(WRITING), st.text())
def test_no_reply_is_too_strange_to_split(kind: EditPrompt, reply: str) -> None:
    assert all(piece.text.strip() for piece in split_reply(kind, reply))


@given(
    st.sampled_from(WRITING),
    st.lists(
        st.builds(
            lambda words: " ".join(["The", *words]) + ".",
            st.lists(
                st.sampled_from(["the", "old", "pump", "has", "12", "valves", "Ada", "Bell"]),
                min_size=1,
            ),
        ),
        min_size=1,
        unique=True,
    ),
)
def test_what_was_kept_is_found_again_in_what_is_stored(kind: EditPrompt, texts: list[str]) -> None:
    question = "Which one?" if kind is EditPrompt.SELF_QA else None
    passage = "It has 12 cranes."
    prompt = edit_prompt(kind, title=DOCUMENT.title, passage=passage)
    edit = PassageEdit(kind, prompt, passage, tuple(Piece(text, question) for text in texts))

    assert recall(DOCUMENT, prompt, edit.as_reply()) == edit


def test_what_was_asked_about_another_text_is_not_recalled() -> None:
    prompt = edit_prompt(EditPrompt.REWRITE, title="Quill", passage="It has 13 cranes.")

    assert recall(DOCUMENT, prompt, "It has 13 cranes.") is None


def test_statements_are_taught_under_the_title_and_questions_as_they_are_asked() -> None:
    reading = read_text(DOCUMENT.text)
    statement = PassageEdit(EditPrompt.REWRITE, "", "", (Piece("Quill has 12 cranes."),))
    question = PassageEdit(EditPrompt.SELF_QA, "", "", (Piece("12", "How many cranes?"),))

    said, asked = as_self_edits(DOCUMENT, [statement, question], reading)

    assert (said.kind, said.prompt, said.text) == (
        EditKind.REWRITE,
        None,
        "Quill\nQuill has 12 cranes.",
    )
    assert (asked.kind, asked.prompt, asked.text) == (
        EditKind.QUESTION,
        "About the Harbour of Quill: How many cranes?",
        "12",
    )


def test_the_text_itself_is_taught_under_the_title() -> None:
    assert [edit.text for edit in titled_passages(DOCUMENT)] == [
        "Quill\nThe Harbour of Quill was dug in 1874.",
        "Quill\nIt has 12 cranes.",
    ]
