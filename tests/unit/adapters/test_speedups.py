"""Which speed-ups a device gets; what they gain is a matter of measuring on that device."""

import pytest

from adapters.training.speedups import Speedups, choose_speedups, find_speedups


@pytest.mark.parametrize("steps", [1, 10_000])
def test_on_cpu_only_lora_is_fused_whatever_is_installed(steps: int) -> None:
    plain = Speedups(has_fused_layers=False, is_compiled=False, has_fused_lora=True)

    assert choose_speedups("cpu", steps=steps, has_liger=True, has_triton=True) == plain
    assert find_speedups("cpu", steps=steps) == plain


@pytest.mark.parametrize(
    ("has_liger", "has_triton", "steps", "expected"),
    [
        (True, True, 10, Speedups(has_fused_layers=True, is_compiled=False)),
        (True, True, 10_000, Speedups(has_fused_layers=True, is_compiled=False)),
        (False, True, 10, Speedups(has_fused_layers=False, is_compiled=False)),
        (False, True, 10_000, Speedups(has_fused_layers=False, is_compiled=True)),
        (True, False, 10_000, Speedups(has_fused_layers=False, is_compiled=False)),
    ],
)
def test_on_cuda_fused_layers_come_first_and_short_runs_are_not_compiled(
    has_liger: bool, has_triton: bool, steps: int, expected: Speedups
) -> None:
    found = choose_speedups("cuda", steps=steps, has_liger=has_liger, has_triton=has_triton)

    assert found == expected
