"""The form of a reply, whatever it says: is it text, or did generation break down?"""


def is_sound(reply: str) -> bool:
    """Whether a reply is text at all: not empty, and not the same few words or signs repeated."""
    words = reply.casefold().split()
    if not any(character.isalnum() for character in reply):
        return False
    if len(reply) >= 16 and len(set("".join(words))) <= 2:
        return False
    return len(words) < 8 or len(set(words)) * 3 > len(words)
