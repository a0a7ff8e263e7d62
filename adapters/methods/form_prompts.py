"""How a contract is asked for in words, where a prompt does not ask for it."""

import json
from dataclasses import replace

from adapters.spec import (
    ContractSpec,
    JsonSchemaContract,
    RegexContract,
    TagsContract,
    ToolCallContract,
)
from adapters.types import ChatMessage, Prompt


def spelled_out(contract: ContractSpec) -> str:
    """The contract as an instruction."""
    match contract:
        case JsonSchemaContract():
            schema = json.dumps(contract.json_schema, ensure_ascii=False)
            return f"Reply with JSON and nothing else, valid by this JSON schema: {schema}"
        case TagsContract():
            form = "".join(f"<{tag}>…</{tag}>" for tag in contract.tags)
            return f"Reply in exactly this form, with nothing around it: {form}"
        case RegexContract():
            return f"Your whole reply must match this regular expression: {contract.pattern}"
        case ToolCallContract():
            tools = json.dumps(contract.tools, ensure_ascii=False)
            return (
                'Reply with one tool call and nothing else: {"name": …, "arguments": {…}}. '
                f"The tools, with the JSON schemas of their arguments: {tools}"
            )


def asking_for(prompt: Prompt, instruction: str) -> Prompt:
    """The prompt with an instruction at the end of its last user message."""
    messages = list(prompt.messages)
    for at in range(len(messages) - 1, -1, -1):
        if messages[at]["role"] == "user":
            content = f"{messages[at]['content']}\n\n{instruction}"
            messages[at] = {**messages[at], "content": content}
            return replace(prompt, messages=tuple(messages))
    asked: ChatMessage = {"role": "user", "content": instruction}
    return replace(prompt, messages=(*messages, asked))
