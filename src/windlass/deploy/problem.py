"""What goes wrong in deploying, as one line."""


class DeployProblem(Exception):
    """It cannot be packaged, deployed or looked at. One line: what is wrong, what was found, what to do."""
