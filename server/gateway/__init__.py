"""The OpenAI-compatible surface under /v1: check, route, pass through, capture. Holds no rule."""
