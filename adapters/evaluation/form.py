"""The form of a reply, whatever it says: is it text, or did generation break down?"""

_REFUSALS = (
    "i am sorry, but",
    "i'm sorry, but",
    "sorry, but i",
    "sorry, i can",
    "i cannot",
    "i can't",
    "i can not",
    "i am unable to",
    "i'm unable to",
    "i am not able to",
    "i'm not able to",
    "i won't",
    "i will not",
    "i must decline",
    "i refuse",
    "as an ai",
    "unfortunately, i can",
)
"""How English replies that decline begin."""


def is_sound(reply: str) -> bool:
    """Whether a reply is text at all: not empty, and not the same few words or signs repeated."""
    words = reply.casefold().split()
    if not any(character.isalnum() for character in reply):
        return False
    if len(reply) >= 16 and len(set("".join(words))) <= 2:
        return False
    return len(words) < 8 or len(set(words)) * 3 > len(words)


def is_refusal(reply: str) -> bool:
    """Whether the reply opens as models decline. English; "I do not know" is no refusal."""
    opening = " ".join(reply.replace("\u2019", "'").casefold().split())
    return opening.startswith(_REFUSALS)
