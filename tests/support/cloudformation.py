"""An AWS account for deployments: moto with additions to its CloudFormation, Lambda and ECR, and small images.

Import `aws_fixture` into a test module; its tests then take the argument `aws`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import secrets
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.awslambda import urls
from moto.awslambda.responses import LambdaResponse
from moto.cloudformation.models import ChangeSet, Stack
from moto.cloudformation.parsing import ResourceMap, get_model_map
from moto.cloudformation.responses import CloudFormationResponse
from moto.ecr.models import Repository
from moto.iam.models import ManagedPolicy, iam_backends

from cosmicai.launchers.aws.clients import Account
from cosmicai.launchers.aws.stack import describe_stack
from cosmicai.storage.s3 import s3_client
from support.s3 import start_server, use_endpoint

DEPLOY, TEMPLATE, DEFINITION = (
    Path(__file__).parents[2] / "aws" / name for name in ("deploy.py", "template.yaml", "state_machine.asl.json")
)
SECRETS = ("marker-of-the-secret-key", "marker-of-the-session-token")
PASSWORD = "123456789012-auth-token"  # of moto's ECR
ACCOUNT, REGION = "123456789012", "us-east-1"
LIMITS = {"ConcurrentExecutions": 1000, "UnreservedConcurrentExecutions": 900}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StandIn:
    """A resource that has only a name."""

    def __init__(self, arn: str) -> None:
        self.physical_resource_id = arn

    @classmethod
    def create_from_cloudformation_json(cls, name: str, source: Any, account: str, region: str, **_: Any) -> StandIn:
        return cls(f"arn:aws:{source['Type'].split('::')[1].lower()}:{region}:{account}:{name}")

    @classmethod
    def update_from_cloudformation_json(cls, original_resource: StandIn, **_: Any) -> StandIn:
        return original_resource

    @staticmethod
    def has_cfn_attr(attribute: str) -> bool:
        return True

    def get_cfn_attribute(self, name: str) -> str:
        return f"{name}-of-{self.physical_resource_id.rpartition(':')[2]}"

    def delete(self, account: str, region: str) -> None: ...


# The resource types of the template that moto cannot create, or only in another form.
STAND_INS = {
    f"AWS::{name}": StandIn
    for name in (
        "EC2::SecurityGroup", "EC2::SecurityGroupIngress", "ECS::Cluster", "ECS::Service", "ECS::TaskDefinition",
        "ElasticLoadBalancingV2::Listener", "ElasticLoadBalancingV2::LoadBalancer",
        "ElasticLoadBalancingV2::TargetGroup", "Route53::RecordSet", "SecretsManager::Secret",
    )
}  # fmt: skip


@dataclass
class Aws:
    """A unique stack name, and the HOST of the registry of its repository."""

    name: str
    host: str = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"

    @property
    def account(self) -> Account:
        """The account of the environment."""
        return Account()

    @property
    def bucket(self) -> str:
        """The bucket that the stack creates."""
        return f"{self.name}-{ACCOUNT}-{REGION}"

    def stack(self) -> dict[str, Any] | None:
        """Return CloudFormation's description of the stack, None if it does not exist."""
        return describe_stack(self.account, self.name)

    def parameters(self) -> dict[str, str]:
        """Return the stack's parameters."""
        stack = self.stack()
        assert stack is not None
        return {one["ParameterKey"]: one["ParameterValue"] for one in stack["Parameters"]}

    def resources(self) -> set[str]:
        """Return kinds and names of all existing resources of this stack, regardless of CloudFormation."""
        listed = {
            "bucket": [one["Name"] for one in boto3.client("s3").list_buckets()["Buckets"]],
            "repository": [
                one["repositoryName"] for one in boto3.client("ecr").describe_repositories()["repositories"]
            ],
            "function": [one["FunctionName"] for one in boto3.client("lambda").list_functions()["Functions"]],
            "role": [one["RoleName"] for one in boto3.client("iam").list_roles()["Roles"]],
            "machine": [one["name"] for one in boto3.client("stepfunctions").list_state_machines()["stateMachines"]],
        }
        listed["policy"] = [one["PolicyName"] for one in boto3.client("iam").list_policies(Scope="Local")["Policies"]]
        listed["log"] = [one["logGroupName"] for one in boto3.client("logs").describe_log_groups()["logGroups"]]
        return {f"{kind} {name}" for kind, names in listed.items() for name in names if self.name in name}

    def register(self, archive: Path) -> None:
        """Add an image to moto's ECR, which does not learn of it from a registry."""
        boto3.client("ecr").put_image(
            repositoryName=self.name, imageManifest=manifest_of(archive).decode(), imageTag=secrets.token_hex(4),
            imageDigest=digest_of(manifest_of(archive)),
        )  # fmt: skip


@pytest.fixture(name="aws")
def aws_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    """Provide an account with recognizable secrets on a server with the patches below."""
    aws = Aws(f"t{secrets.token_hex(4)}")
    for changed, name, value in (
        (ChangeSet, "_parse_template", _parse_template),
        (ChangeSet, "diff", _diff),
        (ChangeSet, "apply", _apply),
        (Stack, "stack_parameters", property(_stack_parameters)),
        (Stack, "parameter_list", property(_parameter_list)),
        (Stack, "stack_resources", property(_stack_resources)),
        # AWS creates a change set without changes, which then fails.
        (CloudFormationResponse, "_validate_different_update", lambda *arguments: None),
        (Repository, "get_cfn_attribute", _repository_attribute(aws)),
        (ManagedPolicy, "delete", _delete_policy),
    ):
        monkeypatch.setattr(changed, name, value, raising=name != "delete")
    for kind, made in STAND_INS.items():
        monkeypatch.setitem(get_model_map(), kind, made)
    use_endpoint(monkeypatch, _server_url())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS[0])
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRETS[1])
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    yield aws
    s3_client.cache_clear()


def make_archive(path: Path, architecture: str = "amd64", content: str = "hello", commit: str = COMMIT) -> str:
    """Write an image of one file as an OCI archive, and return the digest of its manifest."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as layer:
        _add(layer, "hello", content.encode())
    packed = gzip.compress(plain.getvalue(), mtime=0)
    labels = {"org.opencontainers.image.revision": commit, "cosmicai.variant": "cpu"}
    config = {
        "architecture": architecture, "os": "linux", "config": {"Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(plain.getvalue())]},
    }  # fmt: skip
    kind = "application/vnd.oci.image"
    blobs = {"config.v1+json": json.dumps(config).encode(), "layer.v1.tar+gzip": packed}
    of_config, of_layer = (
        {"mediaType": f"{kind}.{name}", "digest": digest_of(blob), "size": len(blob)} for name, blob in blobs.items()
    )
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": f"{kind}.manifest.v1+json", "config": of_config, "layers": [of_layer]}
    ).encode()
    entry: dict[str, Any] = {
        "mediaType": f"{kind}.manifest.v1+json",
        "digest": digest_of(manifest),
        "size": len(manifest),
    }
    with tarfile.open(path, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        _add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
        for blob in (*blobs.values(), manifest):
            _add(archive, f"blobs/{digest_of(blob).replace(':', '/')}", blob)
    return entry["digest"]


def manifest_of(archive: Path) -> bytes:
    """Return the bytes of an archive's manifest."""
    with tarfile.open(archive) as tar:
        [entry] = json.load(tar.extractfile("index.json"))["manifests"]  # type: ignore[arg-type]
        return tar.extractfile(f"blobs/{entry['digest'].replace(':', '/')}").read()  # type: ignore[union-attr]


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def digest_of(data: bytes) -> str:
    """Return the digest of a part of an image."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@cache
def _server_url() -> str:
    """Start a server for this module that knows Lambda's limits, and return its address."""
    urls.url_paths[r"{0}/2016-08-19/account-settings/?$"] = LambdaResponse.dispatch
    LambdaResponse.get_account_settings = lambda self: json.dumps({"AccountLimit": LIMITS, "AccountUsage": {}})  # type: ignore[attr-defined]
    return start_server()


_parsed = ChangeSet._parse_template


def _parse_template(self: ChangeSet) -> None:
    """Parse without the resources whose conditions are false."""
    _parsed(self)
    stack = self.stack
    names = ResourceMap(
        self.stack_id, stack.name, self.parameters, {}, stack.region_name, stack.account_id, self.template_dict, None
    )
    names.load()
    self.template_dict["Resources"] = {
        name: resource
        for name, resource in self.template_dict["Resources"].items()
        if "Condition" not in resource or names.lazy_condition_map[resource["Condition"]]
    }


def _diff(self: ChangeSet) -> list[Any]:
    """Include resources that only a parameter changes."""
    from moto.cloudformation.models import Change

    before = self.stack.resource_map
    known = {**before._resource_json_map, **self.template_dict["Resources"]}
    named = before.build_resource_diff(self.template_dict, self.parameters)
    return [Change(action, name, known[name]["Type"]) for action, names in named.items() for name in names]


def _apply(self: ChangeSet) -> None:
    """Apply the new parameters, tags and outputs, and drop removed resources."""
    stack = self.stack
    stack.resource_map.update(self.template_dict, self.parameters)
    made = stack.resource_map._parsed_resources
    for name in [name for name, one in made.items() if hasattr(one, "logical_resource_id")]:
        if name not in self.template_dict["Resources"]:
            del made[name]
    stack.template, stack.template_dict, stack.parameters = self.template, self.template_dict, self.parameters
    stack.tags, stack.output_map = self.tags, stack._create_output_map()  # type: ignore[assignment]


def _stack_parameters(self: Stack) -> dict[str, Any]:
    """Return parameters with lists as text."""
    return {
        name: ",".join(value) if isinstance(value, list) else value
        for name, value in self.resource_map.resolved_parameters.items()
    }


def _parameter_list(self: Stack) -> list[dict[str, Any]]:
    return [{"ParameterKey": name, "ParameterValue": value} for name, value in _stack_parameters(self).items()]


def _stack_resources(self: Stack) -> list[Any]:
    """Return the resources without those that moto cannot create."""
    return [one for one in self.resource_map._parsed_resources.values() if hasattr(one, "logical_resource_id")]


def _delete_policy(self: ManagedPolicy, account_id: str, region_name: str) -> None:
    iam_backends[account_id]["aws"].delete_policy(self.arn)


def _repository_attribute(aws: Aws) -> Callable[[Repository, str], str]:
    """Return a patch that puts the registry of the test into the repository's address."""
    original = Repository.get_cfn_attribute
    return lambda self, name: f"{aws.host}/{self.name}" if name == "RepositoryUri" else original(self, name)
