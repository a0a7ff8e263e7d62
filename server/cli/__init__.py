"""The command `everlearn`. Talks to a server over HTTP; only `up`, `doctor` and `--local` touch the machine."""
