"""TTRL (arXiv 2504.16084) top to bottom in one file: `python examples/flat_ttrl.py [majority|random]`.

The model is a table: for each sum the log-odds of what is said, one word and then the end. At first
it says the right number in four replies of ten, and most of the majorities are right. TTRL teaches it
its own majority; the truth is looked at for the printed numbers alone. The server's version, with a
language model in the table's place, is adapters/methods/ttrl.py.
"""

import sys
from collections import Counter

import torch
from torch import Tensor

PROMPTS = [(a, b) for a in range(6) for b in range(6)]
WORDS = [*map(str, range(11)), "eleven?", "I can not say"]
VOTES, TRAINED, PROMPTS_PER_STEP, STEPS = 16, 8, 12, 60
FLOOR, CEILING = 0.2, 0.9
CLIP_LOW, CLIP_HIGH, KL = 0.2, 0.28, 0.001


def begin() -> Tensor:
    """Log-odds, P x V: the truth is the likeliest word for most sums, and some other for the rest."""
    logits_PV = torch.randn(len(PROMPTS), len(WORDS))
    for row, (a, b) in enumerate(PROMPTS):
        logits_PV[row, a + b] += 2.3
    return logits_PV


def extract(reply: str) -> str | None:
    """The number that a reply is; anything else is no answer."""
    return reply if reply.isdecimal() else None


def vote(answers: list[str | None]) -> tuple[str | None, float]:
    """The winner and its share of all votes. No answer never wins, and a tie has no winner."""
    counts = Counter(answer for answer in answers if answer is not None).most_common(2)
    if not counts:
        return None, 0.0
    is_tie = len(counts) == 2 and counts[0][1] == counts[1][1]
    return None if is_tie else counts[0][0], counts[0][1] / len(answers)


def reward(answers: list[str | None], kind: str) -> tuple[Tensor | None, float]:
    """1 for each reply that gives the majority's answer, else 0; None where nothing is to be learnt."""
    winner, agreement = vote(answers)
    if winner is None or not FLOOR <= agreement <= CEILING:
        return None, agreement
    rewards_N = torch.tensor([float(answer == winner) for answer in answers])
    if kind == "random":  # the control: a coin for each reply, with the same mean
        rewards_N = torch.bernoulli(rewards_N.mean().expand(len(answers)))
    return rewards_N, agreement


def advantages(rewards_G: Tensor) -> Tensor:
    """GRPO: how much better than the group's mean, in its standard deviations."""
    return (rewards_G - rewards_G.mean()) / (rewards_G.std() + 1e-4)


def loss(logprobs_B: Tensor, old_B: Tensor, base_B: Tensor, advantages_B: Tensor) -> Tensor:
    """The clipped surrogate, and the k3 estimate of the KL to the base."""
    ratio_B = (logprobs_B - old_B).exp()
    clipped_B = ratio_B.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
    surrogate_B = torch.minimum(ratio_B * advantages_B, clipped_B * advantages_B)
    gap_B = base_B - logprobs_B
    return (-surrogate_B + KL * (gap_B.exp() - gap_B - 1)).mean()


def learn(base_PV: Tensor, kind: str) -> Tensor:
    """The table after TTRL."""
    logits_PV = base_PV.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits_PV], lr=0.1)
    for step in range(STEPS):
        drawn = torch.randperm(len(PROMPTS))[:PROMPTS_PER_STEP].tolist()
        rows, words, gains, agreements = [], [], [], []
        for row in drawn:
            said_N = torch.multinomial(logits_PV[row].softmax(-1).detach(), VOTES, True)
            rewards_N, agreement = reward([extract(WORDS[word]) for word in said_N.tolist()], kind)
            agreements.append(agreement)
            if rewards_N is None or rewards_N[:TRAINED].min() == rewards_N[:TRAINED].max():
                continue  # equal rewards have no advantage
            rows += [row] * TRAINED  # all vote, the first are trained
            words += said_N[:TRAINED].tolist()
            gains.append(advantages(rewards_N[:TRAINED]))
        if not rows:
            continue
        logprobs_B = logits_PV.log_softmax(-1)[rows, words]
        base_B = base_PV.log_softmax(-1)[rows, words]
        optimizer.zero_grad()
        loss(logprobs_B, logprobs_B.detach(), base_B, torch.cat(gains)).backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step:2}  agreement {sum(agreements) / len(agreements):.2f}")
    return logits_PV.detach()


def right(logits_PV: Tensor) -> float:
    """How likely a reply is to be right."""
    odds_PV = logits_PV.softmax(-1)
    return sum(odds_PV[row, a + b].item() for row, (a, b) in enumerate(PROMPTS)) / len(PROMPTS)


def main(kind: str = "majority") -> tuple[float, float]:
    """The share of right replies before and after."""
    torch.manual_seed(0)
    base_PV = begin()
    after_PV = learn(base_PV, kind)
    print(f"right: {right(base_PV):.0%} before, {right(after_PV):.0%} after")
    return right(base_PV), right(after_PV)


if __name__ == "__main__":
    main(*sys.argv[1:])
