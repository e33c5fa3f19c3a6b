"""The stack as a CloudFormation template, from the declaration and the settings alone.

Rules of this file:
- Keys, window and variable names come from the declaration, so that code and stack cannot disagree.
- Lambda is never told to discard: retries and age have no limit, and what it gives up all the same (records that
  outlive the stream's retention) leaves a message and its payload in the bucket, and an alarm.
- The role allows what the function does on what it does it to, and nothing else. `LAMBDA_READS` is what Lambda itself
  does in the function's name; `WRITES` what the handler does.
- Table and bucket outlive the stack, unless it failed while it was being created (`RetainExceptOnCreate`).
- Both formats have the same resources; only the function itself is written differently.

Sources: "AWS resource and property types reference", AWS CloudFormation; "Processing Amazon Kinesis Data Streams
records with Lambda" (permissions), "Retain discarded batch records in Lambda" (destinations), "Types of metrics for
Lambda functions", AWS Lambda Developer Guide; "DynamoDB metrics and dimensions"; "Permissions to use user-generated KMS
keys", Amazon Kinesis Data Streams Developer Guide.
"""

import json
from typing import Any, Literal

from windlass.apps import App
from windlass.core.rejected import Reason
from windlass.deploy import yaml
from windlass.deploy.package import WRAPPER
from windlass.deploy.problem import DeployProblem
from windlass.deploy.settings import AWS_STREAM_KEY, Settings, Shape
from windlass.deploy.source import handler_name
from windlass.pipelines import Windows
from windlass.settings import Env

Format = Literal["sam", "cloudformation"]
Resource = dict[str, Any]

QUARANTINE_PREFIX = "quarantine"
DESTINATION_PREFIX = "aws/lambda"  # where Lambda puts batches that it gave up: documented key format
METRICS_NAMESPACE = "Windlass"
ZIP = "build/function.zip"

LAMBDA_READS = (
    "kinesis:DescribeStream",
    "kinesis:DescribeStreamSummary",
    "kinesis:GetRecords",
    "kinesis:GetShardIterator",
    "kinesis:ListShards",
    "kinesis:SubscribeToShard",
)
"""What Lambda needs to read a stream for a function; ListShards is also the handler's."""

WRITES: dict[str, tuple[str, ...]] = {
    "windows, history": ("dynamodb:GetItem", "dynamodb:UpdateItem"),
    "windows, latest": ("dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:UpdateItem"),
    "records": ("dynamodb:BatchWriteItem", "dynamodb:GetItem"),
}
"""What the handler does to its table, by kind and layout."""


def shape_of(pipeline: Any) -> Shape:
    """What the rules on settings need to know of a declaration."""
    every_s = pipeline.plan.every_s if isinstance(pipeline, Windows) else 0
    return Shape(every_s, None if isinstance(pipeline.quarantine, Env) else pipeline.quarantine)


def render(app: App, settings: Settings, format: Format = "cloudformation") -> str:  # noqa: A002
    """The template as YAML with comments. Raises DeployProblem where settings and declaration disagree."""
    return yaml.dump(template(app, settings, format), _COMMENTS)


def template(app: App, settings: Settings, format: Format = "cloudformation") -> dict[str, Any]:  # noqa: A002
    """The template as plain values. Raises DeployProblem where settings and declaration disagree."""
    return _Stack(app, settings, format).template()


class _Stack:
    """One template being made."""

    def __init__(self, app: App, settings: Settings, format: Format) -> None:  # noqa: A002
        self.app, self.settings, self.sam = app, settings, format == "sam"
        self.pipeline = app.pipeline
        self.windowed = isinstance(app.pipeline, Windows)
        self.old_stream = settings.stream if _is_arn(settings.stream) else None
        self.old_table = settings.table if _is_arn(settings.table) else None
        self.table_name = self._table_name()

    def template(self) -> dict[str, Any]:
        head: dict[str, Any] = {"AWSTemplateFormatVersion": "2010-09-09"}
        if self.sam:
            head["Transform"] = "AWS::Serverless-2016-10-31"
        head["Description"] = f"{self.pipeline.plan.name}: {self._purpose()}, made by Windlass"
        if not self.sam:
            head["Parameters"] = {
                "CodeBucket": {"Type": "String", "Description": "The bucket that holds the function's zip"},
                "CodeKey": {"Type": "String", "Description": "The zip's key in it"},
            }
        return head | {"Resources": self._resources(), "Outputs": self._outputs()}

    def _resources(self) -> dict[str, Resource]:
        resources: dict[str, Resource] = {}
        if not self.old_stream:
            resources["Stream"] = self._stream()
        if not self.old_table:
            resources["Table"] = self._table()
        resources |= {
            "Bucket": self._bucket(),
            "BucketPolicy": _bucket_policy(),
            "FunctionLog": self._log(),
            "FunctionRole": self._role(),
            "Function": self._function(),
            "Mapping": self._mapping(),
        }
        return resources | self._alarms() | {"Dashboard": self._dashboard()}

    # ── names ───────────────────────────────────────────────────────────────────────────────────────────────

    def _purpose(self) -> str:
        return f"totals per {self.pipeline.plan.every_s} s window" if self.windowed else "records as items"

    def _table_name(self) -> str | None:
        """The new table's name, None for one that CloudFormation gives. A name in the declaration decides."""
        fixed, chosen = self.pipeline.table, self.settings.table
        name = _name_in(chosen) if chosen else None
        if isinstance(fixed, Env):
            return name
        if name and name != fixed:
            msg = f'the declaration writes to table "{fixed}", the settings say {chosen}: make them agree'
            raise DeployProblem(msg)
        return str(fixed)

    def _stream_arn(self) -> Any:
        return self.old_stream or _arn("Stream")

    def _stream_name(self) -> Any:
        return _name_in(self.old_stream) if self.old_stream else {"Ref": "Stream"}

    def _table_ref(self) -> Any:
        return _name_in(self.old_table) if self.old_table else {"Ref": "Table"}

    def _quarantine(self) -> Any:
        where = self.pipeline.quarantine
        return {"Fn::Sub": f"s3://${{Bucket}}/{QUARANTINE_PREFIX}"} if isinstance(where, Env) else where

    # ── resources ───────────────────────────────────────────────────────────────────────────────────────────

    def _stream(self) -> Resource:
        settings = self.settings
        mode = {"StreamMode": "PROVISIONED" if settings.shards else "ON_DEMAND"}
        properties: dict[str, Any] = {"Name": settings.stream} if settings.stream else {}
        if settings.shards:
            properties["ShardCount"] = settings.shards
        properties |= {
            "StreamModeDetails": mode,
            "RetentionPeriodHours": settings.retention_hours,
            "StreamEncryption": {"EncryptionType": "KMS", "KeyId": settings.stream_key or AWS_STREAM_KEY},
        }
        return {"Type": "AWS::Kinesis::Stream", "Properties": properties}

    def _table(self) -> Resource:
        keys = self.pipeline.table_keys.attributes
        roles = ("HASH", "RANGE")
        properties: dict[str, Any] = {"TableName": self.table_name} if self.table_name else {}
        properties |= {
            "AttributeDefinitions": [{"AttributeName": key.name, "AttributeType": key.type} for key in keys],
            "KeySchema": [{"AttributeName": key.name, "KeyType": role} for key, role in zip(keys, roles, strict=False)],
            "BillingMode": "PAY_PER_REQUEST",
            "PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": True},
            "SSESpecification": {"SSEEnabled": True},
        }
        kept = {"DeletionPolicy": "RetainExceptOnCreate", "UpdateReplacePolicy": "Retain"}
        return _skipping({"Type": "AWS::DynamoDB::Table", **kept, "Properties": properties}, "CKV_AWS_119")

    def _bucket(self) -> Resource:
        days = self.settings.bucket_days
        ageing: dict[str, Any] = {
            "Id": "ageing",
            "Status": "Enabled",
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
            "NoncurrentVersionExpiration": {"NoncurrentDays": 30},
            "Transitions": [{"StorageClass": "STANDARD_IA", "TransitionInDays": 30}],
        }
        if days:
            ageing["ExpirationInDays"] = days
        blocked = ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")
        properties: dict[str, Any] = {"BucketName": self.settings.bucket} if self.settings.bucket else {}
        properties |= {
            "BucketEncryption": {
                "ServerSideEncryptionConfiguration": [{"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
            },
            "PublicAccessBlockConfiguration": dict.fromkeys(blocked, True),
            "OwnershipControls": {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]},
            "VersioningConfiguration": {"Status": "Enabled"},
            "LifecycleConfiguration": {"Rules": [ageing]},
        }
        kept = {"DeletionPolicy": "RetainExceptOnCreate", "UpdateReplacePolicy": "Retain"}
        return _skipping({"Type": "AWS::S3::Bucket", **kept, "Properties": properties}, "CKV_AWS_18")

    def _log(self) -> Resource:
        properties: dict[str, Any] = {"RetentionInDays": self.settings.log_days}
        if self.settings.function:
            properties["LogGroupName"] = f"/aws/lambda/{self.settings.function}"
        resource: Resource = {
            "Type": "AWS::Logs::LogGroup",
            "DeletionPolicy": "Delete",
            "UpdateReplacePolicy": "Delete",
        }
        return _skipping(resource | {"Properties": properties}, "CKV_AWS_158")

    def _role(self) -> Resource:
        principal = {"Service": "lambda.amazonaws.com"}
        trust = [{"Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole"}]
        policy = {"Version": "2012-10-17", "Statement": self._statements()}
        properties: dict[str, Any] = {"RoleName": self.settings.role} if self.settings.role else {}
        properties |= {
            "AssumeRolePolicyDocument": {"Version": "2012-10-17", "Statement": trust},
            "Policies": [{"PolicyName": "function", "PolicyDocument": policy}],
        }
        return {"Type": "AWS::IAM::Role", "Properties": properties}

    def _statements(self) -> list[dict[str, Any]]:
        layout = f"windows, {self.pipeline.layout}" if self.windowed else "records"
        table = self.old_table or _arn("Table")
        statements = [
            _allow("ReadStream", LAMBDA_READS, self._stream_arn()),
            _allow("WriteTable", WRITES[layout], table),
        ]
        if self.settings.stream_key:
            encrypted = {"StringEquals": {"kms:EncryptionContext:aws:kinesis:arn": self._stream_arn()}}
            read = _allow("DecryptStream", ("kms:Decrypt",), self.settings.stream_key)
            statements.append(read | {"Condition": encrypted})
        where = self.pipeline.quarantine
        kept = {"Fn::Sub": f"${{Bucket.Arn}}/{QUARANTINE_PREFIX}/*"}
        if not isinstance(where, Env) and where.startswith("s3://"):
            kept = {"Fn::Sub": f"arn:${{AWS::Partition}}:s3:::{where.removeprefix('s3://').rstrip('/')}/*"}
        if where != "none":
            statements.append(_allow("KeepRejected", ("s3:PutObject",), kept))
        given_up = {"Fn::Sub": f"${{Bucket.Arn}}/{DESTINATION_PREFIX}/*"}
        return [
            *statements,
            _allow("KeepGivenUpBatches", ("s3:PutObject",), given_up),
            _allow("FindBucketForGivenUpBatches", ("s3:ListBucket",), _arn("Bucket")),
            _allow("WriteLog", ("logs:CreateLogStream", "logs:PutLogEvents"), _arn("FunctionLog")),
        ]

    def _function(self) -> Resource:
        settings = self.settings
        properties: dict[str, Any] = {"FunctionName": settings.function} if settings.function else {}
        code = {"S3Bucket": {"Ref": "CodeBucket"}, "S3Key": {"Ref": "CodeKey"}}
        properties |= {
            "Description": f"{self.pipeline.plan.name}: {self._purpose()}",
            **({"CodeUri": ZIP} if self.sam else {"Code": code}),
            "Handler": handler_name(self.app),
            "Runtime": f"python{settings.python}",
            "Architectures": [settings.arch],
            "MemorySize": settings.memory_mb,
            "Timeout": settings.timeout_s,
            "Role": _arn("FunctionRole"),
            "LoggingConfig": {"LogFormat": "Text", "LogGroup": {"Ref": "FunctionLog"}},
            "Environment": {"Variables": self._variables()},
        }
        kind = "AWS::Serverless::Function" if self.sam else "AWS::Lambda::Function"
        checks = ("CKV_AWS_115", "CKV_AWS_116", "CKV_AWS_117", "CKV_AWS_173")
        return _skipping({"Type": kind, "Properties": properties}, *checks)

    def _variables(self) -> dict[str, Any]:
        """The environment: what the declaration names, then what is set beside it."""
        settings, pipeline = self.settings, self.pipeline
        variables: dict[str, Any] = {
            "POWERTOOLS_METRICS_NAMESPACE": METRICS_NAMESPACE,
            "POWERTOOLS_SERVICE_NAME": {"Ref": "AWS::StackName"},
        }
        if isinstance(pipeline.table, Env):
            variables[pipeline.table.name] = self._table_ref()
        if isinstance(pipeline.quarantine, Env):
            variables[pipeline.quarantine.name] = self._quarantine()
        if settings.fast_runtime:
            variables["AWS_LAMBDA_EXEC_WRAPPER"] = f"/var/task/{WRAPPER}"
        taken = variables.keys() & settings.environment.keys()
        if taken:
            msg = f"environment sets {', '.join(sorted(taken))}, which the stack sets itself: leave it out"
            raise DeployProblem(msg)
        return variables | settings.environment

    def _mapping(self) -> Resource:
        settings = self.settings
        properties: dict[str, Any] = {
            "EventSourceArn": self._stream_arn(),
            "FunctionName": {"Ref": "Function"},
            "StartingPosition": settings.starting_position,
            "BatchSize": settings.batch_size,
            "MaximumBatchingWindowInSeconds": settings.batching_window_s,
            "ParallelizationFactor": settings.parallelization,
            "MaximumRetryAttempts": settings.retries,
            "MaximumRecordAgeInSeconds": settings.record_age_s,
            "BisectBatchOnFunctionError": settings.bisect,
            "DestinationConfig": {"OnFailure": {"Destination": _arn("Bucket")}},
            "MetricsConfig": {"Metrics": ["EventCount"]},
        }
        if self.windowed:
            properties["TumblingWindowInSeconds"] = self.pipeline.plan.every_s
        else:
            properties["FunctionResponseTypes"] = ["ReportBatchItemFailures"]
        return {"Type": "AWS::Lambda::EventSourceMapping", "Properties": properties}

    # ── watching ────────────────────────────────────────────────────────────────────────────────────────────

    def _alarms(self) -> dict[str, Resource]:
        settings, function = self.settings, {"FunctionName": {"Ref": "Function"}}
        mapping = {"EventSourceMappingUUID": {"Ref": "Mapping"}}
        alarms = {
            "BehindAlarm": _alarm(
                f"What is read is older than {settings.iterator_age_s} s: the function does not keep up, or fails",
                _metric("AWS/Lambda", "IteratorAge", function, "Maximum"),
                settings.iterator_age_s * 1000,
                minutes=5,
            ),
            "ErrorsAlarm": _alarm(
                "Calls fail; Lambda repeats them, and the shard waits",
                _metric("AWS/Lambda", "Errors", function),
                0,
                periods=2,
            ),
            "ThrottlesAlarm": _alarm(
                "Lambda has no free concurrency for the function",
                _metric("AWS/Lambda", "Throttles", function),
                0,
                periods=2,
            ),
            "DurationAlarm": _alarm(
                "Calls come near the timeout: fewer records a call, or more memory",
                _metric("AWS/Lambda", "Duration", function, "Maximum"),
                settings.timeout_s * 800,
            ),
            "RejectedAlarm": self._rejected_alarm(),
            "ConflictAlarm": _alarm(
                "A flush overlaps what is stored: two functions on one table, or segments cut otherwise",
                self._own("ConflictingFlush"),
                0,
            ),
            "GivenUpAlarm": _alarm(
                "Lambda gave a batch up: its records are in the bucket and not in the totals",
                _metric("AWS/Lambda", "OnFailureDestinationDeliveredEventCount", mapping),
                0,
            ),
            "DroppedAlarm": _alarm(
                "Lambda dropped records that it could not even put into the bucket",
                _metric("AWS/Lambda", "DroppedEventCount", mapping),
                0,
            ),
            "TableThrottlesAlarm": _alarm(
                "DynamoDB throttles writes: a hot key, or the table's limit",
                _metric("AWS/DynamoDB", "WriteThrottleEvents", {"TableName": self._table_ref()}),
                0,
                periods=3,
            ),
        }
        if settings.alarm_topic:
            for alarm in alarms.values():
                alarm["Properties"]["AlarmActions"] = [settings.alarm_topic]
        return alarms

    def _own(self, name: str) -> Resource:
        return _metric(METRICS_NAMESPACE, name, {"service": {"Ref": "AWS::StackName"}})

    def _rejected_alarm(self) -> Resource:
        queries: list[dict[str, Any]] = [
            {
                "Id": "share",
                "Expression": "100 * (rejected + FILL(late, 0)) / received",  # late records are no part of Rejected
                "Label": "rejected percent",
                "ReturnData": True,
            }
        ]
        for name in ("Rejected", "Late", "Received"):
            metric = self._own(name)
            stat = {"Metric": {key: metric[key] for key in ("Namespace", "MetricName", "Dimensions")}}
            query = {"MetricStat": stat | {"Period": 300, "Stat": "Sum"}, "ReturnData": False}
            queries.append({"Id": name.lower(), **query})
        percent = self.settings.rejected_percent
        alarm = _alarm(f"More than {percent:g} % of the records are rejected or late", {"Metrics": queries}, percent)
        del alarm["Properties"]["Period"]
        return alarm

    def _dashboard(self) -> Resource:
        service = ["service", "${AWS::StackName}"]
        function = ["FunctionName", "${Function}"]
        own = METRICS_NAMESPACE
        graphs = [
            _graph(
                "Records", [[own, name, *service] for name in ("Received", "Clean", "Rejected", "Late", "Duplicates")]
            ),
            _graph("Rejected, by reason", [[own, _counted_as(reason), *service] for reason in Reason]),
            _graph("Windows settled", [[own, name, *service] for name in ("FlushedRows", "SkippedFlushes")]),
            _graph("Behind, ms", [["AWS/Lambda", "IteratorAge", *function]], "Maximum"),
            _graph("Calls", [["AWS/Lambda", name, *function] for name in ("Invocations", "Errors", "Throttles")]),
            _graph("Duration, ms", [["AWS/Lambda", "Duration", *function]], "Maximum"),
            _graph("Writes", [[own, name, *service] for name in ("ThrottledWrites", "RetryRounds")]),
            _graph("State, bytes", [[own, "StateBytes", *service]], "Maximum"),
        ]
        for place, graph in enumerate(graphs):
            graph |= {"x": place % 2 * 12, "y": place // 2 * 6, "width": 12, "height": 6}
        lines = ",\n".join("  " + json.dumps(graph) for graph in graphs)
        body = f'{{"widgets": [\n{lines}\n]}}'
        return {"Type": "AWS::CloudWatch::Dashboard", "Properties": {"DashboardBody": {"Fn::Sub": body}}}

    def _outputs(self) -> dict[str, Any]:
        values = {
            "StreamName": (self._stream_name(), "What producers put into"),
            "TableName": (self._table_ref(), "Where the totals are" if self.windowed else "Where the records are"),
            "FunctionName": ({"Ref": "Function"}, "The function"),
            "MappingId": ({"Ref": "Mapping"}, "The event source mapping from the stream to the function"),
            "LogGroup": ({"Ref": "FunctionLog"}, "The function's log"),
            "BucketName": ({"Ref": "Bucket"}, "Rejected records and batches that Lambda gave up"),
            "Quarantine": (self._quarantine(), "Where rejected records are, as windlass quarantine takes it"),
        }
        return {name: {"Description": text, "Value": value} for name, (value, text) in values.items()}


# ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────


def _is_arn(name: str | None) -> bool:
    return bool(name and name.startswith("arn:"))


def _name_in(text: str) -> str:
    """The name of a stream or table that is given by name or ARN."""
    return text.rpartition("/")[2] if _is_arn(text) else text


def _arn(resource: str) -> dict[str, Any]:
    return {"Fn::GetAtt": [resource, "Arn"]}


def _allow(sid: str, actions: tuple[str, ...], resource: Any) -> dict[str, Any]:
    return {"Sid": sid, "Effect": "Allow", "Action": list(actions), "Resource": resource}


def _bucket_policy() -> Resource:
    refused = {
        "Sid": "TlsOnly",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [_arn("Bucket"), {"Fn::Sub": "${Bucket.Arn}/*"}],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    document = {"Version": "2012-10-17", "Statement": [refused]}
    properties = {"Bucket": {"Ref": "Bucket"}, "PolicyDocument": document}
    return {"Type": "AWS::S3::BucketPolicy", "Properties": properties}


def _metric(namespace: str, name: str, dimensions: dict[str, Any], statistic: str = "Sum") -> dict[str, Any]:
    return {
        "Namespace": namespace,
        "MetricName": name,
        "Dimensions": [{"Name": key, "Value": value} for key, value in dimensions.items()],
        "Statistic": statistic,
    }


def _alarm(text: str, metric: dict[str, Any], above: float, *, minutes: int = 5, periods: int = 1) -> Resource:
    return {
        "Type": "AWS::CloudWatch::Alarm",
        "Properties": {
            "AlarmDescription": text,
            **metric,
            "Period": minutes * 60,
            "EvaluationPeriods": periods,
            "ComparisonOperator": "GreaterThanThreshold",
            "Threshold": above,
            "TreatMissingData": "notBreaching",
        },
    }


def _graph(title: str, metrics: list[list[str]], stat: str = "Sum") -> dict[str, Any]:
    properties = {"title": title, "region": "${AWS::Region}", "stat": stat, "period": 60, "metrics": metrics}
    return {"type": "metric", "properties": properties}


def _counted_as(reason: Reason) -> str:
    """The metric of a reason: late records have one of their own."""
    return "Late" if reason == "late" else f"Rejected_{reason}"


_NOT_DONE = {
    "CKV_AWS_18": "who reads rejected records is in CloudTrail; access logs would need a second bucket",
    "CKV_AWS_115": "one call per shard is the limit already; a reserve would only add a way to be throttled",
    "CKV_AWS_116": "a dead-letter queue is for asynchronous calls; the mapping has its own destination",
    "CKV_AWS_117": "it talks to AWS endpoints only; a network of its own adds nothing to reach",
    "CKV_AWS_119": "encrypted with the AWS managed key; a customer key is a choice of yours",
    "CKV_AWS_158": "encrypted by CloudWatch Logs; the log holds counts, never records",
    "CKV_AWS_173": "the variables are names, not secrets",
}


def _skipping(resource: Resource, *checks: str) -> Resource:
    """The resource with the reasons why these checks of checkov are not followed."""
    skip = [{"id": check, "comment": _NOT_DONE[check]} for check in checks]
    return {"Type": resource["Type"], "Metadata": {"checkov": {"skip": skip}}} | resource


_COMMENTS: dict[yaml.Path, str] = {
    ("Resources", "Table"): "The keys are the declaration's: change them there.",
    ("Resources", "Bucket"): "Rejected records (quarantine/), and batches that Lambda gave up (aws/lambda/).",
    ("Resources", "FunctionRole"): "Exactly what Lambda and the handler do, on exactly these resources.",
    ("Resources", "Mapping", "Properties", "ParallelizationFactor"): "With windows Lambda takes 1 only.",
    ("Resources", "Mapping", "Properties", "MaximumRetryAttempts"): (
        "-1 and -1: Lambda never discards a batch that could still be taken. Repeating it is harmless."
    ),
    ("Resources", "Mapping", "Properties", "DestinationConfig"): (
        "All the same: records that outlive the stream's retention leave their batch here, and an alarm."
    ),
    ("Resources", "Mapping", "Properties", "TumblingWindowInSeconds"): "The declaration's window.",
}
