"""The side of the code that is tested: runs it, and does with what it defines as it is asked.

None of this is trusted: the code shares the process and may change all of it.
"""

from types import ModuleType

from adapters.rewards.locked.wire import Data, Line, decode, encode

_MOST_ITEMS = 100_000


def serve(code: str, line: Line) -> None:
    """Say what `code` defines, then answer for it until the other side is gone."""
    kept: list[object] = []

    def keep(value: object) -> int:
        for number, one in enumerate(kept):
            if one is value:
                return number
        kept.append(value)
        return len(kept) - 1

    def find(number: int) -> object:
        return kept[number]

    names: dict[str, object] = {"__name__": "solution"}
    try:
        exec(compile(code, "solution", "exec"), names)
    except BaseException as error:
        line.send({"error": type(error).__name__, "said": _said(error)})
        return
    shown = {
        name: encode(value, keep)
        for name, value in names.items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    line.send({"names": shown})
    while True:
        order = line.receive()
        given = [decode(one, find) for one in order.get("args", ())]
        named = {name: decode(one, find) for name, one in order.get("kwargs", {}).items()}
        try:
            value = _do(order["do"], find(order["on"]), given, named)
            answer: Data = {"value": encode(value, keep)}
            if order["do"] == "call":
                answer["args"] = [encode(one, keep) for one in given]
        except Exception as error:
            answer = {"error": type(error).__name__, "said": _said(error)}
        line.send(answer)


def _do(what: str, subject: object, given: list[object], named: dict[str, object]) -> object:
    match what:
        case "call":
            return subject(*given, **named)  # type: ignore[operator]
        case "get":
            return getattr(subject, str(given[0]))
        case "item":
            return subject[given[0]]  # type: ignore[index]
        case "length":
            return len(subject)  # type: ignore[arg-type]
        case "truth":
            return bool(subject)
        case "text":
            return str(subject)
        case "items":
            return [one for _, one in zip(range(_MOST_ITEMS), subject, strict=False)]  # type: ignore[call-overload]
    raise ValueError(what)


def _said(error: BaseException) -> str:
    try:
        return str(error)[:200]
    except Exception:
        return ""
