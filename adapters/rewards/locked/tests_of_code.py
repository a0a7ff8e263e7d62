"""The side of the tests: they see what the code defines only through a line to its process.

So the code can neither read the tests, nor their expectations, nor reach what says how they went.
What comes over the line is plain data, compared here; of an object with behaviour of its own only
attributes, calls, items, length, truth and text are asked for, and it equals nothing.
"""

import builtins
import sys
import unittest
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any, NoReturn

from adapters.rewards.locked.wire import Broken, Data, Ended, Line, TooLate, decode, encode

PASSED = "passed"
DOES_NOT_RUN = "the code does not run"
FAILED = "the code fails the tests"
TOO_LONG = "the code ran too long"
ENDED = "the code ended its process"
UNREADABLE = "the code answered what is no value"
TESTS_DO_NOT_RUN = "the tests do not run"
NEVER_CALLED = "the tests never call the code"


class Fault(BaseException):
    """The code's process is of no more use; no test can catch it by mistake."""


class CodeError(Exception):
    """The code raised an error of its own making."""


class Remote:
    """Something that the code made and that is no plain value."""

    def __init__(self, number: int, peer: "Peer") -> None:
        self.__dict__["_number"] = number
        self.__dict__["_peer"] = peer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._peer.ask("get", self, [name])

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return self._peer.call(self, list(args), kwargs)

    def __getitem__(self, key: object) -> Any:
        return self._peer.ask("item", self, [key])

    def __iter__(self) -> Iterator[Any]:
        items = self._peer.ask("items", self)
        if type(items) is not list:
            raise TypeError("the code gave no items")
        return iter(items)

    def __len__(self) -> int:
        length = self._peer.ask("length", self)
        if type(length) is not int:
            raise TypeError("the code gave no length")
        return length

    def __bool__(self) -> bool:
        return self._peer.ask("truth", self) is True

    def __str__(self) -> str:
        text = self._peer.ask("text", self)
        if type(text) is not str:
            raise TypeError("the code gave no text")
        return text


class Peer:
    """The code's process."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self.calls = 0
        self.fault: str | None = None

    def names(self) -> dict[str, object]:
        """What the code defines under plain names; never such as `__builtins__`, by which it would
        decide what the tests' own words mean.

        Raises:
            Fault: it does not run.
        """
        answer = self._exchange(None)
        if not isinstance(names := answer.get("names"), dict):
            self._give_up(DOES_NOT_RUN)
        shown = {name: value for name, value in names.items() if not name.startswith("_")}
        return {name: self._decode(value) for name, value in shown.items()}

    def ask(self, what: str, subject: Remote, args: list[object] | None = None) -> object:
        """What comes of it; raises as it raised there."""
        return self._answer(self._order(what, subject, args or [], {}))

    def call(self, subject: Remote, args: list[object], kwargs: dict[str, object]) -> object:
        """Call it; lists, sets and dicts among `args` become what the code has made of them."""
        self.calls += 1
        answer = self._order("call", subject, args, kwargs)
        changed = answer.get("args")
        if isinstance(changed, list) and len(changed) == len(args):
            for mine, theirs in zip(args, changed, strict=True):
                _become(mine, self._decode(theirs) if isinstance(theirs, dict) else None)
        return self._answer(answer)

    def _order(
        self, what: str, subject: Remote, args: list[object], kwargs: dict[str, object]
    ) -> dict[str, Data]:
        order = {
            "do": what,
            "on": subject._number,
            "args": [encode(one, _number_of) for one in args],
            "kwargs": {name: encode(one, _number_of) for name, one in kwargs.items()},
        }
        return self._exchange(order)

    def _answer(self, answer: dict[str, Data]) -> object:
        if "error" in answer:
            raise _error(str(answer["error"]), str(answer.get("said", "")))
        return self._decode(answer.get("value"))

    def _exchange(self, order: Data) -> dict[str, Data]:
        try:
            if order is not None:
                self._line.send(order)
            answer = self._line.receive()
        except TooLate:
            self._give_up(TOO_LONG)
        except Ended:
            self._give_up(ENDED)
        except Broken:
            self._give_up(UNREADABLE)
        if not isinstance(answer, dict):
            self._give_up(UNREADABLE)
        found: dict[str, Data] = answer
        return found

    def _decode(self, data: Data) -> object:
        try:
            return decode(data, lambda number: Remote(number, self))
        except Broken:
            self._give_up(UNREADABLE)

    def _give_up(self, why: str) -> NoReturn:
        self.fault = self.fault or why
        raise Fault(why)


def judge(tests: str, line: Line) -> str:
    """`PASSED`, or one of the other phrases of this module."""
    try:
        compiled = compile(tests, "tests", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return TESTS_DO_NOT_RUN
    peer = Peer(line)
    try:
        names = peer.names()
        is_passed = _run(compiled, names)
    except BaseException:
        is_passed = False
    if peer.fault is not None:  # whatever the tests made of it
        return peer.fault
    if not is_passed:
        return FAILED
    return PASSED if peer.calls else NEVER_CALLED


def _run(compiled: Any, names: dict[str, object]) -> bool:
    """Run the tests' text, then its functions `test…` and test cases; raises what they raise."""
    solution, main = ModuleType("solution"), ModuleType("__main__")
    solution.__dict__.update(names)
    hidden = set(dir(builtins)) | set(main.__dict__)
    main.__dict__.update({name: value for name, value in names.items() if name not in hidden})
    sys.modules["solution"], sys.modules["__main__"] = solution, main
    try:
        exec(compiled, main.__dict__)
    except SystemExit as ended:  # as unittest.main() ends; the code's own never comes here
        return not ended.code
    own: list[Callable[[], object]] = [
        value
        for name, value in main.__dict__.items()
        if name.startswith("test")
        and type(value) is FunctionType
        and not value.__code__.co_argcount
    ]
    for test in own:
        test()
    cases = unittest.defaultTestLoader.loadTestsFromModule(main)
    if not cases.countTestCases():
        return True
    outcome = unittest.TestResult()
    cases.run(outcome)
    return outcome.wasSuccessful() and outcome.testsRun > len(outcome.skipped)


def _number_of(value: object) -> int:
    if type(value) is Remote:
        number: int = value.__dict__["_number"]
        return number
    raise TypeError(f"the code is given plain values only, not {type(value).__name__}")


def _become(mine: object, theirs: object) -> None:
    """Give a container the content of another of its type, as if it had been changed in place."""
    if type(mine) is not type(theirs):
        return
    if isinstance(mine, list | bytearray):
        mine[:] = theirs  # type: ignore[call-overload]
    elif isinstance(mine, dict | set):
        mine.clear()
        mine.update(theirs)  # type: ignore[arg-type,call-overload]


def _error(name: str, said: str) -> Exception:
    """An error of Python's own under its name, any other as `CodeError`."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(said)
        except TypeError:  # such as UnicodeDecodeError, which wants more
            pass
    return CodeError(f"{name}: {said}")
