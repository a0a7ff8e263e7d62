"""`everlearn up`: the whole server on one machine, as watched child processes. No rule of the service."""
