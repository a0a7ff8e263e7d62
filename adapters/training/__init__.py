"""Self-edits in, PEFT folder out: the training loop, which never knows a method's name."""
