"""What every other server module may use: settings, errors, logging, clock, keys, queue. Knows no table."""
