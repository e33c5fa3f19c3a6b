"""Windlass: exact windowed totals from an Amazon Kinesis data stream into DynamoDB, on AWS Lambda.

Declare a record, a key, a window and totals; `Windows(...).handler` is the Lambda function.
"""

from msgspec import field

from windlass.core.schema import DeclarationError, Length, Range, Record
from windlass.core.totals import Count, Max, Mean, Min, Sum
from windlass.delivery import DeliveryPolicy
from windlass.pipelines import Records, Windows
from windlass.settings import env

__all__ = [
    "Count",
    "DeclarationError",
    "DeliveryPolicy",
    "Length",
    "Max",
    "Mean",
    "Min",
    "Range",
    "Record",
    "Records",
    "Sum",
    "Windows",
    "env",
    "field",
]
