"""Names to weights: every public name, and that nothing ever answers for something else."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import ModelNotFound, VersionNotServable
from server.engine.routing import (
    AdapterRoutes,
    RoutingSnapshot,
    VersionRoute,
    public_models,
    resolve,
)


def version(number: int, status: str = "servable", *, line: str = "smollm2") -> VersionRoute:
    digest = f"{number:08x}" + "0" * 56
    name = f"{line}@v{number}.{digest[:8]}"
    return VersionRoute(number, name, f"/a/{number}", status, digest, is_resident=True)


def line(*versions: VersionRoute, name: str = "smollm2", **aliases: int | None) -> AdapterRoutes:
    by_number = {v.number: v for v in versions}
    return AdapterRoutes(name, f"{name}@base", {"champion": None, **aliases}, by_number)


def snapshot(*lines: AdapterRoutes) -> RoutingSnapshot:
    return RoutingSnapshot(1, {routes.name: routes for routes in lines})


SNAPSHOT = snapshot(
    line(version(1), version(2), version(3, "candidate"), version(4, "rejected"), champion=2)
)


@pytest.mark.parametrize(
    ("requested", "public", "engine_name"),
    [
        ("smollm2", "smollm2@v2", "smollm2@v2.00000002"),
        ("smollm2@champion", "smollm2@v2", "smollm2@v2.00000002"),
        ("smollm2@base", "smollm2@base", "smollm2@base"),
        ("smollm2@v1", "smollm2@v1", "smollm2@v1.00000001"),
        ("smollm2@v1.00000001", "smollm2@v1", "smollm2@v1.00000001"),
    ],
)
def test_a_public_name_leads_to_its_weights(requested: str, public: str, engine_name: str) -> None:
    route = resolve(SNAPSHOT, requested)

    assert (route.version_name, route.engine_name) == (public, engine_name)


def test_a_champion_that_is_the_base_has_no_number_and_no_path() -> None:
    route = resolve(snapshot(line(version(1))), "smollm2")

    assert (route.engine_name, route.weights) == ("smollm2@base", None)


@pytest.mark.parametrize(
    "requested",
    [
        "",
        "@",
        "@base",
        "gpt",
        "smollm2@",
        "smollm2@v",
        "smollm2@v9",
        "smollm2@v01",
        "smollm2@v0",
        "smollm2@challenger",
        "smollm2@v1.00000002",
        "smollm2@v1.0000",
        "smollm2@base@base",
        "SmolLM2",
        "smollm2@v1 ",
        "smollm2@v¹",
    ],
)
def test_other_names_do_not_exist(requested: str) -> None:
    with pytest.raises(ModelNotFound):
        resolve(SNAPSHOT, requested)


def test_the_refusal_names_what_there_is() -> None:
    with pytest.raises(ModelNotFound, match=r"smollm2, smollm2@champion, .*@base, .*@v1 and .*@v2"):
        resolve(SNAPSHOT, "smollm2@v9")
    with pytest.raises(ModelNotFound, match="There is smollm2;"):
        resolve(SNAPSHOT, "other")
    with pytest.raises(ModelNotFound, match="everlearn up"):
        resolve(RoutingSnapshot(), "smollm2")


@pytest.mark.parametrize(("number", "why"), [(3, "exam is not over"), (4, "did not pass")])
def test_a_version_that_did_not_pass_is_refused_with_the_reason(number: int, why: str) -> None:
    with pytest.raises(VersionNotServable, match=why):
        resolve(SNAPSHOT, f"smollm2@v{number}")


def test_an_alias_on_a_candidate_is_refused_too() -> None:
    with pytest.raises(VersionNotServable):
        resolve(snapshot(line(version(3, "candidate"), champion=3)), "smollm2")


def test_the_listing_holds_names_that_answer_and_no_others() -> None:
    models = public_models(SNAPSHOT)

    assert list(models) == ["smollm2", "smollm2@base", "smollm2@v2", "smollm2@v1"]
    assert all(resolve(SNAPSHOT, name) == route for name, route in models.items())


STATUSES = st.sampled_from(["servable", "candidate", "rejected"])
NAMES = st.sampled_from(["a", "b.c", "d-1"])


@st.composite
def snapshots(draw: st.DrawFn) -> RoutingSnapshot:
    lines = []
    for name in draw(st.lists(NAMES, unique=True)):
        numbers = draw(st.lists(st.integers(1, 6), unique=True))
        versions = [version(number, draw(STATUSES), line=name) for number in numbers]
        champion = draw(st.sampled_from([None, *numbers]))
        lines.append(line(*versions, name=name, champion=champion))
    return snapshot(*lines)


@given(
    snapshots(),
    st.from_regex(
        re.compile(r"(a|b\.c|d-1|x)(@(base|champion|v[0-9](\.0000000[0-9])?|z))?"), fullmatch=True
    ),
)
def test_a_route_is_always_servable_weights_of_the_line_that_was_named(
    snapshot: RoutingSnapshot, requested: str
) -> None:
    try:
        route = resolve(snapshot, requested)
    except (ModelNotFound, VersionNotServable):
        return

    routes = snapshot.adapters[requested.partition("@")[0]]
    assert route.adapter == routes.name
    if route.weights is None:
        assert route.engine_name == routes.base_engine_name
    else:
        assert route.weights is routes.versions[route.weights.number]
        assert route.weights.status == "servable"
        assert route.engine_name == route.weights.engine_name
    if "." in requested.partition("@")[2]:
        assert route.engine_name == requested
