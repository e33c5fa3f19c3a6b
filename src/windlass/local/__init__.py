"""AWS on this machine. Nothing that is deployed imports from here."""
