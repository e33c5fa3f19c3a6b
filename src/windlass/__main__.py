"""The `windlass` command, also as `python -m windlass`. Says which extra is missing where a package is."""

import sys

_EXTRAS = {
    "typer": "cli",
    "rich": "cli",
    "packaging": "deploy",
    "moto": "local",
    "cryptography": "local",
    "awslambdaric": "local",
    "starlette": "local",
    "uvicorn": "local",
}
"""Which extra of pyproject.toml brings what the commands import."""


def main() -> None:
    """Run the command that the arguments say."""
    try:
        from windlass.cli import app

        app()
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        extras = ",".join(sorted({"cli", _EXTRAS[package]}))
        told = f"windlass: {package} is not installed, which this command needs: pip install 'windlass[{extras}]'"
        print(told, file=sys.stderr)  # noqa: T201
        sys.exit(2)


if __name__ == "__main__":
    main()
