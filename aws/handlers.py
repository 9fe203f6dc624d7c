"""The functions of the image on AWS Lambda, by the names under which the stack (template.yaml) calls them."""

from cosmicai.cloud.conclude import summarize
from cosmicai.cloud.function import infer
from cosmicai.cloud.initialize import initialize

__all__ = ["infer", "initialize", "summarize"]
