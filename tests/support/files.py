"""Small PDF and DOCX files of the tests' own making, whole and hostile."""

import io
import zipfile
from collections.abc import Sequence

_DOCX_TYPES = """<?xml version="1.0" encoding="UTF-8"?>
<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>
<Override PartName="/word/document.xml" ContentType=\
"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/>
</Types>"""
_DOCX_RELATIONS = """<?xml version="1.0" encoding="UTF-8"?>
<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">
<Relationship Id="rId1" Target="word/document.xml" Type=\
"http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"/>
</Relationships>"""
_W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def make_pdf(pages: Sequence[str], *, title: str | None = None) -> bytes:
    """A PDF with one page for each text; lines are split at line breaks. ASCII only."""
    objects: list[bytes] = [b""]  # number 1, the catalogue, is filled in below
    kids: list[int] = []

    def add(body: bytes) -> int:
        objects.append(body)
        return len(objects)

    font = add(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    parent = font + 1 + 2 * len(pages)
    for text in pages:
        lines = [line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
                 for line in text.split("\n")]  # fmt: skip
        shown = " T* ".join(f"({line}) Tj" for line in lines)
        stream = f"BT /F1 12 Tf 14 TL 50 750 Td {shown} ET".encode()
        content = add(b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream))
        kids.append(
            add(
                b"<< /Type /Page /Parent %d 0 R /MediaBox [0 0 612 792] /Contents %d 0 R "
                b"/Resources << /Font << /F1 %d 0 R >> >> >>" % (parent, content, font)
            )
        )
    references = b" ".join(b"%d 0 R" % kid for kid in kids)
    assert add(b"<< /Type /Pages /Count %d /Kids [%b] >>" % (len(kids), references)) == parent
    objects[0] = b"<< /Type /Catalog /Pages %d 0 R >>" % parent
    information = b""
    if title is not None:
        information = b" /Info %d 0 R" % add(b"<< /Title (%b) >>" % title.encode())
    return _pdf_file(objects, information)


def make_docx(paragraphs: Sequence[str], *, extra_xml: str = "", prologue: str = "") -> bytes:
    """A Word document; a paragraph that begins with ``# `` is a heading."""
    body = "".join(map(_paragraph, paragraphs))
    document = (
        f'<?xml version="1.0" encoding="UTF-8"?>{prologue}'
        f'<w:document xmlns:w="{_W}"><w:body>{body}{extra_xml}</w:body></w:document>'
    )
    return _zip({
        "[Content_Types].xml": _DOCX_TYPES.encode(),
        "_rels/.rels": _DOCX_RELATIONS.encode(),
        "word/document.xml": document.encode(),
    })  # fmt: skip


def make_zip_bomb(unpacked_mib: int) -> bytes:
    """A DOCX of some kilobytes that unpacks to megabytes of empty paragraphs."""
    return make_docx([], extra_xml="<w:p/>" * (unpacked_mib * 1024 * 1024 // 6))


def make_entity_bomb() -> bytes:
    """A DOCX whose XML would grow to gigabytes (the "billion laughs")."""
    entities = ['<!ENTITY a0 "aaaaaaaaaa">'] + [
        f'<!ENTITY a{level} "{f"&a{level - 1};" * 10}">' for level in range(1, 10)
    ]
    return make_docx(
        [],
        prologue=f"<!DOCTYPE w:document [{''.join(entities)}]>",
        extra_xml="<w:p><w:r><w:t>&a9;</w:t></w:r></w:p>",
    )


def make_prying_docx(path: str) -> bytes:
    """A DOCX that asks its reader to include a file of the machine."""
    return make_docx(
        ["Before."],
        prologue=f'<!DOCTYPE w:document [<!ENTITY stolen SYSTEM "file://{path}">]>',
        extra_xml="<w:p><w:r><w:t>&stolen;</w:t></w:r></w:p>",
    )


def _paragraph(text: str) -> str:
    style = ""
    if text.startswith("# "):
        text, style = text[2:], '<w:pPr><w:pStyle w:val="Heading1"/></w:pPr>'
    return f"<w:p>{style}<w:r><w:t>{text}</w:t></w:r></w:p>"


def _zip(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def _pdf_file(objects: Sequence[bytes], information: bytes) -> bytes:
    file = io.BytesIO()
    file.write(b"%PDF-1.4\n")
    places = []
    for number, body in enumerate(objects, start=1):
        places.append(file.tell())
        file.write(b"%d 0 obj\n%b\nendobj\n" % (number, body))
    table = file.tell()
    file.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    file.writelines(b"%010d 00000 n \n" % place for place in places)
    file.write(
        b"trailer\n<< /Size %d /Root 1 0 R%b >>\nstartxref\n%d\n%%%%EOF\n"
        % (len(objects) + 1, information, table)
    )
    return file.getvalue()
