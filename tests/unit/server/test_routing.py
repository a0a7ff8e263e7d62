"""Names to weights: every public name, and that nothing ever answers for something else."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import ModelNotFound, VersionNotServable
from server.engine.routing import (
    AdapterRoutes,
    RoutingSnapshot,
    TrialRoute,
    VersionRoute,
    is_drawn,
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
        "smollm2@try.run_1.1.0a1b2c3d4e5f",
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


# Trials


def on_trial(mode: str, share: float = 100, status: str = "servable") -> RoutingSnapshot:
    trial = TrialRoute(mode, 2, share, "salt_1")
    routes = line(version(1), version(2, status), champion=1, challenger=2)
    return snapshot(replace(routes, trial=trial))


@pytest.mark.parametrize("name", ["smollm2", "smollm2@champion"])
def test_a_canary_answers_for_the_champion_and_names_whom_to_fall_back_to(name: str) -> None:
    route = resolve(on_trial("canary"), name, draw="a")

    assert (route.version_name, route.arm, route.is_on_trial) == ("smollm2@v2", "challenger", True)
    assert route.fallback is not None
    assert (route.fallback.version_name, route.fallback.arm) == ("smollm2@v1", "champion")


def test_a_shadow_leaves_the_answer_to_the_champion() -> None:
    route = resolve(on_trial("shadow"), "smollm2", draw="a")

    assert (route.version_name, route.arm, route.fallback) == ("smollm2@v1", "champion", None)
    assert route.shadow is not None
    assert (route.shadow.version_name, route.shadow.arm) == ("smollm2@v2", "shadow")


@pytest.mark.parametrize("mode", ["shadow", "canary"])
@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("smollm2@v1", "smollm2@v1"),
        ("smollm2@v2", "smollm2@v2"),
        ("smollm2@challenger", "smollm2@v2"),
        ("smollm2@base", "smollm2@base"),
        ("smollm2@v1.00000001", "smollm2@v1"),
    ],
)
def test_who_names_a_version_joins_no_trial(mode: str, name: str, answers: str) -> None:
    route = resolve(on_trial(mode), name, draw="a")

    assert (route.version_name, route.arm, route.shadow) == (answers, "pinned", None)


@pytest.mark.parametrize("mode", ["shadow", "canary"])
def test_without_a_draw_nobody_joins_a_trial(mode: str) -> None:
    route = resolve(on_trial(mode), "smollm2")

    assert (route.arm, route.shadow, route.is_on_trial) == ("champion", None, True)


@pytest.mark.parametrize("status", ["unproven", "rejected"])
def test_a_challenger_is_served_whatever_its_exam_said(status: str) -> None:
    routes = on_trial("canary", status=status)

    for name in ("smollm2", "smollm2@challenger", "smollm2@v2"):
        assert resolve(routes, name, draw="a").version_name == "smollm2@v2"


def test_an_unproven_version_without_a_trial_is_refused() -> None:
    with pytest.raises(VersionNotServable, match="put it on trial"):
        resolve(snapshot(line(version(2, "unproven"))), "smollm2@v2")


@given(st.text(), st.floats(0.01, 100))
def test_the_draw_never_changes_its_mind(draw: str, share: float) -> None:
    small, large = TrialRoute("canary", 2, share, "s"), TrialRoute("canary", 2, 100, "s")

    assert is_drawn(small, draw) == is_drawn(small, draw)
    assert is_drawn(large, draw)
    if is_drawn(small, draw):  # who is in a share is in every larger one
        assert is_drawn(TrialRoute("canary", 2, min(100, share * 1.5), "s"), draw)


def test_the_share_is_kept_and_another_trial_draws_anew() -> None:
    first, second = TrialRoute("canary", 2, 10, "salt_1"), TrialRoute("canary", 2, 10, "salt_2")
    draws = [f"conversation {n}" for n in range(4000)]

    drawn = {draw for draw in draws if is_drawn(first, draw)}
    again = {draw for draw in draws if is_drawn(second, draw)}

    assert 320 <= len(drawn) <= 480
    assert len(drawn & again) < len(drawn) / 3


def test_an_editor_answers_nobody_and_is_kept_in_the_engine() -> None:
    editor = replace(line(version(1), name="smollm2-editor", champion=1), is_routed=False)
    both = snapshot(line(version(2), champion=2), editor)

    for name in ("smollm2-editor", "smollm2-editor@base", "smollm2-editor@v1"):
        with pytest.raises(ModelNotFound) as refused:
            resolve(both, name)
        assert "There is smollm2;" in str(refused.value)
    assert not any("editor" in name for name in public_models(both))
    assert "smollm2-editor@v1.00000001" not in {r.engine_name for r in public_models(both).values()}
