"""Files become text: what is said stays, what is markup or menu goes, what is broken is named."""

import io

import pypdf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.corpus.parsing import Limits, Parsed, Unreadable, parse
from adapters.types import MediaType
from tests.support.files import make_docx, make_pdf

LIMITS = Limits(pages=10, bytes=100_000)


def read(content: bytes, kind: MediaType, **fields: object) -> Parsed:
    return parse(content, kind, limits=LIMITS, **fields)  # type: ignore[arg-type]


def test_html_becomes_markdown_without_what_nobody_sees() -> None:
    page = b"""<!doctype html><html><head><title> The
      ferry </title><style>p {color: red}</style></head><body><nav>Home</nav>
      <h1>Ferry to <a href="/v">Vessin</a></h1><p>It sails_at <b>five</b> &amp; 2 &lt; 3*.</p>
      <ul><li>one</li><li>two</li></ul><script>steal()</script>
      <table><tr><th>name</th></tr><tr><td>Marigold</td></tr></table></body></html>"""

    parsed = read(page, MediaType.HTML)

    assert parsed.title == "The ferry"
    assert parsed.text == (
        "# Ferry to Vessin\n\nIt sails_at **five** & 2 < 3*.\n\n- one\n- two\n\n"
        "| name |\n| --- |\n| Marigold |"
    )


def test_the_main_part_of_a_page_is_taken_where_it_says_which() -> None:
    page = b"<body><div>Cookies?</div><main><p>It sails.</p></main><div>(c)</div></body>"

    assert read(page, MediaType.HTML).text == "It sails."


@pytest.mark.parametrize(
    ("content", "charset"),
    [
        ("<p>Grüße</p>".encode("latin-1"), "iso8859-1"),
        ('<meta charset="windows-1252"><p>Grüße</p>'.encode("cp1252"), None),
        ("<p>Grüße</p>".encode(), None),
    ],
)
def test_the_declared_encoding_of_a_page_counts(content: bytes, charset: str | None) -> None:
    assert read(content, MediaType.HTML, charset=charset).text == "Grüße"


def test_a_pdf_gives_all_pages_with_broken_words_mended() -> None:
    pages = ["The Marlow light\nstands on Ves-\nsin since 1838.", "Its keeper is (still) Odile."]

    parsed = read(make_pdf(pages, title="The light"), MediaType.PDF)

    assert parsed.title == "The light"
    assert " ".join(parsed.text.split()) == (
        "The Marlow light stands on Vessin since 1838. Its keeper is (still) Odile."
    )


def test_a_docx_keeps_its_headings() -> None:
    parsed = read(make_docx(["# The light", "It is old &amp; tall."]), MediaType.DOCX)

    assert parsed == Parsed("# The light\n\nIt is old & tall.", "The light")


def test_a_pdf_of_too_many_pages_is_refused_by_number() -> None:
    with pytest.raises(Unreadable, match=r"11 pages, and 10 .*EVERLEARN_DOCUMENTS__MAX_PAGES"):
        read(make_pdf(["page"] * 11), MediaType.PDF)


def test_a_scan_is_told_of_ocr() -> None:
    with pytest.raises(Unreadable, match="OCR"):
        read(make_pdf([""]), MediaType.PDF)


def test_too_long_a_text_is_refused_by_its_setting() -> None:
    with pytest.raises(Unreadable, match="EVERLEARN_DOCUMENTS__MAX_BYTES"):
        read(b"<p>" + b"long " * 50_000, MediaType.HTML)


def test_a_locked_pdf_says_so() -> None:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(make_pdf(["secret"])))
    writer.encrypt("password", algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)

    with pytest.raises(Unreadable, match=r"locked with a password|encrypted"):
        read(file.getvalue(), MediaType.PDF)


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b"%PDF-1.4 rubbish", MediaType.PDF, "no whole PDF"),
        (make_pdf(["text"])[:200], MediaType.PDF, "no whole PDF"),
        (b"PK\x03\x04 rubbish", MediaType.DOCX, "no whole DOCX"),
        (make_docx(["text"])[:-30], MediaType.DOCX, "no whole DOCX"),
        (make_docx(["<unclosed>"]), MediaType.DOCX, "no whole DOCX"),
        (b"<div>" * 20_000 + b"x", MediaType.HTML, "nested too deeply"),
        (b"<html></html>", MediaType.HTML, "no text"),
    ],
)
def test_a_broken_file_is_named_with_a_remedy(content: bytes, kind: MediaType, words: str) -> None:
    with pytest.raises(Unreadable, match=words) as caught:
        read(content, kind)

    assert any(verb in str(caught.value) for verb in ("Save it", "send what"))


@given(cut=st.integers(0, 2000), garbage=st.binary(max_size=40), kind=st.sampled_from(MediaType))
def test_no_damage_surfaces_as_anything_but_unreadable(
    cut: int, garbage: bytes, kind: MediaType
) -> None:
    whole = {
        MediaType.PDF: make_pdf(["A page.", "Another."]),
        MediaType.DOCX: make_docx(["# A heading", "A paragraph."]),
    }.get(kind, b"<html><body><p>A page.</p></body></html>")
    kind = MediaType.HTML if kind.startswith("text") else kind
    place = cut % len(whole)
    damaged = whole[:place] + garbage + whole[place + len(garbage) :]
    try:
        text = read(damaged, kind).text
    except Unreadable:
        return
    assert text.strip()
