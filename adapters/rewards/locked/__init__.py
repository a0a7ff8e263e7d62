"""What runs inside a locked-down process: standard library only, so that nothing else need be seen there."""
