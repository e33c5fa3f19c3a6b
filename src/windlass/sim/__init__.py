"""The simulator: the real pipeline in worlds of faults, each on one seed and one virtual clock.

chance     all randomness of a run, from its seed
records    the records that a declaration calls for: edges and dirt
stream     Kinesis in memory; producers put into it
table      DynamoDB in memory; seams put faults before it, and before the quarantine
world      one run: mapping, function, time and trouble
checker    what must hold, by the second reading
faults     the table of faults
runs       many runs, and a failure made small
proof      the same for tests: `assert_exact`
"""
