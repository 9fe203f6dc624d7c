"""The handlers of the image on AWS Lambda, under the names that the stack (template.yaml) uses."""

from cosmicai.aws_lambda.infer import infer
from cosmicai.aws_lambda.initialize import initialize
from cosmicai.aws_lambda.summarize import summarize

__all__ = ["infer", "initialize", "summarize"]
