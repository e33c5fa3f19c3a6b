"""Settings that the function's environment gives: `env("dynamoDBTableName")`."""

import os
from collections.abc import Mapping

import msgspec


class SettingMissing(RuntimeError):
    """A setting that the function needs is not there. The message names it and what to do."""


class Env(msgspec.Struct, frozen=True):
    """An environment variable, read when the first call needs it."""

    name: str
    default: str | None = None


def env(name: str, default: str | None = None) -> Env:
    """Take a setting from the environment variable `name`, so that one zip serves several stacks."""
    return Env(name, default)


def resolve(setting: str | Env, purpose: str, environ: Mapping[str, str] = os.environ) -> str:
    """The setting's value. Raises SettingMissing, naming the variable and what it is for."""
    if isinstance(setting, str):
        return setting
    value = environ.get(setting.name) or setting.default
    if not value:
        msg = f"the environment variable {setting.name} is not set: {purpose}"
        raise SettingMissing(msg)
    return value
