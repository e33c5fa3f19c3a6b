"""The local endpoint as a source: AWS' own API for all that it has, and the machinery for what AWS keeps to itself."""

from typing import Any

from windlass.console.aws_source import AT_HOME, AwsSource, Known
from windlass.console.source import FailureView, ShardView
from windlass.console.values import loop_figures
from windlass.local.cloud import Cloud
from windlass.local.mappings import Sent
from windlass.local.poller import ShardStatus


def cloud_source(cloud: Cloud, *, function: str | None = None) -> AwsSource:
    """Looks at one function of a local endpoint: the one named, or the first that reads a stream."""

    def inside(uuid: str) -> Known | None:
        view = cloud.view()
        mapping = next((mapping for mapping in view.mappings if mapping.uuid == uuid), None)
        if mapping is None:
            return None
        failures = [failure_view(sent) for sent in reversed(view.failures) if sent.uuid == uuid]
        return Known({status.shard_id: shard_view(status) for status in mapping.shards}, failures)

    return AwsSource(cloud.client, function=function, endpoint=cloud.endpoint_url, paces=AT_HOME, inside=inside)


def shard_view(status: ShardStatus) -> ShardView:
    """A shard as its loop knows it. Its place in the stream is known elsewhere."""
    state = "done" if status.done else "blocked" if status.trouble else "reading"
    nowhere: dict[str, Any] = {"parents": (), "low": 0, "high": 0, "closed": False}
    return ShardView(shard_id=status.shard_id, state=state, **nowhere, **loop_figures(status))


def failure_view(sent: Sent) -> FailureView:
    """A batch that was given up, and what became of the message about it."""
    failure = sent.failure
    return FailureView(
        at_ms=sent.at_ms,
        shard_id=failure.shard_id,
        condition=failure.condition,
        records=failure.records,
        first=failure.first_sequence,
        last=failure.last_sequence,
        destination=sent.destination,
        refused=sent.refused,
        error=failure.function_error or "",
    )
