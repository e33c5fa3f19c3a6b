"""boto3 clients as the commands ask for them: `--endpoint-url`, `--region`, and no credentials needed at home."""

import os
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from windlass.deploy.problem import NO_CREDENTIALS

_HOME = ("127.0.0.1", "localhost", "::1", "0.0.0.0")  # noqa: S104 - compared with, not bound to
_REGION = "us-east-1"


class ClientProblem(Exception):
    """A client cannot be made. One line: what is wrong, what was found, what to do."""


def is_home(endpoint_url: str | None) -> bool:
    """Whether an endpoint is on this machine."""
    return bool(endpoint_url) and urlsplit(endpoint_url).hostname in _HOME


def speaks_to_home(made: Any) -> bool:
    """Whether a client's endpoint is on this machine, whether by --endpoint-url or by AWS_ENDPOINT_URL."""
    return is_home(made.meta.endpoint_url)


def client(service: str, *, endpoint_url: str | None, region: str | None) -> Any:
    """A client of the service. Raises ClientProblem, as its calls do where there are no credentials.

    The region is the one given, else the one of the AWS configuration, else us-east-1. An endpoint on this machine,
    given or in AWS_ENDPOINT_URL, gets made-up credentials where there are none.
    """
    session = botocore.session.Session()
    place = endpoint_url or os.environ.get("AWS_ENDPOINT_URL")
    style = {"addressing_style": "path"} if place else {}
    config = Config(retries={"mode": "standard", "max_attempts": 8}, connect_timeout=5, read_timeout=60, s3=style)
    try:
        session.register_component("data_loader", _loader())
        if is_home(place):
            # The instance's role is asked for over the network, which takes seconds where there is none.
            session.get_component("credential_provider").remove("iam-role")
            if session.get_credentials() is None:
                session.set_credentials("local", "local")
        region = region or session.get_config_variable("region") or _REGION
        clients = boto3.Session(botocore_session=session, region_name=region)
        made = clients.client(service, endpoint_url=endpoint_url, config=config)
    except BotoCoreError as error:  # before ValueError, as some of these are both
        msg = f"{error}; see `aws configure list` for where profile, region and credentials come from"
        raise ClientProblem(msg) from None
    except ValueError as error:
        msg = f"--endpoint-url {endpoint_url}: {error}; an endpoint looks like http://127.0.0.1:4566"
        raise ClientProblem(msg) from None

    def need_credentials(**_: object) -> None:
        if session.get_credentials() is None:
            raise ClientProblem(NO_CREDENTIALS)

    made.meta.events.register("before-sign", need_credentials)  # not now: a dry run asks AWS for nothing
    return made


@cache
def _loader() -> Any:
    """The descriptions of AWS's services, read from disk once for all clients: most of what a client costs."""
    return botocore.session.Session().get_component("data_loader")
