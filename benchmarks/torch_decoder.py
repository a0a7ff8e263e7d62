"""Answers by transformers, for weights that the serving engine cannot be given without a restart.

Greedy or sampled, in batches padded on the left; the chat template is the tokenizer's, as the
engine's chat endpoint uses it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.types import ChatMessage, ProgressCallback, SamplingParams

_BATCH = 24


@dataclass(frozen=True, slots=True)
class TorchSampler:
    """An :class:`adapters.sampling.Sampler` over a model in this process."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path, adapter: Path | None = None) -> "TorchSampler":
        """The model of a folder, with an adapter merged into its weights where one is given."""
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        return cls(model.eval(), tokenizer)

    def chat(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[str]:
        """See :class:`adapters.sampling.Sampler`; prompts of like length share a batch."""
        prompts = [
            self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
            for messages in conversations
        ]
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        replies = [""] * len(prompts)
        if params.seed is not None:
            torch.manual_seed(params.seed)
        for first in range(0, len(order), _BATCH):
            batch = order[first : first + _BATCH]
            texts = self._continue([prompts[index] for index in batch], params)
            for index, text in zip(batch, texts, strict=True):
                replies[index] = text
            if on_progress is not None:
                on_progress(min(first + _BATCH, len(order)), len(order))
        return replies

    def _continue(self, prompts: Sequence[str], params: SamplingParams) -> list[str]:
        fed = self.tokenizer(
            list(prompts), return_tensors="pt", padding=True, add_special_tokens=False
        )
        drawn: dict[str, Any] = {"do_sample": False}
        if params.stop:
            drawn |= {"stop_strings": list(params.stop), "tokenizer": self.tokenizer}
        if params.temperature > 0:
            drawn |= {
                "do_sample": True,
                "temperature": params.temperature,
                "top_p": params.top_p,
                "top_k": 0,
            }
        with torch.inference_mode():
            ids = self.model.generate(
                **fed,
                max_new_tokens=params.max_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
                **drawn,
            )
        texts = self.tokenizer.batch_decode(
            ids[:, fed["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return [_until(text, params.stop) for text in texts]


def _until(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.partition(stop)[0]
    return text
