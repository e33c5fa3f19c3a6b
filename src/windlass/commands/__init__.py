"""What the commands do that read: they put rooms together and show what comes out. `cli.py` parses, these run."""
