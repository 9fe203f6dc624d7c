"""The stack of aws/template.yaml: cfn-lint, the permissions that its policies grant, and its resources."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import boto3
import pytest
from cfnlint.api import lint, lint_file
from cfnlint.decode import cfn_yaml

from support.s3 import server_url, use_endpoint

AWS = Path(__file__).parents[3] / "aws"
TEMPLATE, DEFINITION = AWS / "template.yaml", AWS / "state_machine.asl.json"
SOURCE = json.loads(json.dumps(cfn_yaml.load(str(TEMPLATE))))  # with its short forms (!Ref) expanded
REGION, ACCOUNT = "us-east-1", "123456789012"
DIGEST = f"sha256:{'0123456789abcdef' * 4}"
KEY = "deployments/state_machine-0123456789abcdef.asl.json"
IMAGE = {"ImageDigest": DIGEST, "DefinitionKey": KEY}
BUCKET = f"cosmicai-{ACCOUNT}-{REGION}"
DATA = ("surveys", "10MB", "25MB", "50MB", "75MB", "100MB")
WEIGHTS = ("weights", "Anomaly Detection")
RUNS = ("runs", "result-partition-*")
HIDDEN_RUNS = (".cosmicai/runs", ".cosmicai/result-partition-*")
STATES = f"arn:aws:states:{REGION}:{ACCOUNT}"
FUNCTIONS = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function"
LOGS = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/lambda"
ECS_LOGS = LOGS.replace("/aws/lambda", "/ecs")
# ARNs that may end in a wildcard: the objects in one folder of a bucket (whose name may end in one too), the executions
# of one state machine and the streams of one log group.
NARROW = (
    r"arn:aws:s3:::\$\{aws:PrincipalTag/\w+\}/[^*/][^*]*\*?/\*",
    rf"{STATES}:execution:cosmicai[:/]\*",
    rf"{LOGS}/cosmicai-[a-z]+:\*",
    rf"{ECS_LOGS}/cosmicai-rendezvous:\*",
)
# Permissions that AWS grants for everything or not at all: these statements of these roles only.
ACCOUNT_WIDE = {
    "InitializeRole": {
        "Sid": "ReadAccountLimit",
        "Effect": "Allow",
        "Action": "lambda:GetAccountSettings",
        "Resource": "*",
    },
    "RendezvousRole": {
        "Sid": "SignInToRegistry",
        "Effect": "Allow",
        "Action": "ecr:GetAuthorizationToken",
        "Resource": "*",
    },
}
NO_VALUE = object()
KEY_ARN = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/01234567-89ab-cdef-0123-456789abcdef"
VPC, SUBNETS = "vpc-0123456789abcdef0", ("subnet-0123456789abcdef0", "subnet-0123456789abcdef1")
RENDEZVOUS = {"RendezvousVpc": VPC, "RendezvousSubnets": ",".join(SUBNETS), "RendezvousCidr": "192.0.2.0/24"}
RECORD = {"RendezvousZone": "Z0123456789ABC", "RendezvousName": "rendezvous.example.org"}
SECRET = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:RendezvousSecret-0123456789ab-AbCdEf"
BALANCER = "cosmic-Rende-0123456789abcdef.elb.us-east-1.amazonaws.com"
FUNCTIONS_OF_A_RUN = ("Initialize", "Infer", "Summarize")
# All resources of a stack with an image and without a rendezvous.
WITHOUT_RENDEZVOUS = {
    "Bucket", "BucketPolicy", "Repository", "InputsPolicy", "RunsPolicy", "StateMachine", "StateMachineRole",
    *(f"{name}{kind}" for name in FUNCTIONS_OF_A_RUN for kind in ("Role", "Logs", "Function")),
}  # fmt: skip


def stack(template: dict[str, Any] = SOURCE, /, **given: str) -> dict[str, dict[str, Any]]:
    """Return the resources of a stack with these parameters, with all functions of the template evaluated."""
    names = reference_values(template, given)
    return {
        name: resolve({"Type": resource["Type"], **resource["Properties"]}, names)
        for name, resource in template["Resources"].items()
        if "Condition" not in resource or names[resource["Condition"]]
    }


def outputs(**given: str) -> dict[str, str]:
    """Return the outputs of a stack with these parameters."""
    names = reference_values(SOURCE, given)
    return {
        name: resolve(output["Value"], names)
        for name, output in SOURCE["Outputs"].items()
        if "Condition" not in output or names[output["Condition"]]
    }


def reference_values(template: dict[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of all references in a stack with these parameters; resources have CloudFormation's names."""
    names: dict[str, Any] = {"AWS::Region": REGION, "AWS::AccountId": ACCOUNT, "AWS::Partition": "aws"}
    for name, parameter in template["Parameters"].items():
        value = str(given.get(name, parameter["Default"]))
        names[name] = value.split(",") if parameter["Type"] == "CommaDelimitedList" else value
    bucket = f"{names['Prefix']}-{ACCOUNT}-{REGION}"
    names |= {"AWS::NoValue": NO_VALUE, "Bucket": bucket, "Bucket.Arn": f"arn:aws:s3:::{bucket}"}
    names["Repository.RepositoryUri"] = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/{names['Prefix']}"
    names["Repository.Arn"] = f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/{names['Prefix']}"
    names |= {name: name for name in ("InputsPolicy", "RunsPolicy", "KeyPolicy", "RendezvousPolicy", "StateMachine")}
    names |= {f"{name}Function": f"{names['Prefix']}-{name.lower()}" for name in FUNCTIONS_OF_A_RUN}
    names |= {f"Rendezvous{name}": f"Rendezvous{name}" for name in ("Balancer", "Cluster", "Targets", "Task")}
    names |= {f"Rendezvous{name}Group.GroupId": f"sg-of-the-{name.lower()}" for name in ("Balancer", "Server")}
    names |= {"RendezvousSecret": SECRET, "RendezvousLogs": f"/ecs/{names['Prefix']}-rendezvous"}
    names |= {"RendezvousBalancer.DNSName": BALANCER, "RendezvousBalancer.CanonicalHostedZoneID": "ZOFTHEBALANCER"}
    names["RendezvousRole.Arn"] = f"arn:aws:iam::{ACCOUNT}:role/RendezvousRole"
    for name in ("Initialize", "Infer", "Summarize", "StateMachine"):
        function = f"{names['Prefix']}-{name.lower()}"
        names |= {f"{name}Logs": f"/aws/lambda/{function}", f"{name}Function.Arn": f"{FUNCTIONS}:{function}"}
        names[f"{name}Role.Arn"] = f"arn:aws:iam::{ACCOUNT}:role/{name}Role"
    for name, condition in template["Conditions"].items():
        names[name] = resolve(condition, names)
    return names


def resolve(node: Any, names: Mapping[str, Any]) -> Any:
    """Return a part of a template with its functions evaluated."""
    if isinstance(node, list):
        return [value for own in node if (value := resolve(own, names)) is not NO_VALUE]
    if not isinstance(node, dict):
        return node
    if len(node) == 1 and (function := EVALUATE.get(next(iter(node)))):
        return function(next(iter(node.values())), names)
    return {key: value for key, own in node.items() if (value := resolve(own, names)) is not NO_VALUE}


EVALUATE: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "Ref": lambda node, names: names[node],
    "Fn::GetAtt": lambda node, names: names[".".join(node)],
    "Fn::Sub": lambda node, names: re.sub(r"\$\{(.+?)\}", lambda found: names[found[1]], node),
    "Fn::Join": lambda node, names: node[0].join(resolve(node[1], names)),
    "Fn::Split": lambda node, names: resolve(node[1], names).split(node[0]),
    "Fn::If": lambda node, names: resolve(node[1] if names[node[0]] else node[2], names),
    "Fn::Equals": lambda node, names: str(resolve(node[0], names)) == str(resolve(node[1], names)),
    "Fn::Not": lambda node, names: not resolve(node[0], names),
    "Fn::And": lambda node, names: all(resolve(own, names) for own in node),
    "Fn::Or": lambda node, names: any(resolve(own, names) for own in node),
    "Fn::Contains": lambda node, names: resolve(node[1], names) in resolve(node[0], names),
    "Condition": lambda node, names: names[node],
}


def policies(resource: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all policies of a resource."""
    own = [resource.get(key) for key in ("PolicyDocument", "AssumeRolePolicyDocument", "RepositoryPolicyText")]
    return [policy for policy in own if policy] + [policy["PolicyDocument"] for policy in resource.get("Policies", [])]


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def find_wildcards(resources: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the wildcards that policies allow, except NARROW and ACCOUNT_WIDE: resource and wildcard."""
    for name, resource in resources.items():
        for statement in (own for policy in policies(resource) for own in policy["Statement"]):
            if statement["Effect"] == "Deny":  # a wildcard makes it stricter
                continue
            if statement == ACCOUNT_WIDE.get(name):
                continue
            yield from ((name, key) for key in statement if key.startswith("Not"))
            arns = as_list(statement.get("Resource", []))
            values = [arn for arn in arns if not any(re.fullmatch(pattern, arn) for pattern in NARROW)]
            principal = statement.get("Principal", {})
            of_kinds = principal.values() if isinstance(principal, dict) else [principal]
            values += as_list(statement.get("Action", [])) + [own for kind in of_kinds for own in as_list(kind)]
            yield from ((name, value) for value in values if "*" in value or "?" in value)


Grant = tuple[str, str, tuple[str, ...]]


def permissions(resources: dict[str, dict[str, Any]], role: str) -> set[Grant]:
    """Return the permissions of a role: action, resource, and the prefixes that may be listed."""
    attached = [resources[name]["PolicyDocument"] for name in resources[role].get("ManagedPolicyArns", [])]
    own = [policy["PolicyDocument"] for policy in resources[role]["Policies"]]
    tags = {tag["Key"]: tag["Value"] for tag in resources[role]["Tags"]}
    text = re.sub(r"\$\{aws:PrincipalTag/(\w+)\}", lambda found: tags[found[1]], json.dumps(attached + own))
    grants: list[Grant] = []
    for statement in (one for policy in json.loads(text) for one in policy["Statement"]):
        assert statement.keys() - {"Condition"} == {"Sid", "Effect", "Action", "Resource"}
        condition = statement.get("Condition", {"StringLike": {"s3:prefix": []}})
        assert list(condition) == ["StringLike"]
        assert list(condition["StringLike"]) == ["s3:prefix"]
        prefixes = tuple(condition["StringLike"]["s3:prefix"])
        assert bool(prefixes) is (statement["Action"] == "s3:ListBucket")
        grants += [(a, r, prefixes) for a in as_list(statement["Action"]) for r in as_list(statement["Resource"])]
    return set(grants)


def object_grants(bucket: str, folders: tuple[str, ...], *actions: str) -> set[Grant]:
    return {(f"s3:{action}", f"arn:aws:s3:::{bucket}/{folder}/*", ()) for folder in folders for action in actions}


def list_grants(bucket: str, folders: tuple[str, ...]) -> set[Grant]:
    return {("s3:ListBucket", f"arn:aws:s3:::{bucket}", tuple(f"{folder}/*" for folder in folders))}


def log_grants(name: str, groups: str = LOGS) -> set[Grant]:
    return {(f"logs:{action}", f"{groups}/{name}:*", ()) for action in ("CreateLogStream", "PutLogEvents")}


def run_grants(bucket: str) -> set[Grant]:
    actions = ("GetObject", "PutObject", "AbortMultipartUpload")
    return list_grants(bucket, RUNS + HIDDEN_RUNS) | object_grants(bucket, RUNS + HIDDEN_RUNS, *actions)


def test_cfn_lint_finds_nothing() -> None:
    assert lint_file(TEMPLATE) == []


def test_cfn_lint_finds_nothing_in_the_state_machine() -> None:
    """It reads a definition only within the template."""

    def found(definition: str) -> list[str]:
        template = deepcopy(SOURCE)
        properties = template["Resources"]["StateMachine"]["Properties"]
        del properties["DefinitionS3Location"], template["Rules"]
        del template["Parameters"]["DefinitionKey"]
        properties["DefinitionString"] = definition
        return [match.rule.id for match in lint(json.dumps(template))]

    assert found(DEFINITION.read_text()) == []
    assert found(DEFINITION.read_text().replace('"Type": "Map"', '"Type": "Mapp"')) == ["E3601"]


def test_the_template_fits_into_a_request() -> None:
    assert len(TEMPLATE.read_bytes()) <= 51200


def test_no_policy_allows_a_wildcard() -> None:
    assert list(find_wildcards(stack(**IMAGE))) == []
    assert list(find_wildcards(stack(**IMAGE, BucketName="old", DataBucketName="other"))) == []
    assert list(find_wildcards(stack())) == []
    assert list(find_wildcards(stack(**IMAGE, **RENDEZVOUS, **RECORD, KmsKeyArn=KEY_ARN))) == []


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"Resource": "*"}, "*"),
        ({"Resource": ["arn:aws:s3:::${aws:PrincipalTag/Bucket}/*"]}, "arn:aws:s3:::${aws:PrincipalTag/Bucket}/*"),
        ({"Resource": "arn:aws:s3:::*/runs/*"}, "arn:aws:s3:::*/runs/*"),
        ({"Resource": f"{STATES}:execution:*"}, f"{STATES}:execution:*"),
        ({"Resource": f"{LOGS}/*"}, f"{LOGS}/*"),
        ({"Action": "*"}, "*"),
        ({"Action": ["s3:GetObject", "s3:*"]}, "s3:*"),
        ({"Action": "s3:Get?bject"}, "s3:Get?bject"),
        ({"NotResource": "arn:aws:s3:::mine"}, "NotResource"),
        ({"Principal": "*"}, "*"),
        ({"Principal": {"AWS": ["*"]}}, "*"),
    ],
)
@pytest.mark.parametrize("where", ["InferRole", "RunsPolicy", "RendezvousRole", "RendezvousPolicy"])
def test_a_planted_wildcard_is_found(where: str, changed: dict[str, Any], found: str) -> None:
    template = deepcopy(SOURCE)
    properties = template["Resources"][where]["Properties"]
    statement = {"Sid": "Planted", "Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::mine/one"}
    document = properties["Policies"][0]["PolicyDocument"] if "Policies" in properties else properties["PolicyDocument"]
    document["Statement"].append(statement)
    assert list(find_wildcards(stack(template, **IMAGE, **RENDEZVOUS))) == []
    statement |= changed
    assert list(find_wildcards(stack(template, **IMAGE, **RENDEZVOUS))) == [(where, found)]


def test_only_the_rendezvous_may_sign_in_to_all_registries() -> None:
    template = deepcopy(SOURCE)
    [policy] = template["Resources"]["InferRole"]["Properties"]["Policies"]
    policy["PolicyDocument"]["Statement"].append(ACCOUNT_WIDE["RendezvousRole"])
    assert list(find_wildcards(stack(template, **IMAGE))) == [("InferRole", "*")]
    [policy] = template["Resources"]["RendezvousRole"]["Properties"]["Policies"]
    [statement] = [own for own in policy["PolicyDocument"]["Statement"] if own["Sid"] == "SignInToRegistry"]
    statement["Action"] = [statement["Action"], "ecr:BatchGetImage"]
    assert ("RendezvousRole", "*") in list(find_wildcards(stack(template, **IMAGE, **RENDEZVOUS)))


def test_prefixes_become_exactly_these_arns() -> None:
    role = permissions(stack(**IMAGE), "StateMachineRole")
    assert sorted(arn for action, arn, _ in role if action == "s3:GetObject" and "tmp/maps" not in arn) == [
        "arn:aws:s3:::cosmicai-123456789012-us-east-1/result-partition-*/*",
        "arn:aws:s3:::cosmicai-123456789012-us-east-1/runs/*",
    ]
    role = permissions(
        stack(**IMAGE, BucketName="b", ResultPrefixes="results", WeightsPrefixes="Anomaly Detection"), "InferRole"
    )
    assert sorted(arn for action, arn, _ in role if action == "s3:GetObject") == [
        "arn:aws:s3:::b/.cosmicai/results/*", "arn:aws:s3:::b/100MB/*", "arn:aws:s3:::b/10MB/*",
        "arn:aws:s3:::b/25MB/*", "arn:aws:s3:::b/50MB/*",
        "arn:aws:s3:::b/75MB/*", "arn:aws:s3:::b/Anomaly Detection/*", "arn:aws:s3:::b/results/*",
        "arn:aws:s3:::b/surveys/*",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "bucket", "data_bucket"),
    [
        ({}, BUCKET, BUCKET),
        ({"DataBucketName": "other"}, BUCKET, "other"),
        ({"BucketName": "old"}, "old", "old"),
        ({"BucketName": "old", "DataBucketName": "other"}, "old", "other"),
    ],
)
def test_roles_grant_exactly_this(given: dict[str, str], bucket: str, data_bucket: str) -> None:
    resources = stack(**IMAGE, **given)
    inputs = object_grants(bucket, DATA + WEIGHTS, "GetObject") | object_grants(data_bucket, DATA, "GetObject")
    inputs |= list_grants(bucket, WEIGHTS)
    assert permissions(resources, "InitializeRole") == (
        inputs
        | run_grants(bucket)
        | list_grants(bucket, DATA)
        | list_grants(data_bucket, DATA)
        | {("s3:PutObject", f"arn:aws:s3:::{bucket}/payload.json", ()), ("lambda:GetAccountSettings", "*", ())}
        | log_grants("cosmicai-initialize")
    )
    assert permissions(resources, "InferRole") == (
        inputs
        | run_grants(bucket)
        | object_grants(bucket, RUNS + HIDDEN_RUNS, "DeleteObject")
        | log_grants("cosmicai-infer")
    )
    assert permissions(resources, "SummarizeRole") == inputs | run_grants(bucket) | log_grants("cosmicai-summarize")
    pieces = ("GetObject", "PutObject", "ListMultipartUploadParts", "AbortMultipartUpload")
    assert permissions(resources, "StateMachineRole") == (
        object_grants(bucket, RUNS, "GetObject")
        | object_grants(bucket, ("tmp/maps",), *pieces)
        | {("lambda:InvokeFunction", f"{FUNCTIONS}:cosmicai-{n}", ()) for n in ("initialize", "infer", "summarize")}
        | {
            ("states:StartExecution", f"{STATES}:stateMachine:cosmicai", ()),
            ("states:DescribeExecution", f"{STATES}:execution:cosmicai:*", ()),
            ("states:DescribeExecution", f"{STATES}:execution:cosmicai/*", ()),
            ("states:StopExecution", f"{STATES}:execution:cosmicai:*", ()),
            ("states:StopExecution", f"{STATES}:execution:cosmicai/*", ()),
            ("states:RedriveExecution", f"{STATES}:execution:cosmicai/*", ()),
        }
    )


def test_only_lambda_and_step_functions_of_this_account_use_the_roles() -> None:
    resources = stack(**IMAGE)
    by_lambda = {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
    for name in ("InitializeRole", "InferRole", "SummarizeRole"):
        assert resources[name]["AssumeRolePolicyDocument"]["Statement"] == [by_lambda]
    assert resources["StateMachineRole"]["AssumeRolePolicyDocument"]["Statement"] == [
        by_lambda
        | {
            "Principal": {"Service": "states.amazonaws.com"},
            "Condition": {"StringEquals": {"aws:SourceAccount": ACCOUNT}},
        }
    ]


def test_storage_is_private_encrypted_and_cleaned_up() -> None:
    resources = stack(Prefix="mine")
    bucket = f"mine-{ACCOUNT}-{REGION}"
    assert resources["Bucket"] == {
        "Type": "AWS::S3::Bucket",
        "BucketName": bucket,
        "BucketEncryption": {
            "ServerSideEncryptionConfiguration": [{"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
        },
        "OwnershipControls": {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]},
        "PublicAccessBlockConfiguration": dict.fromkeys(
            ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"), True
        ),
        "LifecycleConfiguration": {
            "Rules": [
                {"Id": "temporary", "Status": "Enabled", "Prefix": "tmp/", "ExpirationInDays": 30},
                {
                    "Id": "incomplete-uploads",
                    "Status": "Enabled",
                    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
                },
            ]
        },
        "Tags": [{"Key": "application", "Value": "cosmicai"}, {"Key": "stack", "Value": "mine"}],
    }
    assert resources["BucketPolicy"]["PolicyDocument"]["Statement"] == [
        {
            "Sid": "OnlyEncryptedConnections",
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:*",
            "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }
    ]
    assert resources["Repository"] == {
        "Type": "AWS::ECR::Repository",
        "RepositoryName": "mine",
        "EmptyOnDelete": True,
        "ImageTagMutability": "IMMUTABLE",
        "ImageScanningConfiguration": {"ScanOnPush": True},
        "RepositoryPolicyText": {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Sid": "LambdaPulls",
                    "Effect": "Allow",
                    "Principal": {"Service": "lambda.amazonaws.com"},
                    "Action": ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
                    "Condition": {"StringLike": {"aws:SourceArn": f"{FUNCTIONS}:mine-*"}},
                }
            ],
        },
        "Tags": [{"Key": "application", "Value": "cosmicai"}, {"Key": "stack", "Value": "mine"}],
    }


def test_options_of_the_bucket_change_nothing_else_of_it() -> None:
    before, other = stack(), {"Versioning": "Enabled", "AccessLogBucketName": "logs", "KmsKeyArn": KEY_ARN}
    after = stack(**other)
    assert {name for name in after if before[name] != after[name]} == {"Bucket"}
    changed = {key: value for key, value in after["Bucket"].items() if before["Bucket"].get(key) != value}
    rules = changed.pop("LifecycleConfiguration")["Rules"]
    assert changed == {
        "BucketEncryption": {
            "ServerSideEncryptionConfiguration": [
                {
                    "ServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": KEY_ARN},
                    "BucketKeyEnabled": True,
                }
            ]
        },
        "VersioningConfiguration": {"Status": "Enabled"},
        "LoggingConfiguration": {"DestinationBucketName": "logs", "LogFilePrefix": "cosmicai/"},
    }
    assert rules == [
        *before["Bucket"]["LifecycleConfiguration"]["Rules"],
        {
            "Id": "versions",
            "Status": "Enabled",
            "NoncurrentVersionExpiration": {"NoncurrentDays": 30},
            "ExpiredObjectDeleteMarker": True,
        },
    ]
    suspended = stack(**other | {"Versioning": "Suspended"})["Bucket"]
    assert suspended == after["Bucket"] | {"VersioningConfiguration": {"Status": "Suspended"}}


@pytest.mark.parametrize("bucket", ["", "old"])
def test_a_key_may_be_used_by_those_who_use_objects_and_through_s3_alone(bucket: str) -> None:
    before, after = (stack(**IMAGE, **RENDEZVOUS, BucketName=bucket, KmsKeyArn=key) for key in ("", KEY_ARN))
    [statement] = after["KeyPolicy"]["PolicyDocument"]["Statement"]
    assert statement == {
        "Sid": "UseKeyOfBucket",
        "Effect": "Allow",
        "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
        "Resource": KEY_ARN,
        "Condition": {"StringEquals": {"kms:ViaService": f"s3.{REGION}.amazonaws.com"}},
    }
    for name in [name for name in before if name.endswith("Role")]:
        attached = before[name].get("ManagedPolicyArns", [])
        added = [] if name == "RendezvousRole" else ["KeyPolicy"]
        assert after[name].get("ManagedPolicyArns", []) == attached + added, name


@pytest.mark.parametrize("given", [{"Versioning": "Enabled"}, {"AccessLogBucketName": "logs"}])
def test_options_of_the_own_bucket_are_refused_for_an_existing_one(given: dict[str, str]) -> None:
    assert violated_rules(**given) == violated_rules(BucketName="old", KmsKeyArn=KEY_ARN) == []
    assert violated_rules(**given, BucketName="old") == [
        "Versioning and AccessLogBucketName are for the bucket that the stack creates; set them on the existing bucket "
        "itself."
    ]


@pytest.mark.parametrize(
    ("name", "memory", "timeout", "ephemeral"),
    [("initialize", 3008, 900, 512), ("infer", "4096", "60", "1024"), ("summarize", 3008, 900, 512)],
)
def test_functions_are_the_image_by_its_digest(name: str, memory: Any, timeout: Any, ephemeral: Any) -> None:
    given = {"Prefix": "mine", "Architecture": "arm64", "MemoryMB": "4096", "TimeoutSeconds": "60", "Commit": "2244d5b"}
    given |= {"EphemeralStorageMB": "1024", "MaxConcurrency": "7", "DefaultWeights": "s3://b/weights/w.safetensors"}
    function = stack(**IMAGE, **given)[f"{name.capitalize()}Function"]
    del function["Description"]
    assert function == {
        "Type": "AWS::Lambda::Function",
        "FunctionName": f"mine-{name}",
        "PackageType": "Image",
        "Code": {"ImageUri": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/mine@{DIGEST}"},
        "ImageConfig": {"Command": [f"handlers.{name}"]},
        "Architectures": ["arm64"],
        "Role": f"arn:aws:iam::{ACCOUNT}:role/{name.capitalize()}Role",
        "MemorySize": memory,
        "Timeout": timeout,
        "EphemeralStorage": {"Size": ephemeral},
        "LoggingConfig": {"LogFormat": "Text"},
        "Environment": {
            "Variables": {
                "COSMICAI_IMAGE_DIGEST": DIGEST,
                "COSMICAI_WEIGHTS": "s3://b/weights/w.safetensors",
                "COSMICAI_MAX_CONCURRENCY": "7",
                "COSMICAI_EPHEMERAL_MB": str(ephemeral),
                **({} if name == "summarize" else {"COSMICAI_RENDEZVOUS": "", "FMI_SECRET_ARN": ""}),
            }
        },
        "Tags": [
            {"Key": "application", "Value": "cosmicai"},
            {"Key": "stack", "Value": "mine"},
            {"Key": "commit", "Value": "2244d5b"},
        ],
    }


def test_concurrency_is_reserved_only_on_request() -> None:
    def reserved(**given: str) -> list[str | None]:
        resources = stack(**IMAGE, **given)
        return [resources[f"{name}Function"].get("ReservedConcurrentExecutions") for name in FUNCTIONS_OF_A_RUN]

    assert reserved() == [None, None, None]
    assert reserved(ReservedConcurrency="50") == [None, "50", None]
    assert reserved(ReservedRunConcurrency="3") == ["3", None, "3"]
    assert reserved(ReservedConcurrency="50", ReservedRunConcurrency="3") == ["3", "50", "3"]


def test_logs_are_created_before_the_functions_and_expire() -> None:
    resources = stack(**IMAGE, LogDays="7")
    for name in ("Initialize", "Infer", "Summarize"):
        logs = resources[f"{name}Logs"]
        assert (logs["LogGroupName"], logs["RetentionInDays"]) == (f"/aws/lambda/cosmicai-{name.lower()}", "7")
        assert SOURCE["Resources"][f"{name}Function"]["DependsOn"] == f"{name}Logs"


def test_the_definition_of_the_state_machine_gets_all_its_substitutions() -> None:
    machine = stack(**IMAGE, BucketName="old")["StateMachine"]
    assert machine["DefinitionS3Location"] == {"Bucket": "old", "Key": KEY}
    assert machine["DefinitionSubstitutions"] == {
        "InitializeFunction": f"{FUNCTIONS}:cosmicai-initialize",
        "InferFunction": f"{FUNCTIONS}:cosmicai-infer",
        "SummarizeFunction": f"{FUNCTIONS}:cosmicai-summarize",
        "Bucket": "old",
    }
    assert set(re.findall(r"\$\{(\w+)\}", DEFINITION.read_text())) == set(machine["DefinitionSubstitutions"])


def test_all_names_begin_with_the_prefix() -> None:
    keys = {"BucketName", "RepositoryName", "ManagedPolicyName", "RoleName", "LogGroupName", "FunctionName"}
    keys |= {"StateMachineName", "ClusterName", "Family"}
    named = {
        name: [re.sub("^/(aws/lambda|ecs)/", "", resource[key]) for key in keys if key in resource]
        for name, resource in stack(**IMAGE, **RENDEZVOUS, Prefix="mine").items()
    }
    nameless = {name for name, names in named.items() if not names}
    assert nameless == {
        "BucketPolicy", "RendezvousSecret", "RendezvousBalancerGroup", "RendezvousServerGroup",
        "RendezvousServerIngress", "RendezvousBalancer", "RendezvousTargets", "RendezvousListener", "RendezvousService",
    }  # fmt: skip
    assert [
        name for name, names in named.items() if len(names) > 1 or not "".join(names or "mine").startswith("mine")
    ] == []


def test_role_names_are_valid_with_the_longest_prefix_and_region() -> None:
    roles = [
        resource["RoleName"]
        for resource in stack(**IMAGE, **RENDEZVOUS, Prefix="a" * 32).values()
        if "RoleName" in resource
    ]
    assert len(roles) == 5
    assert max(len(name.replace(REGION, "ap-southeast-1")) for name in roles) <= 64


def test_all_resources_that_can_have_tags_have_them() -> None:
    without = {name for name, resource in stack(**IMAGE, **RENDEZVOUS, **RECORD).items() if "Tags" not in resource}
    assert without == {
        "BucketPolicy", "InputsPolicy", "RunsPolicy", "RendezvousPolicy", "RendezvousServerIngress",
        "RendezvousListener", "RendezvousRecord",
    }  # fmt: skip


def test_resources_depend_on_image_and_bucket() -> None:
    assert set(stack()) == {"Bucket", "BucketPolicy", "Repository"}
    assert set(stack(BucketName="old")) == {"Repository"}
    assert set(stack(**IMAGE)) == WITHOUT_RENDEZVOUS
    assert set(stack(**IMAGE, BucketName="old")) == WITHOUT_RENDEZVOUS - {"Bucket", "BucketPolicy"}
    assert set(stack(**IMAGE, KmsKeyArn=KEY_ARN)) == WITHOUT_RENDEZVOUS | {"KeyPolicy"}
    assert set(stack(KmsKeyArn=KEY_ARN)) == {"Bucket", "BucketPolicy", "Repository"}
    assert set(stack(**IMAGE, **RENDEZVOUS, **RECORD, KmsKeyArn=KEY_ARN)) == set(SOURCE["Resources"])


def violated_rules(**given: str) -> list[str]:
    """Return the descriptions of the rules that refuse a stack with these parameters."""
    names = reference_values(SOURCE, given)
    return [
        check["AssertDescription"]
        for rule in SOURCE["Rules"].values()
        if resolve(rule["RuleCondition"], names)
        for check in rule["Assertions"]
        if not resolve(check["Assert"], names)
    ]


def test_an_image_needs_a_definition() -> None:
    assert violated_rules() == violated_rules(**IMAGE) == []
    assert violated_rules(ImageDigest=DIGEST) == [
        "A stack with an image needs DefinitionKey, the key of the state machine's definition."
    ]


NO_CLIENTS = (
    "A rendezvous needs permitted clients: RendezvousCidr, RendezvousPrefixList, or RendezvousSecurityGroup with the "
    "scheme internal."
)


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ({}, []),
        ({"RendezvousCidr": "0.0.0.0/0"}, []),
        ({"RendezvousCidr": ""}, [NO_CLIENTS]),
        ({"RendezvousCidr": "", "RendezvousPrefixList": "pl-01234567"}, []),
        ({"RendezvousCidr": "", "RendezvousSecurityGroup": "sg-01234567"}, [NO_CLIENTS]),
        ({"RendezvousCidr": "", "RendezvousScheme": "internal"}, [NO_CLIENTS]),
        ({"RendezvousCidr": "", "RendezvousSecurityGroup": "sg-01234567", "RendezvousScheme": "internal"}, []),
        ({"RendezvousCidr": "", **RECORD}, [NO_CLIENTS]),
        ({"RendezvousSubnets": ""}, ["A rendezvous needs RendezvousSubnets, public subnets of its VPC."]),
        (RECORD, []),
        ({"RendezvousZone": RECORD["RendezvousZone"]}, ["RendezvousZone and RendezvousName must be given together."]),
        ({"RendezvousName": RECORD["RendezvousName"]}, ["RendezvousZone and RendezvousName must be given together."]),
        ({"RendezvousVpc": "", "RendezvousCidr": "", "RendezvousSubnets": "", "RendezvousZone": "Z1"}, []),
    ],
)
def test_an_incomplete_rendezvous_is_refused(changed: dict[str, str], refused: list[str]) -> None:
    for image in ({}, IMAGE):  # also in the first step, before anything is pushed
        assert violated_rules(**image, **RENDEZVOUS | changed) == refused


def tags(*more: tuple[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in (("application", "cosmicai"), ("stack", "mine"), *more)]


def test_without_a_vpc_nothing_of_a_rendezvous_is_created_or_granted() -> None:
    """Also if everything else of it is given, as after it was switched off."""
    others = {**RENDEZVOUS, **RECORD, "RendezvousVpc": "", "RendezvousScheme": "internal"}
    for image in ({}, IMAGE):
        assert stack(**image, **others) == stack(**image)
        assert outputs(**image, **others) == outputs(**image)
    assert set(stack(**IMAGE, **others)) == WITHOUT_RENDEZVOUS
    assert "Rendezvous" not in "".join(outputs(**IMAGE, **others))
    free = {"AWS::S3", "AWS::ECR", "AWS::IAM", "AWS::Lambda", "AWS::Logs", "AWS::StepFunctions"}  # while nothing runs
    assert {resource["Type"].rpartition("::")[0] for resource in stack(**IMAGE, **others).values()} == free


def test_a_rendezvous_needs_an_image_to_run() -> None:
    assert stack(**RENDEZVOUS, **RECORD) == stack()
    assert outputs(**RENDEZVOUS, **RECORD) == outputs()


def test_a_rendezvous_changes_nothing_else() -> None:
    """Of the other resources: except for two variables of two functions and the permissions of these two."""
    before, after = stack(**IMAGE), stack(**IMAGE, **RENDEZVOUS)
    assert {name for name in before if before[name] != after[name]} == {
        "InitializeFunction", "InferFunction", "InitializeRole", "InferRole",
    }  # fmt: skip
    for name in ("InitializeFunction", "InferFunction"):
        variables = after[name]["Environment"]["Variables"]
        assert {key for key, value in variables.items() if before[name]["Environment"]["Variables"][key] != value} == {
            "COSMICAI_RENDEZVOUS", "FMI_SECRET_ARN",
        }  # fmt: skip
        assert (variables["COSMICAI_RENDEZVOUS"], variables["FMI_SECRET_ARN"]) == (f"{BALANCER}:10000", SECRET)
    secret = {("secretsmanager:GetSecretValue", SECRET, ())}
    for name in ("InitializeRole", "InferRole"):
        assert permissions(after, name) == permissions(before, name) | secret
        assert after[name] | {"ManagedPolicyArns": before[name]["ManagedPolicyArns"]} == before[name]


def test_the_rendezvous_role_may_start_this_server_and_nothing_else() -> None:
    resources = stack(**IMAGE, **RENDEZVOUS)
    pulls = ("BatchCheckLayerAvailability", "BatchGetImage", "GetDownloadUrlForLayer")
    assert permissions(resources, "RendezvousRole") == (
        {("ecr:GetAuthorizationToken", "*", ())}
        | {(f"ecr:{action}", f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/cosmicai", ()) for action in pulls}
        | log_grants("cosmicai-rendezvous", ECS_LOGS)
        | {("secretsmanager:GetSecretValue", SECRET, ())}
    )
    assert resources["RendezvousRole"]["AssumeRolePolicyDocument"]["Statement"] == [
        {
            "Effect": "Allow",
            "Principal": {"Service": "ecs-tasks.amazonaws.com"},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"aws:SourceAccount": ACCOUNT}},
        }
    ]


@pytest.mark.parametrize(("architecture", "processor"), [("x86_64", "X86_64"), ("arm64", "ARM64")])
def test_the_server_is_the_image_by_its_digest_without_permissions(architecture: str, processor: str) -> None:
    task = stack(**IMAGE, **RENDEZVOUS, Prefix="mine", Architecture=architecture, Commit="2244d5b")["RendezvousTask"]
    assert task == {
        "Type": "AWS::ECS::TaskDefinition",
        "Family": "mine-rendezvous",
        "RequiresCompatibilities": ["FARGATE"],
        "NetworkMode": "awsvpc",
        "Cpu": "256",
        "Memory": "512",
        "RuntimePlatform": {"OperatingSystemFamily": "LINUX", "CpuArchitecture": processor},
        "ExecutionRoleArn": f"arn:aws:iam::{ACCOUNT}:role/RendezvousRole",  # and no TaskRoleArn
        "ContainerDefinitions": [
            {
                "Name": "rendezvous",
                "Image": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/mine@{DIGEST}",
                "Essential": True,
                "Command": ["python", "-m", "fmi", "serve", "--host", "0.0.0.0", "--port", "10000"],
                "User": "65534:65534",
                "ReadonlyRootFilesystem": True,
                "LinuxParameters": {"Capabilities": {"Drop": ["ALL"]}},
                "PortMappings": [{"ContainerPort": 10000, "Protocol": "tcp"}],
                "Secrets": [{"Name": "FMI_SECRET", "ValueFrom": SECRET}],
                "HealthCheck": {
                    "Command": ["CMD", "python", "-m", "fmi", "health"],
                    "Interval": 30,
                    "Timeout": 10,
                    "Retries": 3,
                    "StartPeriod": 30,
                },
                "LogConfiguration": {
                    "LogDriver": "awslogs",
                    "Options": {
                        "awslogs-group": "/ecs/mine-rendezvous",
                        "awslogs-region": REGION,
                        "awslogs-stream-prefix": "rendezvous",
                        "mode": "non-blocking",
                    },
                },
            }
        ],
        "Tags": tags(("commit", "2244d5b")),
    }


def test_there_is_never_a_second_server() -> None:
    resources = stack(**IMAGE, **RENDEZVOUS, Prefix="mine", LogDays="7")
    assert resources["RendezvousService"] == {
        "Type": "AWS::ECS::Service",
        "Cluster": "RendezvousCluster",
        "LaunchType": "FARGATE",
        "TaskDefinition": "RendezvousTask",
        "DesiredCount": 1,
        "DeploymentConfiguration": {
            "MaximumPercent": 100,
            "MinimumHealthyPercent": 0,
            "DeploymentCircuitBreaker": {"Enable": True, "Rollback": True},
        },
        "AvailabilityZoneRebalancing": "DISABLED",
        "HealthCheckGracePeriodSeconds": 60,
        "LoadBalancers": [
            {"ContainerName": "rendezvous", "ContainerPort": 10000, "TargetGroupArn": "RendezvousTargets"}
        ],
        "NetworkConfiguration": {
            "AwsvpcConfiguration": {
                "AssignPublicIp": "ENABLED",
                "SecurityGroups": ["sg-of-the-server"],
                "Subnets": list(SUBNETS),
            }
        },
        "PropagateTags": "SERVICE",
        "Tags": tags(),
    }
    assert SOURCE["Resources"]["RendezvousService"]["DependsOn"] == ["RendezvousListener", "RendezvousServerIngress"]
    assert resources["RendezvousCluster"] == {
        "Type": "AWS::ECS::Cluster",
        "ClusterName": "mine",
        "ClusterSettings": [{"Name": "containerInsights", "Value": "disabled"}],
        "Tags": tags(),
    }
    assert resources["RendezvousLogs"] == {
        "Type": "AWS::Logs::LogGroup",
        "LogGroupName": "/ecs/mine-rendezvous",
        "RetentionInDays": "7",
        "Tags": tags(),
    }


@pytest.mark.parametrize("scheme", ["internet-facing", "internal"])
def test_the_load_balancer_preserves_the_addresses_of_clients(scheme: str) -> None:
    resources = stack(**IMAGE, **RENDEZVOUS, Prefix="mine", RendezvousScheme=scheme)
    assert SOURCE["Resources"]["RendezvousBalancer"]["Type"] == "AWS::ElasticLoadBalancingV2::LoadBalancer"
    assert resources["RendezvousBalancer"] == {
        "Type": "network",  # the property, which hides the resource's type
        "Scheme": scheme,
        "Subnets": list(SUBNETS),
        "SecurityGroups": ["sg-of-the-balancer"],
        "LoadBalancerAttributes": [{"Key": "load_balancing.cross_zone.enabled", "Value": "true"}],
        "Tags": tags(),
    }
    assert resources["RendezvousTargets"] == {
        "Type": "AWS::ElasticLoadBalancingV2::TargetGroup",
        "VpcId": VPC,
        "TargetType": "ip",
        "Protocol": "TCP",
        "Port": 10000,
        "HealthCheckProtocol": "TCP",
        "HealthCheckIntervalSeconds": 10,
        "HealthyThresholdCount": 2,
        "UnhealthyThresholdCount": 2,
        "TargetGroupAttributes": [
            {"Key": "preserve_client_ip.enabled", "Value": "true"},
            {"Key": "deregistration_delay.timeout_seconds", "Value": "10"},
        ],
        "Tags": tags(),
    }
    assert resources["RendezvousListener"] == {
        "Type": "AWS::ElasticLoadBalancingV2::Listener",
        "LoadBalancerArn": "RendezvousBalancer",
        "Protocol": "TCP",
        "Port": 10000,
        "DefaultActions": [{"Type": "forward", "TargetGroupArn": "RendezvousTargets"}],
    }


PORT = {"Description": "Messages of ranks", "IpProtocol": "tcp", "FromPort": 10000, "ToPort": 10000}
HTTPS = {"Description": "Image, secret and logs", "IpProtocol": "tcp", "FromPort": 443, "ToPort": 443}


@pytest.mark.parametrize(
    ("named", "admitted"),
    [
        ({"RendezvousCidr": "192.0.2.0/24"}, [{"CidrIp": "192.0.2.0/24"}]),
        ({"RendezvousCidr": "0.0.0.0/0"}, [{"CidrIp": "0.0.0.0/0"}]),
        ({"RendezvousPrefixList": "pl-01234567"}, [{"SourcePrefixListId": "pl-01234567"}]),
        ({"RendezvousSecurityGroup": "sg-01234567"}, [{"SourceSecurityGroupId": "sg-01234567"}]),
        (
            {
                "RendezvousCidr": "192.0.2.0/24",
                "RendezvousPrefixList": "pl-01234567",
                "RendezvousSecurityGroup": "sg-01234567",
            },
            [
                {"CidrIp": "192.0.2.0/24"},
                {"SourcePrefixListId": "pl-01234567"},
                {"SourceSecurityGroupId": "sg-01234567"},
            ],
        ),
        ({}, []),  # which is refused anyway, as above
    ],
)
def test_only_the_given_clients_may_connect(named: dict[str, str], admitted: list[dict[str, str]]) -> None:
    resources = stack(**IMAGE, **RENDEZVOUS | {"RendezvousCidr": ""} | named, Prefix="mine")
    assert resources["RendezvousBalancerGroup"] == {
        "Type": "AWS::EC2::SecurityGroup",
        "GroupDescription": "Who may connect to the rendezvous server",
        "VpcId": VPC,
        "SecurityGroupIngress": [PORT | who for who in admitted],
        "SecurityGroupEgress": [PORT | {"DestinationSecurityGroupId": "sg-of-the-server"}],
        "Tags": tags(),
    }
    assert resources["RendezvousServerGroup"] == {
        "Type": "AWS::EC2::SecurityGroup",
        "GroupDescription": "The rendezvous server, reached through its load balancer alone",
        "VpcId": VPC,
        "SecurityGroupEgress": [HTTPS | {"CidrIp": "0.0.0.0/0"}],
        "Tags": tags(),
    }
    assert resources["RendezvousServerIngress"] == {
        "Type": "AWS::EC2::SecurityGroupIngress",
        "GroupId": "sg-of-the-server",
        **PORT,
        "SourceSecurityGroupId": "sg-of-the-balancer",
    }
    rules = [name for name, resource in resources.items() if resource["Type"].startswith("AWS::EC2::")]
    assert rules == ["RendezvousBalancerGroup", "RendezvousServerGroup", "RendezvousServerIngress"]


def test_the_server_has_its_own_name_on_request() -> None:
    without, resources = stack(**IMAGE, **RENDEZVOUS), stack(**IMAGE, **RENDEZVOUS, **RECORD)
    assert set(resources) - set(without) == {"RendezvousRecord"}
    assert SOURCE["Resources"]["RendezvousRecord"]["Type"] == "AWS::Route53::RecordSet"
    assert resources["RendezvousRecord"] == {
        "Type": "A",  # the property, which hides the resource's type
        "HostedZoneId": RECORD["RendezvousZone"],
        "Name": "rendezvous.example.org",
        "AliasTarget": {"DNSName": BALANCER, "HostedZoneId": "ZOFTHEBALANCER", "EvaluateTargetHealth": False},
    }
    for name in ("InitializeFunction", "InferFunction"):
        assert resources[name]["Environment"]["Variables"]["COSMICAI_RENDEZVOUS"] == "rendezvous.example.org:10000"
    assert outputs(**IMAGE, **RENDEZVOUS, **RECORD)["RendezvousEndpoint"] == "rendezvous.example.org:10000"
    own = outputs(**IMAGE, **RENDEZVOUS)
    assert own == outputs(**IMAGE) | {"RendezvousEndpoint": f"{BALANCER}:10000"}


def test_the_secret_is_generated_by_aws_and_shown_nowhere() -> None:
    resources = stack(**IMAGE, **RENDEZVOUS, Prefix="mine")
    assert resources["RendezvousSecret"] == {
        "Type": "AWS::SecretsManager::Secret",
        "Description": "Shared secret of the rendezvous server of mine and its clients.",
        "GenerateSecretString": {"PasswordLength": 64, "ExcludePunctuation": True},
        "Tags": tags(),
    }
    assert {SOURCE["Resources"]["RendezvousSecret"][key] for key in ("DeletionPolicy", "UpdateReplacePolicy")} == {
        "Delete"
    }
    # Its value could come into the template only by a dynamic reference; its name is where it is looked up, alone.
    assert "{{resolve:" not in TEMPLATE.read_text()
    assert not re.search("secret", json.dumps(SOURCE["Outputs"]), re.IGNORECASE)
    places = list(find_paths(SECRET, resources))
    assert sorted(places) == [
        "InferFunction.Environment.Variables.FMI_SECRET_ARN",
        "InitializeFunction.Environment.Variables.FMI_SECRET_ARN",
        "RendezvousPolicy.PolicyDocument.Statement.0.Resource",
        "RendezvousTask.ContainerDefinitions.0.Secrets.0.ValueFrom",
    ]
    assert "Environment" not in resources["RendezvousTask"]["ContainerDefinitions"][0]


def find_paths(value: str, node: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the paths to a value in lists and objects."""
    if node == value:
        yield ".".join(path)
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, own in inner:
        yield from find_paths(value, own, (*path, str(key)))


def is_allowed(name: str, value: str) -> bool:
    """Return whether a parameter may have this value; for a list, each of its items."""
    parameter = SOURCE["Parameters"][name]
    if parameter["Type"] == "Number":
        number = int(value)
        low, high = parameter.get("MinValue", number), parameter.get("MaxValue", number)
        return low <= number <= high and number in parameter.get("AllowedValues", [number])
    if "AllowedValues" in parameter:
        return value in parameter["AllowedValues"]
    values = value.split(",") if parameter["Type"] == "CommaDelimitedList" else [value]
    longest = parameter.get("MaxLength", 4096)
    return all(re.fullmatch(parameter["AllowedPattern"], one, re.ASCII) and len(one) <= longest for one in values)


def test_every_parameter_has_a_default_and_a_description_of_its_values() -> None:
    for name, parameter in SOURCE["Parameters"].items():
        assert {"Type", "Description", "Default", "ConstraintDescription"} < parameter.keys(), name
        assert is_allowed(name, str(parameter["Default"])), name
    defaults = {name: parameter["Default"] for name, parameter in SOURCE["Parameters"].items()}
    assert defaults == {
        "Prefix": "cosmicai", "BucketName": "", "DataBucketName": "", "DataPrefixes": ",".join(DATA),
        "Versioning": "", "AccessLogBucketName": "", "KmsKeyArn": "", "ReservedRunConcurrency": 0,
        "ResultPrefixes": ",".join(RUNS), "WeightsPrefixes": ",".join(WEIGHTS), "ImageDigest": "",
        "Architecture": "x86_64", "MemoryMB": 2048, "TimeoutSeconds": 900, "EphemeralStorageMB": 512,
        "ReservedConcurrency": 0, "MaxConcurrency": 100, "LogDays": 30, "DefaultWeights": "", "DefinitionKey": "",
        "Commit": "", "RendezvousVpc": "", "RendezvousSubnets": "", "RendezvousScheme": "internet-facing",
        "RendezvousCidr": "", "RendezvousPrefixList": "", "RendezvousSecurityGroup": "", "RendezvousZone": "",
        "RendezvousName": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("Prefix", ["a", "cosmicai-2"], ["", "Cosmicai", "2fast", "a--b", "a-", "a_b", "a" * 33]),
        ("BucketName", ["my-bucket", "a.b"], ["s3://b", "My", "-ab", "a*b", "ab/"]),
        ("DataBucketName", ["cosmicai-data"], ["b/100MB", "*"]),
        ("Versioning", ["Enabled", "Suspended"], ["enabled", "true", "Disabled"]),
        ("AccessLogBucketName", ["my-logs"], ["s3://logs", "*", "logs/a"]),
        (
            "KmsKeyArn",
            [KEY_ARN, f"arn:aws:kms:eu-west-1:{ACCOUNT}:key/mrk-0123456789abcdef0123456789abcdef"],
            ["*", "alias/a", KEY_ARN[:-36] + "*", KEY_ARN.replace("key/", "alias/"), KEY_ARN.rpartition("/")[2]],
        ),
        ("ReservedRunConcurrency", ["0", "10000"], ["-1", "10001"]),
        (
            "DataPrefixes",
            ["a", "a/b", "runs,a b", "part-*"],
            ["*", "a,", "/a", "a/", "a/*", "a*b", "a?", "${a}", "a**"],
        ),
        ("ResultPrefixes", ["result-partition-*"], ["*", "", "runs/"]),
        ("WeightsPrefixes", ["Anomaly Detection"], ["*", " a", "a "]),
        ("ImageDigest", [DIGEST], ["latest", DIGEST[:-1], f"cosmicai@{DIGEST}"]),
        ("Architecture", ["arm64"], ["aarch64", ""]),
        ("MemoryMB", ["128", "10240"], ["127", "10241"]),
        ("TimeoutSeconds", ["1", "900"], ["0", "901"]),
        ("EphemeralStorageMB", ["512", "10240"], ["511", "10241"]),
        ("ReservedConcurrency", ["0", "10000"], ["-1", "10001"]),
        ("MaxConcurrency", ["1", "10000"], ["0", "10001"]),
        ("LogDays", ["1", "3653"], ["0", "31"]),
        ("DefaultWeights", ["demo", "s3://b/Anomaly Detection/w.safetensors"], ["weights", "s3://b", "s3:///w"]),
        ("DefinitionKey", [KEY], ["state_machine.asl.json", KEY.replace("0", "g", 1)]),
        ("Commit", ["2244d5b", "2244d5b-dirty"], ["a b", "a" * 65]),
        ("RendezvousVpc", [VPC, "vpc-01234567"], ["vpc", "vpc-0123456", f"{VPC}0", SUBNETS[0]]),
        ("RendezvousSubnets", [",".join(SUBNETS)], [VPC, "subnet-x", f"{SUBNETS[0]}, {SUBNETS[1]}"]),
        ("RendezvousScheme", ["internal"], ["", "public"]),
        (
            "RendezvousCidr",
            ["0.0.0.0/0", "192.0.2.7/32"],
            ["192.0.2.7", "192.0.2.0/33", "::/0", "0.0.0.0/0,10.0.0.0/8"],
        ),
        ("RendezvousPrefixList", ["pl-01234567"], ["01234567", "com.amazonaws.us-east-1.s3"]),
        ("RendezvousSecurityGroup", ["sg-0123456789abcdef0"], ["default", "sg-"]),
        ("RendezvousZone", ["Z0123456789ABC"], ["/hostedzone/Z01", "example.org", "Z" * 33]),
        ("RendezvousName", ["rendezvous.example.org"], ["rendezvous", "a.example.org.", "*.a.org", "A.org", "a..b"]),
    ],
)
def test_parameters_refuse_invalid_values(name: str, good: list[str], bad: list[str]) -> None:
    assert [value for value in good if not is_allowed(name, value)] == []
    assert [value for value in bad if is_allowed(name, value)] == []


@pytest.fixture
def cloudformation(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a client of moto's CloudFormation; boto3 uses the same account."""
    use_endpoint(monkeypatch, server_url())
    return boto3.client("cloudformation")


def stack_request(**given: str) -> dict[str, Any]:
    """Return the arguments of a request; all parameters are given, since moto takes the default of a list for text."""
    values = {name: str(given.get(name, own["Default"])) for name, own in SOURCE["Parameters"].items()}
    return {
        "StackName": given["Prefix"],
        "TemplateBody": TEMPLATE.read_text(),
        "Parameters": [{"ParameterKey": name, "ParameterValue": value} for name, value in values.items()],
        "Capabilities": ["CAPABILITY_NAMED_IAM"],
    }


def outputs_and_resources(cloudformation: Any, name: str) -> tuple[dict[str, str], set[str]]:
    outputs = cloudformation.describe_stacks(StackName=name)["Stacks"][0]["Outputs"]
    resources = cloudformation.describe_stack_resources(StackName=name)["StackResources"]
    # A bucket's policy, which moto cannot make, is there without a name.
    names = {own["LogicalResourceId"] for own in resources if "LogicalResourceId" in own}
    return {own["OutputKey"]: own["OutputValue"] for own in outputs}, names


@pytest.mark.filterwarnings("ignore:Tried to parse AWS..S3..BucketPolicy")
def test_a_stack_is_created_without_an_image_and_then_gets_one(cloudformation: Any) -> None:
    name = f"test-{secrets.token_hex(8)}"
    cloudformation.create_stack(**stack_request(Prefix=name))
    before = {
        "BucketName": f"{name}-{ACCOUNT}-{REGION}",
        "RepositoryUri": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/{name}",
    }
    assert outputs_and_resources(cloudformation, name) == (before, {"Bucket", "Repository"})
    cloudformation.update_stack(**stack_request(Prefix=name, **IMAGE))
    after = before | {
        "StateMachineArn": f"{STATES}:stateMachine:{name}",
        "InitializeFunction": f"{name}-initialize",
        "InferFunction": f"{name}-infer",
        "SummarizeFunction": f"{name}-summarize",
        "Architecture": "x86_64",
        "MemoryMB": "2048",
        "TimeoutSeconds": "900",
        "EphemeralStorageMB": "512",
        "MaxConcurrency": "100",
        "ImageDigest": DIGEST,
    }
    assert outputs_and_resources(cloudformation, name) == (after, WITHOUT_RENDEZVOUS - {"BucketPolicy"})


@pytest.mark.filterwarnings("ignore:Tried to parse AWS..S3..BucketPolicy")
def test_a_stack_with_an_image_has_the_tested_policies(cloudformation: Any) -> None:
    given = {"Prefix": f"test-{secrets.token_hex(8)}", "DataBucketName": "other", **IMAGE}
    cloudformation.create_stack(**stack_request(**given))
    iam, resources = boto3.client("iam"), stack(**given)
    for name in ("InputsPolicy", "RunsPolicy"):
        arn = f"arn:aws:iam::{ACCOUNT}:policy/{resources[name]['ManagedPolicyName']}"
        version = iam.get_policy_version(PolicyArn=arn, VersionId="v1")["PolicyVersion"]
        assert version["Document"] == resources[name]["PolicyDocument"]
    for name in ("InitializeRole", "InferRole", "SummarizeRole", "StateMachineRole"):
        tags = iam.list_role_tags(RoleName=resources[name]["RoleName"])["Tags"]
        assert tags == sorted(resources[name]["Tags"], key=lambda tag: str(tag["Key"]))
