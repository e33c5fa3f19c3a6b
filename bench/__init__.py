"""The figures, side by side: `make bench`."""
