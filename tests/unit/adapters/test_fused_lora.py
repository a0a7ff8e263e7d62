"""LoRA added within its product: what PEFT computes, forward and backward, and PEFT's where it differs."""

from pathlib import Path

import pytest
import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor

from adapters.spec import LoraSpec, Precision
from adapters.training.fused_lora import fuse
from adapters.training.model import Trainee, load_base, load_trainee, save_adapter

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def trainee(model: Path, precision: Precision, *, dropout: float = 0.0) -> Trainee:
    """With an adapter that says something: a fresh one adds nothing."""
    spec = LoraSpec(rank=4, alpha=12, dropout=dropout)
    made = load_trainee(model, spec=spec, seed=1, precision=precision)
    torch.manual_seed(2)
    for name, parameter in made.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return made


def step(made: Trainee) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradient of each LoRA matrix."""
    with made.autocast():
        logits_TV = made.model(input_ids=IDS, use_cache=False).logits[0].float()
    logits_TV.logsumexp(-1).sum().backward()
    named = made.model.named_parameters()
    return logits_TV.detach(), {n: p.grad for n, p in named if p.grad is not None}


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [(Precision.FLOAT32, 1e-5), (Precision.BFLOAT16, 6e-2)],
    ids=["float32", "bfloat16"],
)
def test_it_is_what_peft_computes(random_model: Path, precision: Precision, tolerance: float):
    plain, fused = trainee(random_model, precision), trainee(random_model, precision)
    fuse(fused.model)

    expected, expected_gradients = step(plain)
    found, gradients = step(fused)

    assert gradients.keys() == expected_gradients.keys()
    assert (found - expected).norm() <= tolerance * expected.norm()
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() <= tolerance * gradient.norm() + 1e-12


def test_it_is_used_and_goes_with_the_adapter(random_model: Path, monkeypatch) -> None:
    made = trainee(random_model, Precision.FLOAT32)
    fuse(made.model)
    seen: list[float] = []
    real = torch.addmm

    def watched(*args: Tensor, alpha: float) -> Tensor:
        seen.append(alpha)
        return real(*args, alpha=alpha)

    monkeypatch.setattr(torch, "addmm", watched)
    step(made)
    layers = sum(isinstance(module, Linear) for module in made.model.modules())
    assert seen == [3.0] * layers

    base = made.give_back().model
    base(input_ids=IDS)
    assert len(seen) == layers


def test_without_the_adapter_and_with_another_one_it_speaks_as_peft_does(
    random_model: Path, tmp_path: Path
) -> None:
    plain, fused = (trainee(random_model, Precision.FLOAT32) for _ in range(2))
    other = trainee(random_model, Precision.FLOAT32)
    for parameter in other.model.parameters():
        parameter.data.mul_(1.1)
    save_adapter(other.model, tmp_path / "other", base_name="random")
    fuse(fused.model)

    for made in (plain, fused):
        made.model.load_adapter(str(tmp_path / "other"), "other")
    with torch.no_grad():
        for adapter in ("other", "default"):
            for made in (plain, fused):
                made.model.set_adapter(adapter)
            torch.testing.assert_close(fused.model(IDS).logits, plain.model(IDS).logits)
        with plain.model.disable_adapter(), fused.model.disable_adapter():
            assert torch.equal(fused.model(IDS).logits, plain.model(IDS).logits)


def test_dropout_is_left_to_peft(random_model: Path, monkeypatch) -> None:
    made = trainee(random_model, Precision.FLOAT32, dropout=0.5)
    fuse(made.model)
    monkeypatch.setattr(torch, "addmm", lambda *_, **__: pytest.fail("fused beside dropout"))

    step(made)


def test_where_products_are_in_bfloat16_only_frozen_linear_layers_are_stored_so(
    random_model: Path,
) -> None:
    halved = load_base(random_model, Precision.BFLOAT16).model
    whole = load_base(random_model, Precision.FLOAT32).model

    stored = {name: p.dtype for name, p in halved.named_parameters()}
    assert {p.dtype for p in whole.parameters()} == {torch.float32}
    assert {n for n, dtype in stored.items() if dtype is torch.bfloat16} == {
        name for name in stored if "_proj." in name
    }
    made = trainee(random_model, Precision.BFLOAT16)
    adapter = {p.dtype for n, p in made.model.named_parameters() if "lora_" in n}
    assert adapter == {torch.float32}
