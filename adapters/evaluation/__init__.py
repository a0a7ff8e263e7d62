"""Questions, answers and the verdict on them; asks through a Sampler, never loads a model."""
