"""A trainer stands back on the processor, as far as it was told, however many jobs it does."""

import io
import json
from pathlib import Path

import pytest

from adapters.lesson import Stage, stages_to_json
from adapters.spec import LoraSpec, TrainingSpec
from adapters.training import job


class Processor:
    """Its niceness, as `os.nice` tells and raises it."""

    def __init__(self, now: int) -> None:
        self.now = now

    def __call__(self, by: int) -> int:
        assert by >= 0, "only root may lower it"
        self.now += by
        return self.now


@pytest.mark.parametrize(("before", "wanted", "after"), [(0, 10, 10), (15, 10, 15), (0, 0, 0)])
def test_jobs_are_done_at_the_niceness_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: int, wanted: int, after: int
) -> None:
    processor = Processor(before)
    monkeypatch.setattr(job.os, "nice", processor)
    monkeypatch.setattr(job, "_train_one", lambda *_: {})
    path = tmp_path / "job.json"
    stages = stages_to_json([Stage(LoraSpec(), TrainingSpec(), seed=0)])
    fields = {"base_model": "m", "stages": stages, "outputs": ["out"], "nice": wanted}
    path.write_text(json.dumps(fields))

    for _ in range(3):
        job.run_job(job.read_job(path), io.StringIO())

    assert processor.now == after
