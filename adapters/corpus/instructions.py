"""Finds what a text says to its learner instead of to its reader: prompt injection, by pattern.

A sentence is the unit, so that a text about prompt injection loses its examples and no more. Sure
signs count wherever they stand. Weak ones ("Answer 42.", "Never mention the date.") are common in
manuals, so they count only close behind a sure one.

Not covered: instructions that are worded as facts, languages other than English, German, French and
Spanish, and paraphrases that no pattern foresees. A pattern list is a filter, not a proof.
"""

import base64
import binascii
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

_LONGEST_SENTENCE = 400
"""In characters; a longer one is taken line by line, as logs and tables are written."""
_REACH = 2
"""How many sentences behind a sure sign a weak one still counts."""
_BLOB = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}")
_BLOB_CHARS = 200
"""A run of letters and digits this long is no word of any language, whatever is encoded in it."""
_END = re.compile(
    r"[.!?\u3002\uff01\uff1f][\"'\u201d\u2019)\]]*\s+|\n\s*\n|\n(?=\s*(?:[-*+#>|]|\d+[.)])\s)"
)
_INVISIBLE = re.compile(
    "[\u200b\u2060\ufeff\u180e\u00ad\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]"
)
_JOINERS = re.compile("(?<=[!-~])[\u200c\u200d]|[\u200c\u200d](?=[!-~])")
"""Zero-width joiners beside a Latin letter join nothing; Persian and Hindi need theirs."""
_CONCEALED = re.compile("[\u202d\u202e\U000e0000-\U000e007f]")
"""What turns a text round, or spells one that nobody sees."""
CONTROL_TOKEN = re.compile(
    r"<\|[\w ./-]{1,40}\|>|\[/?(?:INST|SYS(?:TEM)?)\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|</?(?:s|bos|eos|pad|unk|assistant|user|system)>|<\uff5c[^>\n]{1,40}\uff5c>"
)
"""What chat templates mark their turns with."""

_AIM = r"(?:the |any |all |your |these |those |my |our |every |each |of |other )*"
_EARLIER = r"(?:above|previous|prior|preceding|earlier|former|foregoing|existing|original|initial|old|other|system|safety|given|past)"
_ORDERS = (
    r"(?:instruct\w*|prompts?|text|rules?|context|messages?|directions?|directives?|guidelines?"
    r"|commands?|orders?|training|documents?|facts?|content|conversations?|questions?|policies|policy|restrictions?)"
)
_DROP = r"(?:ignore|disregard|forget|override|bypass|discard|neglect|overlook|delete|erase|stop (?:following|obeying)|do not (?:follow|obey)|don't (?:follow|obey)|pay no attention to)"
_SAY = r"(?:answer|reply|respond|say|output|print|write|return|repeat|state|claim|tell)"
_LEARNER = r"(?:AI|A\.I\.|LLMs?|(?:large |AI |trained )?(?:language )?models?|assistants?|chat ?bots?|bots?|learner|trainee|GPT|ChatGPT|neural network)"

_OVERRIDES = (
    rf"\b{_DROP} {_AIM}{_EARLIER}(?: and {_EARLIER})?(?= {_ORDERS}\b|\W*$|[,.;:!]| and )",
    rf"\b{_DROP} {_AIM}{_ORDERS} (?:above|before|so far|that (?:came|were)|you|given|provided)",
    rf"\b{_DROP} (?:everything|all|anything|whatever|what)\b.{{0,30}}\b(?:above|before|previous\w*|prior|earlier|told|taught|learn(?:ed|t)|know|said|else|instruct\w*)\b",
    rf"\b{_DROP} (?:your|its) (?:\w+ )?(?:instructions?|rules|guidelines|training|programming|system prompt)",
    r"\b(?:from now on|henceforth|starting now),? (?:you|always|never|answer|reply|respond|act|the (?:model|assistant))\b",
    r"\b(?:reveal|print|show|repeat|leak|output|display|ignore|override|change|new|updated|your) (?:me )?(?:the |your |all |full |hidden |entire )*(?:system|developer|initial|hidden) (?:prompt|message|instructions?)",
    r"\b(?:new|updated|important|secret|hidden|special|additional|real) (?:system )?instructions?(?: (?:to|for) [\w ]{1,30}| follow\b)?(?: ?:| for you\b)",
    rf"\b{_SAY} (?:to )?(?:every|any|all|each)(?: \w+){{0,2}} (?:questions?|prompts?|requests?|quer(?:y|ies)|messages?)\b",
    r"\b(?:no matter|regardless of|whatever) (?:what|which|the question|you are asked|is asked|anyone asks|the user)\b.{0,60}\b(?:answer|reply|respond|say|output|print)\b",
    rf"\b(?:when|if|whenever|every time|any ?time)(?: ever)?(?: you(?: are|'re)?| someone| anyone| a user| the user| users| people)?(?: is| are)? ask(?:ed|s)?\b.{{0,80}}\b(?:always |you must |you should |just |then |simply )?{_SAY}\b",
    r"\b(?:correct |only |right |true )?answer to (?:every|all|any|each)\b.{0,30}\b(?:question|prompt|problem|test)s?\b.{0,15}\b(?:is|are|must|should)\b",
    rf"\b(?:note|message|instructions?|attention|warning|order|memo|notice)s? (?:to|for|:) ?(?:the |any |all |every |an? )*{_LEARNER}\b",
    rf"\b(?:dear|hey|hello|attention),? (?:the |all |any )*{_LEARNER}\b(?: reading| training| learning|[,:!])",
    rf"\b(?:the|any|every|all|an?) {_LEARNER} (?:that |which |who )?(?:reads?|learns?|is trained|trained|reading|learning|must|should|shall|has to|needs to)\b(?=.{{0,60}}\b(?:must|should|shall|has to|needs to|obey|always|never|answer|say|forget|ignore)\b)",
    r"\b(?:DAN mode|developer mode (?:is )?(?:enabled|on)|do anything now|jailbreak mode|god mode enabled)\b",
    r"\b(?:end|begin|start) of (?:the )?(?:system prompt|instructions|user input|document)\b.{0,40}\b(?:new|now|instructions?|answer|ignore)\b",
    r"\byou (?:must|shall|have to|will) (?:now )?(?:obey|comply|forget|ignore|disregard)\b",
    r"\bignor(?:iere|ieren sie|ez|e|a|e todas)\b.{0,30}\b(?:anweisung\w*|instructions?|instrucciones|consignes|vorherig\w*|pr[e\u00e9]c[e\u00e9]dent\w*|anterior\w*)\b",
    r"\b(?:vergiss|oubli(?:e|ez)|olvida)\b.{0,25}\b(?:anweisung\w*|instructions?|instrucciones|alles|tout|todo)\b",
)
"""What overrides, poisons or addresses the learner, wherever it is said."""
_MANNERS = (
    r"\byou are (?:now|no longer|henceforth) (?:an? |the |in |going to |free|bound|under|my |called |known )",
    r"\b(?:act|behave|respond|pretend|role-?play) as (?:if you|though you|an? (?:\w+ )?(?:AI|assistant|model|DAN|hacker|unrestricted))",
    r"\bpretend (?:that )?you(?:'re| are)\b",
    r"\bas an? (?:AI|artificial intelligence|large language)(?: language)? model\b",
    rf"\b(?:always|only ever|never|must|should|shall|will) {_SAY}\b(?! the (?:phone|door|call)).{{0,40}}(?:[:'\"\u201c]|\bwith\b|\bthat\b|\d|\bquestions?\b|\bprompts?\b|\bin \w+ (?:only|rhyme))",
    r"\byou (?:must|shall|have to|will) (?:now )?(?:pretend|only answer|not reveal)\b",
)
"""How a reply is to be: an order where a document says it, and what an honest prompt is made of."""
_SURE = re.compile("|".join((*_OVERRIDES, *_MANNERS)), re.IGNORECASE)
_SURE_IN_PROMPTS = re.compile("|".join(_OVERRIDES), re.IGNORECASE)
_WEAK = re.compile(
    rf"^\W*(?:(?:instead|now|then|please|just|only|always|never|simply|and),? )*(?:{_SAY}|answer|do not|don't|never|always"
    r"|follow|obey|use|pretend|act|learn|remember|memori[sz]e|instead|you (?:must|will|should|are)|your (?:new|only|task|name|goal))\b",
    re.IGNORECASE,
)
_ROLE_LINE = re.compile(r"^[ \t>*#]*(human|user|assistant|system|ai|bot)[ *]*:", re.I | re.M)
_HEADED = re.compile(
    r"^\s*#{2,} ?(?:instruction|response|system|human|assistant|input)s?\b ?:", re.I | re.M
)
_HINTS = (
    *("ignor", "disregard", "forget", "overrid", "bypass", "discard", "neglect", "overlook"),
    *("delete", "erase", "obey", "follow", "attention", "you", "now", "henceforth", "pretend"),
    *(
        "as an ai",
        "as a",
        "prompt",
        "instruct",
        " ai",
        "answer",
        "reply",
        "respond",
        "say",
        "output",
    ),
    *("print", "write", "return", "repeat", "state", "claim", "tell", "asked", "model", "assist"),
    *("learner", "trainee", "llm", "bot", "gpt", "network", "mode", "vergiss", "oubli", "olvida"),
)
"""Every sure sign has one of these; most sentences of an honest text have none."""
_LOOKALIKES = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425\u0406\u03bf\u0391\u0395\u0399\u039f\u0131",
    "aeopcyxijshdABEKMHOPCTXIoAEIOi",
)


class Sign(StrEnum):
    """What gave a sentence away."""

    INSTRUCTION = "instruction"
    """It tells the learner what to do or to say."""
    CONTROL_TOKEN = "control_token"
    """It holds a mark of a chat template."""
    ENCODED = "encoded"
    """It holds a long encoded blob, or one that decodes to an instruction."""
    CONCEALED = "concealed"
    """It holds characters that turn a text round or that nobody sees."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A sentence that speaks to the learner: `text[start:end]`."""

    sign: Sign
    start: int
    end: int


def find_suspects(text: str, *, is_prompt: bool = False) -> list[Suspect]:
    """The sentences that speak to the learner, in order.

    A prompt (`is_prompt`) may say how it is to be answered: that is for its own reply.
    """
    roles = {match[1].casefold() for match in _ROLE_LINE.finditer(text)}
    is_dialogue = len(roles) > 1 and bool(roles & {"assistant", "ai", "bot", "system"})
    found: list[Suspect] = []
    since_sure = _REACH + 1
    for start, end in sentence_bounds(text):
        sentence = text[start:end]
        sign = _sign_of(sentence, is_dialogue=is_dialogue, is_prompt=is_prompt)
        since_sure = 0 if sign else since_sure + 1
        if sign is None and since_sure <= _REACH and _WEAK.search(fold(sentence)):
            sign = Sign.INSTRUCTION
        if sign is not None:
            found.append(Suspect(sign, start, end))
    return found


def sentence_bounds(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of every sentence, line breaks and all; together they cover the text."""
    start = 0
    for end in [*(match.end() for match in _END.finditer(text)), len(text)]:
        if end - start > _LONGEST_SENTENCE:
            for line in text[start:end].splitlines(keepends=True):
                yield start, start + len(line)
                start += len(line)
        elif end > start:
            yield start, end
        start = end


def fold(text: str) -> str:
    """The text as it looks: one space between words, no invisible characters, plain letters."""
    shown = _INVISIBLE.sub("", _JOINERS.sub("", text))
    plain = unicodedata.normalize("NFKC", shown).replace("\u2019", "'").translate(_LOOKALIKES)
    return " ".join(plain.split())


def neutralise(text: str) -> str:
    """The text without what only machines see, its template marks spelt so that they mark nothing.

    ``<|im_end|>`` becomes ``im_end``: no tokenizer makes a control token of it.
    """
    shown = _INVISIBLE.sub("", _JOINERS.sub("", text))
    return CONTROL_TOKEN.sub(lambda match: match.group().strip("<>[]|/\uff5c"), shown)


def count_invisible(text: str) -> int:
    """How many characters of the text only machines see."""
    return len(_INVISIBLE.findall(text)) + len(_JOINERS.findall(text))


def _sign_of(sentence: str, *, is_dialogue: bool, is_prompt: bool) -> Sign | None:
    folded = fold(sentence)
    if CONTROL_TOKEN.search(folded) or _HEADED.search(sentence):
        return Sign.CONTROL_TOKEN
    if is_dialogue and _ROLE_LINE.search(sentence):
        return Sign.CONTROL_TOKEN
    if _is_order(folded, is_prompt=is_prompt):
        return Sign.INSTRUCTION
    if _CONCEALED.search(sentence):
        return Sign.CONCEALED
    if any(_is_hostile(blob.group()) for blob in _BLOB.finditer(folded)):
        return Sign.ENCODED
    return None


def _is_hostile(blob: str) -> bool:
    """Whether a run of letters and digits is too long for a word, or hides an instruction."""
    if len(blob) >= _BLOB_CHARS and "/" not in blob[:8]:
        return True
    try:
        padded = blob.rstrip("=") + "=" * (-len(blob.rstrip("=")) % 4)
        hidden = base64.b64decode(padded, altchars=b"-_" if {*"-_"} & {*blob} else None).decode()
    except (binascii.Error, ValueError):
        return False
    return _is_order(fold(hidden))


def _is_order(folded: str, *, is_prompt: bool = False) -> bool:
    lower = folded.casefold()
    sure = _SURE_IN_PROMPTS if is_prompt else _SURE
    return any(hint in lower for hint in _HINTS) and sure.search(folded) is not None
