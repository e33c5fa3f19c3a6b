"""What can go wrong with a console as a whole. Apart, so that a command may name it without loading a web server."""


class ConsoleProblem(Exception):
    """The console cannot be served. One line: what is wrong, what was found, what to do."""
