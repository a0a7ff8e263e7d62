"""Everything that talks to vLLM, and the pure rules about it. No HTTP framework, no table."""
