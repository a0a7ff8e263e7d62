"""The text of a file: HTML, PDF or DOCX, as Markdown.

Files come from strangers. Run this in a process with limits: see :mod:`adapters.corpus.parse_job`.

Not covered: scanned pages (no OCR), text inside images, headers and footers that repeat on every
page of a PDF, footnotes' places, and a PDF's tables, whose cells come as lines.
"""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mammoth
import pypdf
import pypdf.errors
from bs4 import BeautifulSoup
from bs4.element import Tag
from markdownify import MarkdownConverter

from adapters.types import MediaType

_UNSEEN = (
    "head",
    "title",
    "script",
    "style",
    "noscript",
    "template",
    "svg",
    "nav",
    "iframe",
    "object",
)
_BROKEN_WORD = re.compile(r"(?<=[a-z])-\n(?=[a-z])")
_BLANK_LINES = re.compile(r"\n\s*\n\s*")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\ud800-\udfff]")


class Unreadable(ValueError):
    """The file gives no text; the message says why and what can be done."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a file may take."""

    pages: int
    """Of a PDF."""
    bytes: int
    """Of its text, in UTF-8."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A file's text, and its own title where it has one."""

    text: str
    title: str | None


def parse(content: bytes, media_type: str, *, limits: Limits, charset: str | None = None) -> Parsed:
    """Read a file.

    Args:
        content: the file's bytes.
        media_type: HTML, PDF or DOCX.
        charset: what the sender says of an HTML file; else its own declaration counts.

    Raises:
        Unreadable: broken, locked, empty, or beyond the limits.
        KeyError: another media type.
    """
    parsers: dict[str, Callable[[], Parsed]] = {
        MediaType.HTML: lambda: _from_html(content, charset),
        MediaType.PDF: lambda: _from_pdf(content, limits.pages),
        MediaType.DOCX: lambda: _from_docx(content),
    }
    try:
        parsed = parsers[media_type]()
    except RecursionError:
        raise Unreadable("It is nested too deeply. Save it anew in a simpler form.") from None
    text = _CONTROL.sub("", parsed.text).strip()
    if not text:
        raise Unreadable("It holds no text. If it is a scan, send what an OCR program makes of it.")
    if len(text.encode()) > limits.bytes:
        raise Unreadable(
            f"Its text has more than {limits.bytes} bytes. Send it in parts, or raise "
            "EVERLEARN_DOCUMENTS__MAX_BYTES."
        )
    title = " ".join(_CONTROL.sub("", parsed.title or "").split())
    return Parsed(text, title or None)


def _from_html(content: bytes | str, charset: str | None = None) -> Parsed:
    known = charset if isinstance(content, bytes) else None
    soup = BeautifulSoup(content, "html.parser", from_encoding=known)
    title = soup.title or soup.h1
    heading = title.get_text(" ") if title else None
    for tag in soup.find_all(_UNSEEN):
        tag.decompose()
    mains = soup.find_all("main") or soup.find_all("article")
    body: Tag = mains[0] if len(mains) == 1 else soup
    converter = MarkdownConverter(
        heading_style="atx",
        bullets="-",
        strip=["a", "img"],
        escape_asterisks=False,
        escape_underscores=False,
        escape_misc=False,
    )
    markdown: str = converter.convert_soup(body)
    return Parsed(_BLANK_LINES.sub("\n\n", markdown), heading)


def _from_pdf(content: bytes, most_pages: int) -> Parsed:
    with _complaining_of("PDF"):
        reader = pypdf.PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("It is locked with a password. Send it without one.")
        pages = len(reader.pages)
        if pages > most_pages:
            raise Unreadable(
                f"It has {pages} pages, and {most_pages} are taken. Send it in parts, or raise "
                "EVERLEARN_DOCUMENTS__MAX_PAGES."
            )
        text = "\n\n".join(page.extract_text() for page in reader.pages)
        title = reader.metadata.title if reader.metadata else None
    return Parsed(_BROKEN_WORD.sub("", text), str(title) if title else None)


def _from_docx(content: bytes) -> Parsed:
    with _complaining_of("DOCX"):
        html: str = mammoth.convert_to_html(io.BytesIO(content), convert_image=_without_image).value
    return _from_html(html)


@contextmanager
def _complaining_of(kind: str) -> Iterator[None]:
    """Whatever a library makes of a broken file, a sentence that its sender can use.

    The libraries name no errors for this: broken files surface as any exception of Python's.
    """
    try:
        yield
    except (Unreadable, MemoryError, RecursionError):
        raise
    except pypdf.errors.DependencyError:
        raise Unreadable("It is encrypted. Send it without encryption.") from None
    except Exception as error:
        raise Unreadable(f"It is no whole {kind} file ({_words(error)}). Save it anew.") from error


def _without_image(_: object) -> list[object]:
    return []


def _words(error: Exception) -> str:
    """A library's message, short enough to be shown."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
