"""Data in, LoRA adapter out: a library with no database, no HTTP framework and no queue."""
