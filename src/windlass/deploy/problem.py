"""What goes wrong in deploying, as one line."""

NO_CREDENTIALS = "no AWS credentials; run aws configure (or aws sso login), or give --endpoint-url"


class DeployProblem(Exception):
    """It cannot be packaged, deployed or looked at. One line: what is wrong, what was found, what to do."""
