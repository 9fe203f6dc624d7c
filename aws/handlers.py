"""The functions of the image on AWS Lambda, by the names under which the stack (template.yaml) calls them."""

from cosmicai.aws_lambda.infer import infer
from cosmicai.aws_lambda.initialize import initialize
from cosmicai.aws_lambda.summarize import summarize

__all__ = ["infer", "initialize", "summarize"]
