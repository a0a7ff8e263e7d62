"""Is a reply's answer one of the prompt's? Found and compared by the kind of answer."""

from collections.abc import Sequence

from adapters.rewards.equivalence import are_equal
from adapters.rewards.extraction import extract
from adapters.spec import AnswerSpec
from adapters.types import Attempt, Verdict

NO_ANSWER_KNOWN = "no answer is known"
NO_ANSWER_GIVEN = "no answer in the reply"
ANOTHER_ANSWER = "another answer"


class Answers:
    """Verdicts by the prompts' own answers, any of which is right."""

    def __init__(self, spec: AnswerSpec) -> None:
        self._spec = spec

    def verify(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """See `Verifier.verify`; a prompt without answers gets none."""
        return [self._verify(attempt) for attempt in attempts]

    def _verify(self, attempt: Attempt) -> Verdict:
        known = [answer for answer in attempt.prompt.answers if answer.strip()]
        if not known:
            return Verdict(None, NO_ANSWER_KNOWN)
        given = extract(attempt.reply, self._spec)
        if given is None:
            return Verdict(False, NO_ANSWER_GIVEN)
        if any(are_equal(given, answer, self._spec) for answer in known):
            return Verdict(True)
        return Verdict(False, ANOTHER_ANSWER)
