"""How a model is asked about a text that it is shown: the same words wherever that is done."""

_OPEN_BOOK = "Read this text and answer the question in {}.\n\nText: {}\n\nQuestion: {}"


def open_book(text: str, question: str, *, form: str = "a few words") -> str:
    """The user message; `form` says what sort of answer is wanted."""
    return _OPEN_BOOK.format(form, text, question)
