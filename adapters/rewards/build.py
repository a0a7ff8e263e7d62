"""The verifier that a spec names."""

from adapters.rewards.answer_verifier import Answers
from adapters.rewards.contract_verifier import Contracts
from adapters.rewards.unit_tests import UnitTests
from adapters.rewards.verifiers import Verifier
from adapters.spec import (
    AnswerVerifier,
    ContractVerifier,
    HttpVerifier,
    UnitTestsVerifier,
    VerifierSpec,
)


def build_verifier(spec: VerifierSpec, http: Verifier | None) -> Verifier:
    """The verifier of a spec; `http` is the caller's for a user's service, as this library has no
    network.

    Raises:
        ValueError: a service is named and the caller has none.
    """
    match spec:
        case AnswerVerifier():
            return Answers(spec.answer)
        case ContractVerifier():
            return Contracts(spec.contract)
        case UnitTestsVerifier():
            return UnitTests(spec)
        case HttpVerifier():
            if http is None:
                raise ValueError("a verifier over HTTP needs a caller that can reach it")
            return http
