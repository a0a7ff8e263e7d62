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
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from adapters.types import ChatMessage, ProgressCallback, Rollout, SamplingParams

_BATCH = 24
"""Prompts side by side."""
_ROWS = 64
"""Replies side by side, where several are drawn to each prompt."""


@dataclass(frozen=True, slots=True)
class TorchSampler:
    """An :class:`adapters.sampling.RolloutSampler` over a model in this process."""

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
        made = self._complete(conversations, params, 1, on_progress, with_logprobs=False)
        return [rollout.text for [rollout] in made]

    def rollouts(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        *,
        group: int = 1,
        on_progress: ProgressCallback | None = None,
    ) -> list[tuple[Rollout, ...]]:
        """See :class:`adapters.sampling.RolloutSampler`; the seed is that of the whole call."""
        return self._complete(conversations, params, group, on_progress, with_logprobs=True)

    def _complete(
        self,
        conversations: Sequence[Sequence[ChatMessage]],
        params: SamplingParams,
        group: int,
        on_progress: ProgressCallback | None,
        *,
        with_logprobs: bool,
    ) -> list[tuple[Rollout, ...]]:
        """`group` rollouts of each conversation, in their order.

        Logprobs cost the memory of every step's logits: long texts are asked for without.
        """
        prompts = [self._prompt(messages) for messages in conversations]
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        found: dict[int, tuple[Rollout, ...]] = {}
        if params.seed is not None:
            torch.manual_seed(params.seed)
        size = _BATCH if group == 1 else max(1, _ROWS // group)
        for first in range(0, len(order), size):
            batch = order[first : first + size]
            made = self._continue([prompts[index] for index in batch], params, group, with_logprobs)
            rows = [tuple(made[row : row + group]) for row in range(0, len(made), group)]
            found |= zip(batch, rows, strict=True)
            if on_progress is not None:
                on_progress(len(found) * group, len(order) * group)
        return [found[index] for index in range(len(prompts))]

    def _prompt(self, messages: Sequence[ChatMessage]) -> str:
        goes_on = messages[-1]["role"] == "assistant"
        text: str = self.tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
        )
        return text

    def _continue(
        self, prompts: Sequence[str], params: SamplingParams, group: int, with_logprobs: bool
    ) -> list[Rollout]:
        """`group` rollouts of the first prompt, then those of the second, and so on."""
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
                "repetition_penalty": 1.0,
            }
        with torch.inference_mode():
            read = self._read(**fed)
            read.batch_repeat_interleave(group)
            fed = {name: rows.repeat_interleave(group, dim=0) for name, rows in fed.items()}
            made = self.model.generate(
                **fed,
                past_key_values=read,
                max_new_tokens=params.max_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
                return_dict_in_generate=True,
                output_logits=with_logprobs,
                **drawn,
            )
            width = fed["input_ids"].shape[1]
            asked, told = made.sequences[:, :width], made.sequences[:, width:]
            # Of the model as it is: neither temperature nor top_p is in these logits.
            steps = zip(made.logits or (), told.unbind(1), strict=with_logprobs)
            columns = [_logprobs(logits, ids) for logits, ids in steps]
        masks = fed["attention_mask"].bool()
        logprobs = torch.stack(columns, dim=1).tolist() if columns else [[]] * len(told)
        rows = zip(asked, masks, told.tolist(), logprobs, strict=True)
        return [
            self._rollout(prompt[mask].tolist(), ids, chances, params)
            for prompt, mask, ids, chances in rows
        ]

    def _read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> DynamicCache:
        """The prompts once, however many replies are drawn to each; all but their last token."""
        cache = DynamicCache()
        places = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        if input_ids.shape[1] > 1:
            self.model(
                input_ids[:, :-1],
                attention_mask=attention_mask[:, :-1],
                position_ids=places[:, :-1],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return cache

    def _rollout(
        self,
        prompt_ids: list[int],
        padded_ids: list[int],
        logprobs: list[float],
        params: SamplingParams,
    ) -> Rollout:
        ids = self._own(padded_ids, params)
        is_truncated = len(ids) == params.max_tokens and not self._ends(ids, params)
        return Rollout(
            self._text(ids, params),
            tuple(prompt_ids),
            tuple(ids),
            tuple(logprobs[: len(ids)]),
            is_truncated,
        )

    def _own(self, ids: list[int], params: SamplingParams) -> list[int]:
        """A completion without what pads it to the length of its batch's longest."""
        ends = (end for end in range(1, len(ids)) if self._ends(ids[:end], params))
        return ids[: next(ends, len(ids))]

    def _ends(self, ids: list[int], params: SamplingParams) -> bool:
        ends = self.model.generation_config.eos_token_id
        if ids[-1] in (ends if isinstance(ends, list) else [ends]):
            return True
        return bool(params.stop) and any(stop in self._decoded(ids) for stop in params.stop)

    def _text(self, ids: list[int], params: SamplingParams) -> str:
        return _until(self._decoded(ids), params.stop)

    def _decoded(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def _logprobs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Of one token of each row; logits (rows, vocabulary), ids (rows,)."""
    return logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def _until(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.partition(stop)[0]
    return text
