"""What the editor is asked: chat prompts, because the served models are instruction-tuned.

The kinds are those of SEAL (arXiv 2506.10943, section 4.1 and appendix B), where a base model
completes them; the wording is ours. Each says the form of the reply that `free_edits` splits.
"""

from adapters.spec import EditPrompt

_PASSAGE = "Title: {title}\n\nText: {passage}\n\n{request}"

_REQUESTS = {
    EditPrompt.IMPLICATIONS: (
        "List several facts that follow from this text, directly or indirectly. Write one full "
        "sentence per line, and name in each whom or what it is about. Add nothing that the text "
        "does not say or imply."
    ),
    EditPrompt.IMPLICATIONS_LONG: (
        "Write a long list of facts that follow from this text, directly or indirectly: as many "
        "as you can find. Write one full sentence per line, and name in each whom or what it is "
        "about. Add nothing that the text does not say or imply."
    ),
    EditPrompt.REWRITE: (
        "Say this text again in several different ways. Keep every name, number and date as it "
        "is and add nothing. Put a line with only --- between one way and the next."
    ),
    EditPrompt.SELF_QA: (
        "Write questions about this text with their answers. Each question must be clear to "
        "someone who has not seen the text, and each answer short and taken from the text. "
        "Use this form:\nQuestion 1: ...\nAnswer: ...\nQuestion 2: ...\nAnswer: ..."
    ),
}

AGREES = (
    "Text: {passage}\n\nStatement: {statement}\n\n"
    "Is the statement true according to the text? Answer only yes or no."
)
"""Asked of the base model about each statement."""


def edit_prompt(kind: EditPrompt, *, title: str, passage: str) -> str:
    """The user message that asks for an edit of one passage.

    Raises:
        KeyError: `kind` is the one that asks for nothing.
    """
    return _PASSAGE.format(title=title, passage=passage, request=_REQUESTS[kind])
