"""The producer: seeded trips or files of yours, in the dialects of the lab, into any Kinesis endpoint."""
