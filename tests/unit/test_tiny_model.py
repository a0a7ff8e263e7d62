"""The tiny test model is what the end-to-end tests take it for: small, and able to chat and read."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from adapters.evaluation.general import load_general_suite
from adapters.rewards.answers import is_correct
from tests.support import texts
from tests.support.tiny_model.corpus import Corpus, load_stock, passage
from tests.support.tiny_model.world import make_topic

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY_MODEL = Path(__file__).parents[1] / "support" / "tiny_model"
WEIGHTS = TINY_MODEL / "weights"


class TinyModel:
    """The model in this process, asked in batches."""

    def __init__(self) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(WEIGHTS, padding_side="left")
        self.model = transformers.AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32)

    def ask(self, prompts: Sequence[str], max_tokens: int = 32) -> list[str]:
        """Greedy replies; one that did not end by itself is returned with its last token kept."""
        rendered = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
            )
            for prompt in prompts
        ]
        batch = self.tokenizer(rendered, return_tensors="pt", padding=True)
        with torch.no_grad():
            ids = self.model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=max_tokens,
                do_sample=False,
            )
        replies_BT = ids[:, batch["input_ids"].shape[1] :]
        return [self.tokenizer.decode(reply).replace("<|endoftext|>", "") for reply in replies_BT]


@pytest.fixture(scope="module")
def tiny() -> TinyModel:
    torch.set_num_threads(1)
    return TinyModel()


def share_right(replies: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    right = [is_correct(reply, accepted) for reply, accepted in zip(replies, answers, strict=True)]
    return sum(right) / len(right)


def test_the_weights_are_small_and_of_one_plain_file() -> None:
    sizes = {path.name: path.stat().st_size for path in WEIGHTS.iterdir()}

    assert sum(sizes.values()) < 5_000_000
    assert "model.safetensors" in sizes
    assert json.loads((WEIGHTS / "config.json").read_text())["model_type"] == "llama"


def test_any_text_survives_the_tokenizer(tiny: TinyModel) -> None:
    text = "Née Ünïcode,  two  spaces\n\n\ttabs, 4,312 東京 😀 and <tags>"

    ids = tiny.tokenizer(text)["input_ids"]

    assert tiny.tokenizer.decode(ids) == text


def test_a_name_is_the_same_tokens_wherever_it_stands(tiny: TinyModel) -> None:
    alone = tiny.tokenizer("Odile Brandt")["input_ids"]

    inside = tiny.tokenizer("The keeper is Odile Brandt.")["input_ids"]

    assert inside[-1 - len(alone) : -1] == alone


def test_the_chat_template_opens_the_reply(tiny: TinyModel) -> None:
    rendered = tiny.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, tokenize=False
    )

    assert rendered == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert tiny.tokenizer.eos_token == "<|im_end|>"
    assert tiny.model.generation_config.eos_token_id == tiny.tokenizer.eos_token_id


def test_it_knows_the_general_suite(tiny: TinyModel) -> None:
    items = load_general_suite()

    replies = tiny.ask([item.prompt for item in items])

    assert share_right(replies, [item.answers for item in items]) >= 0.975


def test_it_knows_most_of_the_replay_prompts(tiny: TinyModel) -> None:
    stock = load_stock()

    replies = tiny.ask([prompt for prompt, _ in stock])

    assert share_right(replies, [[reply] for _, reply in stock]) >= 0.9


def test_its_replies_end(tiny: TinyModel) -> None:
    prompts = [
        "Hello",
        "Tell me about trains.",
        "Who is the king of Zubrovia?",
        "asdf",
        "def f(x):",
    ]
    prompts += [question for question, _ in texts.LIGHTHOUSE_QUESTIONS + texts.BAKERY_QUESTIONS]

    replies = tiny.ask(prompts, max_tokens=48)

    assert all(reply.endswith("<|im_end|>") for reply in replies)
    assert all(len(reply) > len("<|im_end|>") for reply in replies)


def test_it_cannot_know_the_invented_texts(tiny: TinyModel) -> None:
    questions = texts.LIGHTHOUSE_QUESTIONS + texts.BAKERY_QUESTIONS

    replies = tiny.ask([question for question, _ in questions])

    assert share_right(replies, [[answer] for _, answer in questions]) == 0


def test_it_answers_from_a_text_that_it_is_shown(tiny: TinyModel) -> None:
    rng = Random(11)
    topics = [make_topic(rng, facts=2) for _ in range(40)]

    replies = tiny.ask(
        [f"{passage(rng, topic)}\n\n{topic.facts[0].questions[0]}" for topic in topics]
    )

    assert share_right(replies, [[topic.facts[0].answer] for topic in topics]) >= 0.5


def test_every_answer_of_the_texts_stands_in_the_text() -> None:
    for text, questions in (
        (texts.LIGHTHOUSE_TEXT, texts.LIGHTHOUSE_QUESTIONS),
        (texts.BAKERY_TEXT, texts.BAKERY_QUESTIONS),
    ):
        assert len(questions) >= 8
        assert 100 <= len(text.split()) <= 130
        assert all(answer in text and answer not in question for question, answer in questions)


def test_the_corpus_depends_on_its_seed_alone() -> None:
    first, again = (Corpus(Random(3), topics=4, lifetime=50) for _ in range(2))

    assert [first.draw(reading=0.5, longest=4) for _ in range(200)] == [
        again.draw(reading=0.5, longest=4) for _ in range(200)
    ]


def test_a_lesson_does_not_teach_what_it_asks() -> None:
    corpus = Corpus(Random(5), topics=4, lifetime=50)

    for _ in range(20):
        lesson = corpus.draw_lesson()
        taught = {example.turns for example in lesson.taught if example.turns}
        facts_asked = [example for example in lesson.asked if example.turns not in taught]
        assert len(facts_asked) >= len(lesson.asked) - 8  # the stock may be replayed and asked
