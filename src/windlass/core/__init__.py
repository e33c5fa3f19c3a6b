"""Values in, values out: no I/O, clock, randomness, environment or AWS SDK below this line."""
