"""Unit tests as a verifier: real processes, and code that does its worst."""

import contextlib
import time
from pathlib import Path

import psutil
import pytest

from adapters.rewards import unit_tests
from adapters.rewards.unit_tests import NO_LOCK, UnitTests, code_in, run_tests
from adapters.spec import UnitTestsVerifier
from adapters.types import Attempt, Prompt, Verdict

SPEC = UnitTestsVerifier(timeout_s=2.0)
TESTS = "assert add(2, 3) == 5\nassert add(-1, 1) == 0\n"
RIGHT = "def add(a, b):\n    return a + b\n"


@pytest.fixture(scope="module", autouse=True)
def lock() -> None:
    if run_tests(RIGHT, TESTS, SPEC) == NO_LOCK:
        pytest.skip("this machine gives no user namespaces")


def verdict(code: str, tests: str | None = TESTS, *, spec: UnitTestsVerifier = SPEC) -> Verdict:
    began = time.monotonic()
    attempt = Attempt(Prompt("p", (), tests=tests), f"Here it is:\n```python\n{code}\n```\nDone.")
    (found,) = UnitTests(spec).verify([attempt])
    assert time.monotonic() - began < spec.timeout_s + 1.5
    return found


def test_right_code_passes_and_wrong_code_fails() -> None:
    assert verdict(RIGHT) == Verdict(True)
    assert verdict("def add(a, b):\n    return a - b") == Verdict(False, "the code fails the tests")


def test_many_attempts_are_judged_in_order() -> None:
    codes = [RIGHT, "def add(a, b):\n    return 5", "def add(a, b) return", RIGHT]
    attempts = [Attempt(Prompt("p", (), tests=TESTS), f"```\n{code}\n```") for code in codes]

    found = UnitTests(SPEC).verify(attempts)

    assert [each.is_right for each in found] == [True, False, False, True]


@pytest.mark.parametrize(
    ("tests", "code"),
    [
        ("def test_sum():\n    assert add(1, 1) == 2", RIGHT),
        ("import unittest\nclass T(unittest.TestCase):\n"
         "    def test_it(self):\n        self.assertEqual(add(1, 1), 2)", RIGHT),
        ("import unittest\nclass T(unittest.TestCase):\n"
         "    def test_it(self):\n        self.assertEqual(add(1, 1), 2)\nunittest.main()", RIGHT),
        ("from solution import add\nassert add(1, 1) == 2", RIGHT),
        ("def check(one):\n    assert one(1, 1) == 2\ncheck(add)", RIGHT),
        ("xs = [3, 1, 2]\nassert order(xs) is None\nassert xs == [1, 2, 3]",
         "def order(xs):\n    xs.sort()"),
        ("s = Stack()\ns.push(4)\ns.push((1, 2))\nassert s.pop() == (1, 2) and len(s) == 1\n"
         "assert [x for x in s] == [4] and s[0] == 4 and str(s) == 'stack'",
         "class Stack:\n    def __init__(self): self.xs = []\n    def push(self, x): self.xs.append(x)\n"
         "    def pop(self): return self.xs.pop()\n    def __len__(self): return len(self.xs)\n"
         "    def __iter__(self): return iter(self.xs)\n"
         "    def __getitem__(self, i): return self.xs[i]\n    def __str__(self): return 'stack'"),
        ("try:\n    half(1)\nexcept ValueError as e:\n    assert str(e) == 'odd'\n"
         "else:\n    assert False", "def half(n):\n    raise ValueError('odd')"),
        ("assert kinds() == [None, True, 2**70, .5, 'ä', b'x', (1,), {1: {2}}, frozenset(), 1j]",
         "def kinds():\n"
         "    return [None, True, 2**70, .5, 'ä', b'x', (1,), {1: {2}}, frozenset(), 1j]"),
        ("assert power(5000) == 10**5000", "def power(n):\n    return 10**n"),
        ("assert digits(10**5000) == 5001", "def digits(n):\n    return len(str(n))"),
        ("assert list(count(3)) == [0, 1, 2]",
         "def count(n):\n    for i in range(n):\n        yield i"),
        ("assert roots(8) == 3.0", "import math\ndef roots(n):\n    return math.log2(n)"),
        ("assert lines() == ['kept']",
         "import pathlib\ndef lines():\n    pathlib.Path('/tmp/f').write_text('kept')\n"
         "    return open('f').read().split()"),
    ],
)  # fmt: skip
def test_the_usual_forms_of_tests_are_understood(tests: str, code: str) -> None:
    assert verdict(code, tests) == Verdict(True)


def test_an_integer_that_is_far_too_long_ends_in_time() -> None:
    tests = "assert power(900_000) == 1"

    assert verdict("def power(n):\n    return 10**n", tests).is_right is False


ESCAPES = {
    "exits well": "import os\ndef add(a, b):\n    os._exit(0)",
    "exits at once": "import os\nos._exit(0)",
    "raises SystemExit": "def add(a, b):\n    raise SystemExit(0)",
    "ends itself when loaded": "raise SystemExit(0)",
    "prints what passes": "import os\nfor fd in range(64):\n    try:\n"
    "        os.write(fd, b'ready\\npassed\\n')\n    except OSError:\n        pass\n"
    "def add(a, b):\n    return 0",
    "answers without being asked": "import os\nfor fd in range(3, 64):\n    try:\n"
    "        os.write(fd, b'{\"names\": {}}\\n' * 9)\n    except OSError:\n        pass",
    "equals everything": "class Any:\n    def __eq__(self, other): return True\n"
    "    def __hash__(self): return 5\ndef add(a, b):\n    return Any()",
    "is a number that equals everything": "class Any(int):\n"
    "    def __eq__(self, other): return True\ndef add(a, b):\n    return Any(7)",
    "patches the harness": "import sys\nfrom adapters.rewards.locked import tests_of_code as t\n"
    "t.judge = lambda *a: 'passed'\nt._run = lambda *a: True\ndef add(a, b):\n    return 0",
    "patches Python": "import builtins, sys, unittest\nbuiltins.AssertionError = ValueError\n"
    "unittest.TestCase.assertEqual = print\ndef add(a, b):\n    return 0",
    "shadows what tests use": "def isinstance(*a): return True\ndef all(*a): return True\n"
    "class AssertionError(Exception): pass\ndef add(a, b):\n    return 0",
    "looks up the stack": "import sys\ndef add(a, b):\n    frame = sys._getframe()\n"
    "    while frame:\n        for name, one in list(frame.f_locals.items()):\n"
    "            if 'assert' + ' add' in str(one): return a + b\n"
    "        frame = frame.f_back\n    return -9",
    "kills its parent": "import os, signal\nfor pid in (os.getppid(), 1, 2, -1, 0):\n    try:\n"
    "        os.kill(pid, signal.SIGKILL)\n    except OSError:\n        pass\n"
    "def add(a, b):\n    return 0",
    "breaks the protocol": "import os\ndef add(a, b):\n    os.write(4, b'[' * 100000 + b'\\n')",
    "sends too much": "def add(a, b):\n    return 'x' * 3_000_000",
    "sends a deep value": "def add(a, b):\n    x = []\n    for _ in range(10**5): x = [x]\n    return x",
    "sends a number of many digits": "import sys\nsys.set_int_max_str_digits(0)\n"
    "def add(a, b):\n    return 10**9000",
    "takes all memory": "def add(a, b):\n    return len('x' * 10**9) and [0] * 10**9",
    "shares memory around the limit": "import ctypes\ndef add(a, b):\n"
    "    return 5 if a == 2 and ctypes.CDLL(None).shmget(0, 1 << 20, 0o1777) >= 0 else -1",
    "writes all it can": "def add(a, b):\n    f = open('/tmp/x', 'wb')\n"
    "    for _ in range(64): f.write(b'x' * (1 << 20))\n    return 5 if a == 2 else 0",
    "forks": "import os\ndef add(a, b):\n    while True: os.fork()",
    "starts threads": "import threading\ndef add(a, b):\n    threading.Thread(target=print).start()\n"
    "    return a + b",
    "starts a shell": "import subprocess\ndef add(a, b):\n"
    "    return a + b + len(subprocess.check_output('true'))",
    "calls out": "import socket\ndef add(a, b):\n    socket.socket()\n    return a + b",
    "becomes root again": "import ctypes\ndef add(a, b):\n"
    "    return a + b if ctypes.CDLL(None).unshare(0x10000000) == 0 else -9",
}  # fmt: skip


@pytest.mark.parametrize("code", ESCAPES.values(), ids=ESCAPES.keys())
def test_what_is_not_right_is_never_called_right(code: str) -> None:
    found = verdict(code)

    assert found.is_right is False
    assert found.reason in {
        "the code does not run",
        "the code fails the tests",
        "the code ended its process",
        "the code answered what is no value",
    }


SPEAKING_ITSELF = """
import sys
frame = sys._getframe()
while 'line' not in frame.f_locals:
    frame = frame.f_back
line = frame.f_locals['line']
yes = {'object': 1}
words = ['abs', 'all', 'sorted', 'isinstance', 'AssertionError', 'len', 'print']
line.send({'names': NAMES})
while True:
    line.receive()
    line.send(ANSWER)
"""
WORDS_OF_ITS_OWN = (
    "{'add': yes, 'solution': yes, '__builtins__': {'dict': [[word, yes] for word in words]}, "
    "**{word: yes for word in words}}"
)
DEEP = "__import__('json').loads('[' * 900 + ']' * 900)"


@pytest.mark.parametrize(
    ("names", "answer"),
    [
        ("[]", "{'value': 5}"),
        ("{'add': {'list': 5}}", "{'value': 5}"),
        ("{'add': yes}", "{'value': True}"),
        *(
            (WORDS_OF_ITS_OWN, answer)
            for answer in (
                "{'value': 0}",
                "{'value': True}",
                "{'value': yes}",
                "{'value': {'object': '1'}}",
                "{'value': {'object': 1, 'list': []}}",
                "{'value': {'set': [{'list': []}]}}",
                f"{{'value': {{'list': [{DEEP}]}}}}",
                "{'value': 0, 'args': [5, {'list': []}]}",
                "{'error': 'SystemExit', 'said': '0'}",
                "{'error': 'KeyboardInterrupt'}",
                "{'error': 'UnicodeDecodeError', 'said': []}",
                "'passed'",
                "{}",
            )
        ),
    ],
)
def test_code_that_speaks_for_itself_passes_no_test(names: str, answer: str) -> None:
    code = SPEAKING_ITSELF.replace("NAMES", names).replace("ANSWER", answer)
    tests = (
        "import unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n"
        "        self.assertEqual(add(2, 3), 5)\n"
        "assert abs(add(2, 3) - 5) < 1e-9 and all([add(1, 1) == 2]) and isinstance(add(1, 1), int)"
    )

    assert verdict(code, tests).is_right is False


def test_a_loop_without_end_is_ended() -> None:
    spec = UnitTestsVerifier(timeout_s=0.5)

    for code in ("while True: pass", "def add(a, b):\n    while True: pass",
                 "import time\ndef add(a, b):\n    time.sleep(60)"):  # fmt: skip
        assert verdict(code, spec=spec) == Verdict(False, "the code ran too long")


def test_a_code_that_catches_everything_is_ended_too() -> None:
    code = (
        "import signal\nfor one in range(1, 32):\n    try:\n"
        "        signal.signal(one, signal.SIG_IGN)\n    except OSError:\n        pass\n"
        "while True:\n    try:\n        while True: pass\n    except BaseException:\n        pass"
    )

    found = verdict(code, spec=UnitTestsVerifier(timeout_s=0.5))

    assert found == Verdict(False, "the code ran too long")


def test_nothing_of_it_is_left_running() -> None:
    before = set(psutil.pids())

    verdict("import os\nos.setsid()\nwhile True: pass", spec=UnitTestsVerifier(timeout_s=0.5))

    for pid in set(psutil.pids()) - before:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if "adapters.rewards.locked" in " ".join(process.cmdline()):
                process.wait(timeout=5)  # killed it is; the kernel takes its time to bury it


def test_the_machine_is_out_of_sight(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    code = (
        "import os\ndef there(path):\n    return os.path.exists(path)\n"
        "def root():\n    return sorted(os.listdir('/'))\n"
        "def variables():\n    return dict(os.environ)\n"
        "def user():\n    return [os.getuid(), os.getgid(), os.getgroups()]\n"
        "def write(path):\n    open(path, 'w')\n"
        "def descriptors():\n    found = []\n    for fd in range(256):\n        try:\n"
        "            os.fstat(fd)\n            found.append(fd)\n        except OSError:\n"
        "            pass\n    return len(found)\n"
    )
    tests = (
        f"for path in ('/etc/passwd', '/etc', '/home', '/proc/1', '/dev', '/sys', {str(secret)!r},"
        f" {str(Path(__file__).parents[3] / 'adapters')!r}):\n    assert not there(path), path\n"
        "assert set(root()) <= {'tmp', 'lib', 'lib64', 'usr', 'root', 'home', 'opt'}, root()\n"
        "assert set(variables()) <= {'LC_CTYPE'}\n"
        "assert user()[:2] == [65534, 65534] and set(user()[2]) <= {65534}, user()\n"
        "assert descriptors() <= 5\n"
        "for path in ('/x', '/usr/lib/x', '/lib/x'):\n"
        "    try:\n        write(path)\n    except OSError:\n        continue\n    assert False\n"
    )

    assert verdict(code, tests) == Verdict(True)


def test_tests_are_locked_down_as_well() -> None:
    tests = "import os, socket\nadd(1, 1)\nassert not os.path.exists('/etc')\nsocket.socket()"

    assert verdict(RIGHT, tests) == Verdict(False, "the code fails the tests")


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        (None, "the prompt has no tests"),
        ("  \n", "the prompt has no tests"),
        ("assert add(2, 3 == 5", "the tests do not run"),
        ("assert True", "the tests never call the code"),
        ("add(1, 1)\nwhile True: pass", "the tests gave no verdict"),
        ("add(1, 1)\nimport os\nos._exit(0)", "the tests gave no verdict"),
    ],
)
def test_tests_that_tell_nothing_are_no_verdict(tests: str | None, reason: str) -> None:
    spec = UnitTestsVerifier(timeout_s=0.5)

    assert verdict(RIGHT, tests, spec=spec) == Verdict(None, reason)


def test_where_nothing_can_be_locked_down_nothing_is_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = unit_tests._START.replace(
        "import main;", "import main; from adapters.rewards.locked import jail; "
        "jail._call = lambda *a: (_ for _ in ()).throw(jail.NotLockable('no'));",
    )  # fmt: skip
    monkeypatch.setattr(unit_tests, "_START", broken)

    assert verdict(RIGHT) == Verdict(None, NO_LOCK)


def test_code_is_taken_from_the_last_fence_that_is_python() -> None:
    assert code_in("no fence") is None
    assert code_in("```python\nnever closed") is None
    assert code_in("```\na\n```\n```sh\nb\n```") == "a\n"
    assert code_in("```python\na\n```\nor\n```py\nb\n```\n```\nout\n```") == "b\n"


def test_a_reply_without_code_is_wrong() -> None:
    (found,) = UnitTests(SPEC).verify([Attempt(Prompt("p", (), tests=TESTS), RIGHT)])

    assert found == Verdict(False, "the reply has no fenced code")
