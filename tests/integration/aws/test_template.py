"""The stack of aws/template.yaml: what cfn-lint says of it, what its policies grant, and what becomes of it."""

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
SOURCE = json.loads(json.dumps(cfn_yaml.load(str(TEMPLATE))))  # with its short forms (!Ref) written out
REGION, ACCOUNT = "us-east-1", "123456789012"
DIGEST = f"sha256:{'0123456789abcdef' * 4}"
KEY = "deployments/state_machine-0123456789abcdef.asl.json"
IMAGE = {"ImageDigest": DIGEST, "DefinitionKey": KEY}
BUCKET = f"cosmicai-{ACCOUNT}-{REGION}"
DATA = ("surveys", "10MB", "25MB", "50MB", "75MB", "100MB")
WEIGHTS = ("weights", "Anomaly Detection")
RUNS = ("runs", "result-partition-*")
STATES = f"arn:aws:states:{REGION}:{ACCOUNT}"
FUNCTIONS = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function"
LOGS = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/lambda"
ECS_LOGS = LOGS.replace("/aws/lambda", "/ecs")
# All that may end in a wildcard: the objects of one folder of a bucket (whose own name may end in one), the executions
# of one state machine and the streams of one log group.
NARROW = (
    r"arn:aws:s3:::\$\{aws:PrincipalTag/\w+\}/[^*/][^*]*\*?/\*",
    rf"{STATES}:execution:cosmicai[:/]\*",
    rf"{LOGS}/cosmicai-[a-z]+:\*",
    rf"{ECS_LOGS}/cosmicai-rendezvous:\*",
)
# What AWS grants for everything or not at all: this one statement of this one role.
SIGN_IN = {
    "RendezvousRole": {
        "Sid": "SignInToRegistry",
        "Effect": "Allow",
        "Action": "ecr:GetAuthorizationToken",
        "Resource": "*",
    }
}
NO_VALUE = object()
VPC, SUBNETS = "vpc-0123456789abcdef0", ("subnet-0123456789abcdef0", "subnet-0123456789abcdef1")
RENDEZVOUS = {"RendezvousVpc": VPC, "RendezvousSubnets": ",".join(SUBNETS), "RendezvousCidr": "192.0.2.0/24"}
RECORD = {"RendezvousZone": "Z0123456789ABC", "RendezvousName": "rendezvous.example.org"}
SECRET = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:RendezvousSecret-0123456789ab-AbCdEf"
BALANCER = "cosmic-Rende-0123456789abcdef.elb.us-east-1.amazonaws.com"
FUNCTIONS_OF_A_RUN = ("Initialize", "Infer", "Summarize")
# All resources of a stack that has an image and no rendezvous.
WITHOUT_RENDEZVOUS = {
    "Bucket", "BucketPolicy", "Repository", "InputsPolicy", "RunsPolicy", "StateMachine", "StateMachineRole",
    *(f"{name}{kind}" for name in FUNCTIONS_OF_A_RUN for kind in ("Role", "Logs", "Function")),
}  # fmt: skip


def stack(template: dict[str, Any] = SOURCE, **given: str) -> dict[str, dict[str, Any]]:
    """The resources of a stack with these parameters, all functions of the template evaluated."""
    names = names_of(template, given)
    return {
        name: resolved({"Type": resource["Type"], **resource["Properties"]}, names)
        for name, resource in template["Resources"].items()
        if "Condition" not in resource or names[resource["Condition"]]
    }


def outputs(**given: str) -> dict[str, str]:
    """The outputs of a stack with these parameters."""
    names = names_of(SOURCE, given)
    return {
        name: resolved(output["Value"], names)
        for name, output in SOURCE["Outputs"].items()
        if "Condition" not in output or names[output["Condition"]]
    }


def names_of(template: dict[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """What can be referred to in a stack with these parameters; resources by what CloudFormation calls them."""
    names: dict[str, Any] = {"AWS::Region": REGION, "AWS::AccountId": ACCOUNT, "AWS::Partition": "aws"}
    for name, parameter in template["Parameters"].items():
        value = str(given.get(name, parameter["Default"]))
        names[name] = value.split(",") if parameter["Type"] == "CommaDelimitedList" else value
    bucket = f"{names['Prefix']}-{ACCOUNT}-{REGION}"
    names |= {"AWS::NoValue": NO_VALUE, "Bucket": bucket, "Bucket.Arn": f"arn:aws:s3:::{bucket}"}
    names["Repository.RepositoryUri"] = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/{names['Prefix']}"
    names["Repository.Arn"] = f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/{names['Prefix']}"
    names |= {name: name for name in ("InputsPolicy", "RunsPolicy", "RendezvousPolicy", "StateMachine")}
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
        names[name] = resolved(condition, names)
    return names


def resolved(node: Any, names: Mapping[str, Any]) -> Any:
    """A part of a template with its functions evaluated."""
    if isinstance(node, list):
        return [value for own in node if (value := resolved(own, names)) is not NO_VALUE]
    if not isinstance(node, dict):
        return node
    if len(node) == 1 and (function := EVALUATE.get(next(iter(node)))):
        return function(next(iter(node.values())), names)
    return {key: value for key, own in node.items() if (value := resolved(own, names)) is not NO_VALUE}


EVALUATE: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "Ref": lambda node, names: names[node],
    "Fn::GetAtt": lambda node, names: names[".".join(node)],
    "Fn::Sub": lambda node, names: re.sub(r"\$\{(.+?)\}", lambda found: names[found[1]], node),
    "Fn::Join": lambda node, names: node[0].join(resolved(node[1], names)),
    "Fn::Split": lambda node, names: resolved(node[1], names).split(node[0]),
    "Fn::If": lambda node, names: resolved(node[1] if names[node[0]] else node[2], names),
    "Fn::Equals": lambda node, names: str(resolved(node[0], names)) == str(resolved(node[1], names)),
    "Fn::Not": lambda node, names: not resolved(node[0], names),
    "Fn::And": lambda node, names: all(resolved(own, names) for own in node),
    "Fn::Or": lambda node, names: any(resolved(own, names) for own in node),
    "Fn::Contains": lambda node, names: resolved(node[1], names) in resolved(node[0], names),
    "Condition": lambda node, names: names[node],
}


def policies(resource: dict[str, Any]) -> list[dict[str, Any]]:
    """The policies of a resource, whoever they are for."""
    own = [resource.get(key) for key in ("PolicyDocument", "AssumeRolePolicyDocument", "RepositoryPolicyText")]
    return [policy for policy in own if policy] + [policy["PolicyDocument"] for policy in resource.get("Policies", [])]


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def too_wide(resources: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The wildcards that policies allow something for, but NARROW ones and SIGN_IN: resource and wildcard."""
    for name, resource in resources.items():
        for statement in (own for policy in policies(resource) for own in policy["Statement"]):
            if statement["Effect"] == "Deny":  # the more it covers the less is left
                continue
            if statement == SIGN_IN.get(name):
                continue
            yield from ((name, key) for key in statement if key.startswith("Not"))
            arns = listed(statement.get("Resource", []))
            values = [arn for arn in arns if not any(re.fullmatch(pattern, arn) for pattern in NARROW)]
            principal = statement.get("Principal", {})
            of_kinds = principal.values() if isinstance(principal, dict) else [principal]
            values += listed(statement.get("Action", [])) + [own for kind in of_kinds for own in listed(kind)]
            yield from ((name, value) for value in values if "*" in value or "?" in value)


Grant = tuple[str, str, tuple[str, ...]]


def granted(resources: dict[str, dict[str, Any]], role: str) -> set[Grant]:
    """What a role may do: action, resource, and the prefixes that a listing may be of."""
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
        grants += [(a, r, prefixes) for a in listed(statement["Action"]) for r in listed(statement["Resource"])]
    return set(grants)


def objects(bucket: str, folders: tuple[str, ...], *actions: str) -> set[Grant]:
    return {(f"s3:{action}", f"arn:aws:s3:::{bucket}/{folder}/*", ()) for folder in folders for action in actions}


def listings(bucket: str, folders: tuple[str, ...]) -> set[Grant]:
    return {("s3:ListBucket", f"arn:aws:s3:::{bucket}", tuple(f"{folder}/*" for folder in folders))}


def logging_of(name: str, groups: str = LOGS) -> set[Grant]:
    return {(f"logs:{action}", f"{groups}/{name}:*", ()) for action in ("CreateLogStream", "PutLogEvents")}


def runs_of(bucket: str) -> set[Grant]:
    return listings(bucket, RUNS) | objects(bucket, RUNS, "GetObject", "PutObject", "AbortMultipartUpload")


def test_cfn_lint_finds_nothing() -> None:
    assert lint_file(TEMPLATE) == []


def test_cfn_lint_finds_nothing_in_the_state_machine_either() -> None:
    """It reads a definition only where it stands in the template itself."""

    def found(definition: str) -> list[str]:
        template = deepcopy(SOURCE)
        properties = template["Resources"]["StateMachine"]["Properties"]
        del properties["DefinitionS3Location"], template["Rules"]
        del template["Parameters"]["DefinitionKey"]
        properties["DefinitionString"] = definition
        return [match.rule.id for match in lint(json.dumps(template))]

    assert found(DEFINITION.read_text()) == []
    assert found(DEFINITION.read_text().replace('"Type": "Map"', '"Type": "Mapp"')) == ["E3601"]


def test_the_template_fits_into_a_call() -> None:
    assert len(TEMPLATE.read_bytes()) <= 51200


def test_no_policy_allows_a_wildcard() -> None:
    assert list(too_wide(stack(**IMAGE))) == []
    assert list(too_wide(stack(**IMAGE, BucketName="old", DataBucketName="other"))) == []
    assert list(too_wide(stack())) == []
    assert list(too_wide(stack(**IMAGE, **RENDEZVOUS, **RECORD))) == []


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
    assert list(too_wide(stack(template, **IMAGE, **RENDEZVOUS))) == []
    statement |= changed
    assert list(too_wide(stack(template, **IMAGE, **RENDEZVOUS))) == [(where, found)]


def test_only_the_rendezvous_may_sign_in_to_all_registries() -> None:
    template = deepcopy(SOURCE)
    [policy] = template["Resources"]["InferRole"]["Properties"]["Policies"]
    policy["PolicyDocument"]["Statement"].append(SIGN_IN["RendezvousRole"])
    assert list(too_wide(stack(template, **IMAGE))) == [("InferRole", "*")]
    [policy] = template["Resources"]["RendezvousRole"]["Properties"]["Policies"]
    [statement] = [own for own in policy["PolicyDocument"]["Statement"] if own["Sid"] == "SignInToRegistry"]
    statement["Action"] = [statement["Action"], "ecr:BatchGetImage"]
    assert ("RendezvousRole", "*") in list(too_wide(stack(template, **IMAGE, **RENDEZVOUS)))


def test_prefixes_become_exactly_these_arns() -> None:
    role = granted(stack(**IMAGE), "SummarizeRole")
    assert sorted(arn for action, arn, _ in role if action == "s3:GetObject") == [
        "arn:aws:s3:::cosmicai-123456789012-us-east-1/result-partition-*/*",
        "arn:aws:s3:::cosmicai-123456789012-us-east-1/runs/*",
    ]
    role = granted(
        stack(**IMAGE, BucketName="b", ResultPrefixes="results", WeightsPrefixes="Anomaly Detection"), "InferRole"
    )
    assert sorted(arn for action, arn, _ in role if action == "s3:GetObject") == [
        "arn:aws:s3:::b/100MB/*", "arn:aws:s3:::b/10MB/*", "arn:aws:s3:::b/25MB/*", "arn:aws:s3:::b/50MB/*",
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
    inputs = objects(bucket, DATA + WEIGHTS, "GetObject") | objects(data_bucket, DATA, "GetObject")
    inputs |= listings(bucket, WEIGHTS)
    assert granted(resources, "InitializeRole") == (
        inputs
        | runs_of(bucket)
        | listings(bucket, DATA)
        | listings(data_bucket, DATA)
        | {("s3:PutObject", f"arn:aws:s3:::{bucket}/payload.json", ())}
        | logging_of("cosmicai-initialize")
    )
    assert granted(resources, "InferRole") == (
        inputs | runs_of(bucket) | objects(bucket, RUNS, "DeleteObject") | logging_of("cosmicai-infer")
    )
    assert granted(resources, "SummarizeRole") == runs_of(bucket) | logging_of("cosmicai-summarize")
    pieces = ("GetObject", "PutObject", "ListMultipartUploadParts", "AbortMultipartUpload")
    assert granted(resources, "StateMachineRole") == (
        objects(bucket, RUNS, "GetObject")
        | objects(bucket, ("tmp/maps",), *pieces)
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


def test_only_lambda_and_this_account_s_step_functions_use_the_roles() -> None:
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


def test_what_is_stored_is_private_encrypted_and_cleaned_up() -> None:
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


def test_concurrency_is_reserved_only_if_wanted() -> None:
    assert "ReservedConcurrentExecutions" not in stack(**IMAGE)["InferFunction"]
    assert stack(**IMAGE, ReservedConcurrency="50")["InferFunction"]["ReservedConcurrentExecutions"] == "50"


def test_logs_are_there_before_the_functions_and_end() -> None:
    resources = stack(**IMAGE, LogDays="7")
    for name in ("Initialize", "Infer", "Summarize"):
        logs = resources[f"{name}Logs"]
        assert (logs["LogGroupName"], logs["RetentionInDays"]) == (f"/aws/lambda/cosmicai-{name.lower()}", "7")
        assert SOURCE["Resources"][f"{name}Function"]["DependsOn"] == f"{name}Logs"


def test_the_state_machine_s_definition_gets_all_that_it_asks_for() -> None:
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


def test_roles_have_names_that_iam_takes_also_with_the_longest_prefix_and_region() -> None:
    roles = [
        resource["RoleName"]
        for resource in stack(**IMAGE, **RENDEZVOUS, Prefix="a" * 32).values()
        if "RoleName" in resource
    ]
    assert len(roles) == 5
    assert max(len(name.replace(REGION, "ap-southeast-1")) for name in roles) <= 64


def test_all_that_can_have_tags_has_them() -> None:
    without = {name for name, resource in stack(**IMAGE, **RENDEZVOUS, **RECORD).items() if "Tags" not in resource}
    assert without == {
        "BucketPolicy", "InputsPolicy", "RunsPolicy", "RendezvousPolicy", "RendezvousServerIngress",
        "RendezvousListener", "RendezvousRecord",
    }  # fmt: skip


def test_what_is_made_depends_on_image_and_bucket() -> None:
    assert set(stack()) == {"Bucket", "BucketPolicy", "Repository"}
    assert set(stack(BucketName="old")) == {"Repository"}
    assert set(stack(**IMAGE)) == WITHOUT_RENDEZVOUS
    assert set(stack(**IMAGE, BucketName="old")) == WITHOUT_RENDEZVOUS - {"Bucket", "BucketPolicy"}
    assert set(stack(**IMAGE, **RENDEZVOUS, **RECORD)) == set(SOURCE["Resources"])


def broken(**given: str) -> list[str]:
    """The rules that refuse a stack with these parameters: what they say."""
    names = names_of(SOURCE, given)
    return [
        check["AssertDescription"]
        for rule in SOURCE["Rules"].values()
        if resolved(rule["RuleCondition"], names)
        for check in rule["Assertions"]
        if not resolved(check["Assert"], names)
    ]


def test_an_image_needs_a_definition() -> None:
    assert broken() == broken(**IMAGE) == []
    assert broken(ImageDigest=DIGEST) == [
        "A stack with an image needs DefinitionKey, where the state machine's definition is."
    ]


NOBODY = (
    "A rendezvous needs somebody who may connect: RendezvousCidr, RendezvousPrefixList, or with the scheme internal "
    "RendezvousSecurityGroup."
)


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ({}, []),
        ({"RendezvousCidr": "0.0.0.0/0"}, []),
        ({"RendezvousCidr": ""}, [NOBODY]),
        ({"RendezvousCidr": "", "RendezvousPrefixList": "pl-01234567"}, []),
        ({"RendezvousCidr": "", "RendezvousSecurityGroup": "sg-01234567"}, [NOBODY]),
        ({"RendezvousCidr": "", "RendezvousScheme": "internal"}, [NOBODY]),
        ({"RendezvousCidr": "", "RendezvousSecurityGroup": "sg-01234567", "RendezvousScheme": "internal"}, []),
        ({"RendezvousCidr": "", **RECORD}, [NOBODY]),
        ({"RendezvousSubnets": ""}, ["A rendezvous needs RendezvousSubnets, public subnets of its network."]),
        (RECORD, []),
        ({"RendezvousZone": RECORD["RendezvousZone"]}, ["RendezvousZone and RendezvousName need each other."]),
        ({"RendezvousName": RECORD["RendezvousName"]}, ["RendezvousZone and RendezvousName need each other."]),
        ({"RendezvousVpc": "", "RendezvousCidr": "", "RendezvousSubnets": "", "RendezvousZone": "Z1"}, []),
    ],
)
def test_a_rendezvous_that_is_not_whole_is_refused(changed: dict[str, str], refused: list[str]) -> None:
    for image in ({}, IMAGE):  # also in the first step, before anything is pushed
        assert broken(**image, **RENDEZVOUS | changed) == refused


def tags(*more: tuple[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in (("application", "cosmicai"), ("stack", "mine"), *more)]


def test_without_a_network_nothing_of_a_rendezvous_is_made_or_granted() -> None:
    """Also if all else of it is given, as it remains when it is switched off."""
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
    """Of what was there before: two variables of two functions, and what these two may do."""
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
        assert granted(after, name) == granted(before, name) | secret
        assert after[name] | {"ManagedPolicyArns": before[name]["ManagedPolicyArns"]} == before[name]


def test_the_rendezvous_role_may_start_this_server_and_nothing_else() -> None:
    resources = stack(**IMAGE, **RENDEZVOUS)
    pulls = ("BatchCheckLayerAvailability", "BatchGetImage", "GetDownloadUrlForLayer")
    assert granted(resources, "RendezvousRole") == (
        {("ecr:GetAuthorizationToken", "*", ())}
        | {(f"ecr:{action}", f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/cosmicai", ()) for action in pulls}
        | logging_of("cosmicai-rendezvous", ECS_LOGS)
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
def test_the_server_is_the_image_by_its_digest_and_may_do_nothing(architecture: str, processor: str) -> None:
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


def test_there_is_one_server_and_never_a_second_one() -> None:
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
def test_the_load_balancer_shows_the_server_who_connects(scheme: str) -> None:
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


PORT = {"IpProtocol": "tcp", "FromPort": 10000, "ToPort": 10000}


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
def test_only_those_who_are_named_may_connect(named: dict[str, str], admitted: list[dict[str, str]]) -> None:
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
        "SecurityGroupEgress": [{"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "CidrIp": "0.0.0.0/0"}],
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


def test_the_server_has_a_name_of_its_own_if_one_is_wanted() -> None:
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


def test_the_secret_is_made_by_aws_and_shown_nowhere() -> None:
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
    places = list(where_is(SECRET, resources))
    assert sorted(places) == [
        "InferFunction.Environment.Variables.FMI_SECRET_ARN",
        "InitializeFunction.Environment.Variables.FMI_SECRET_ARN",
        "RendezvousPolicy.PolicyDocument.Statement.0.Resource",
        "RendezvousTask.ContainerDefinitions.0.Secrets.0.ValueFrom",
    ]
    assert "Environment" not in resources["RendezvousTask"]["ContainerDefinitions"][0]


def where_is(value: str, node: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """The paths to a value in lists and objects."""
    if node == value:
        yield ".".join(path)
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, own in inner:
        yield from where_is(value, own, (*path, str(key)))


def allowed(name: str, value: str) -> bool:
    """Whether a parameter may have this value, which for a list is each of its own."""
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


def test_every_parameter_has_a_default_and_says_what_it_may_be() -> None:
    for name, parameter in SOURCE["Parameters"].items():
        assert {"Type", "Description", "Default", "ConstraintDescription"} < parameter.keys(), name
        assert allowed(name, str(parameter["Default"])), name
    defaults = {name: parameter["Default"] for name, parameter in SOURCE["Parameters"].items()}
    assert defaults == {
        "Prefix": "cosmicai", "BucketName": "", "DataBucketName": "", "DataPrefixes": ",".join(DATA),
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
def test_parameters_refuse_what_could_not_be(name: str, good: list[str], bad: list[str]) -> None:
    assert [value for value in good if not allowed(name, value)] == []
    assert [value for value in bad if allowed(name, value)] == []


@pytest.fixture
def cloudformation(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of moto's CloudFormation; boto3 belongs to the same account."""
    use_endpoint(monkeypatch, server_url())
    return boto3.client("cloudformation")


def asked(**given: str) -> dict[str, Any]:
    """What is asked of CloudFormation; all parameters are given, since moto takes the default of a list for text."""
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
def test_a_stack_is_made_without_an_image_and_then_gets_one(cloudformation: Any) -> None:
    name = f"test-{secrets.token_hex(8)}"
    cloudformation.create_stack(**asked(Prefix=name))
    before = {
        "BucketName": f"{name}-{ACCOUNT}-{REGION}",
        "RepositoryUri": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/{name}",
    }
    assert outputs_and_resources(cloudformation, name) == (before, {"Bucket", "Repository"})
    cloudformation.update_stack(**asked(Prefix=name, **IMAGE))
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
def test_a_stack_with_an_image_has_the_policies_that_these_tests_read(cloudformation: Any) -> None:
    given = {"Prefix": f"test-{secrets.token_hex(8)}", "DataBucketName": "other", **IMAGE}
    cloudformation.create_stack(**asked(**given))
    iam, resources = boto3.client("iam"), stack(**given)
    for name in ("InputsPolicy", "RunsPolicy"):
        arn = f"arn:aws:iam::{ACCOUNT}:policy/{resources[name]['ManagedPolicyName']}"
        version = iam.get_policy_version(PolicyArn=arn, VersionId="v1")["PolicyVersion"]
        assert version["Document"] == resources[name]["PolicyDocument"]
    for name in ("InitializeRole", "InferRole", "SummarizeRole", "StateMachineRole"):
        tags = iam.list_role_tags(RoleName=resources[name]["RoleName"])["Tags"]
        assert tags == sorted(resources[name]["Tags"], key=lambda tag: str(tag["Key"]))
