"""The simulator: one seed, one virtual clock, every fault by name."""
