"""Test the network: shapes, independence of the galaxies of a batch, gradients, and its configuration as JSON."""

from __future__ import annotations

import json

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from cosmicai.errors import InputError
from cosmicai.models.astromae import AstroMAE
from cosmicai.models.config import AstroMAEConfig
from support.networks import CONFIGS, SMALL, galaxies, random_network

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@every_config
@pytest.mark.parametrize("count", [1, 2, 7])
def test_every_galaxy_gets_one_redshift(config: AstroMAEConfig, count: int) -> None:
    network = random_network(config)
    image, magnitude = galaxies(config, count)
    redshift = network(image, magnitude)
    assert (redshift.shape, redshift.dtype) == ((count,), torch.float32)
    assert redshift.isfinite().all()
    assert network.encode(image).shape == (count, config.width)


def test_no_galaxies_get_no_redshifts() -> None:
    assert random_network(SMALL)(*galaxies(SMALL, 0)).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_parameters_decide_the_precision(dtype: torch.dtype) -> None:
    assert random_network(SMALL).to(dtype)(*galaxies(SMALL, 2, dtype)).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_magnitudes_of_any_float_dtype_are_cast(dtype: torch.dtype) -> None:
    network = random_network(SMALL)
    image, magnitude = galaxies(SMALL, 3)
    rounded = magnitude.to(dtype)
    assert torch.equal(network(image, rounded), network(image, rounded.float()))


@every_config
def test_the_same_galaxies_get_the_same_redshifts(config: AstroMAEConfig) -> None:
    image, magnitude = galaxies(config, 5)
    network = random_network(config)
    first = network(image, magnitude)
    assert torch.equal(first, network(image, magnitude))
    assert torch.equal(first, random_network(config)(image, magnitude))
    assert not torch.equal(first, random_network(config, seed=1)(image, magnitude))


@every_config
def test_the_redshift_of_a_galaxy_does_not_depend_on_its_batch(config: AstroMAEConfig) -> None:
    network = random_network(config)
    image, magnitude = galaxies(config, 9)
    with torch.no_grad():
        together = network(image, magnitude)
        alone = torch.cat([network(image[row : row + 1], magnitude[row : row + 1]) for row in range(9)])
        reversed_ = network(image.flip(0), magnitude.flip(0)).flip(0)
    assert together.std() > 0.001
    assert (together - alone).abs().max() <= 1e-5
    assert (together - reversed_).abs().max() <= 1e-5


@every_config
def test_gradients_reach_every_parameter_but_the_unused_branch(config: AstroMAEConfig) -> None:
    network = random_network(config)
    network(*galaxies(config, 4)).square().sum().backward()
    unused = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    last = f"inception.{len(network.inception) - 2}.large."
    assert unused == {name for name, _ in network.named_parameters() if name.startswith(last)}
    assert len(unused) == 8  # two convolutions with bias, two norms
    # A bias of the keys adds the same to all of a query's products, which the softmax takes away again.
    flat = {name for name, p in network.named_parameters() if p.grad is not None and not p.grad.any()}
    assert {name.rpartition(".")[2] for name in flat} <= {"key_bias"}


def test_a_network_without_class_token_has_neither_it_nor_its_position() -> None:
    with_token, without = AstroMAE(SMALL), AstroMAE(replace(SMALL, class_token=False))
    assert with_token.position.shape == (1, 17, 24)
    assert without.position.shape == (1, 16, 24)
    assert with_token.state_dict().keys() - without.state_dict().keys() == {"class_token"}
    assert without.class_token is None


def test_the_class_token_is_attended_to_but_not_averaged() -> None:
    network = random_network(replace(SMALL, depth=1))
    image, magnitude = galaxies(SMALL, 3)
    before = network(image, magnitude)
    assert network.class_token is not None
    with torch.no_grad():
        network.class_token.normal_(0, 3)
        assert (network(image, magnitude) - before).abs().min() > 1e-5
        network.blocks = nn.ModuleList()
        alone = network.encode(image)
        network.class_token.normal_(0, 3)
        assert torch.equal(network.encode(image), alone)


def test_the_defaults_are_the_published_network() -> None:
    with torch.device("meta"):
        network = AstroMAE(AstroMAEConfig())
    assert sum(parameter.numel() for parameter in network.parameters()) == 15_902_889
    assert AstroMAEConfig().patches == 16
    assert AstroMAEConfig().tokens == 17
    assert AstroMAEConfig().inception_features == 192
    assert [stage[-1].channels for stage in AstroMAEConfig().inception_stages] == [64, 32, 12]


@pytest.mark.parametrize("config", [AstroMAEConfig(), *CONFIGS.values()], ids=["published", *CONFIGS])
def test_a_configuration_survives_json(config: AstroMAEConfig) -> None:
    line = config.to_json()
    assert "\n" not in line
    assert AstroMAEConfig.from_json(line, "here") == config
    assert AstroMAEConfig.from_json(line, "here").to_json() == line
    assert hash(AstroMAEConfig.from_json(line, "here")) == hash(config)
    assert list(json.loads(line)) == sorted(config.__struct_fields__)


@pytest.mark.parametrize("line", ["", "{", "3", "null", "[]", "{}"])
def test_json_of_something_else_is_refused_as_configuration(line: str) -> None:
    with pytest.raises(InputError, match=r"^here cannot be used: "):
        AstroMAEConfig.from_json(line, "here")


@pytest.mark.parametrize("name", AstroMAEConfig.__struct_fields__)
def test_a_configuration_without_one_of_its_fields_is_refused(name: str) -> None:
    values = json.loads(SMALL.to_json())
    del values[name]
    with pytest.raises(InputError, match=f"^here cannot be used: field {name} is missing; import"):
        AstroMAEConfig.from_json(json.dumps(values), "here")


@pytest.mark.parametrize("name", AstroMAEConfig.__struct_fields__)
@pytest.mark.parametrize("value", [None, "word", {"a": 1}, -1, [[]], float("nan")], ids=repr)
def test_a_field_of_another_type_is_refused(name: str, value: object) -> None:
    if (name, value) == ("attention_scale", -1):
        return  # a number like any other
    values = json.loads(SMALL.to_json()) | {name: value}
    with pytest.raises(InputError, match=rf"^here cannot be used: (field {name}|JSON is malformed)"):
        AstroMAEConfig.from_json(json.dumps(values), "here")


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        SMALL.depth = 3  # type: ignore[misc]


KINDS = {
    "patch": "patch.bias",
    "query": "blocks.0.attention.query_bias",
    "key": "blocks.0.attention.key_bias",
    "value": "blocks.0.attention.value_bias",
    "attention": "blocks.0.attention.proj.bias",
    "convolution_in": "blocks.0.convolution.0.bias",
    "convolution_out": "blocks.0.convolution.3.bias",
    "mlp_in": "blocks.0.mlp.0.bias",
    "mlp_out": "blocks.0.mlp.2.bias",
    "projection": "projection.bias",
    "vit_head": "vit_head.0.bias",
    "stem": "inception.0.bias",
    "inception": "inception.2.direct.0.bias",
    "inception_head": "inception_head.0.bias",
    "magnitude_head": "magnitude_head.0.bias",
    "redshift_head": "redshift_head.2.bias",
}


@pytest.mark.parametrize(("kind", "name"), KINDS.items(), ids=KINDS.keys())
def test_each_kind_of_bias_can_be_left_out_alone(kind: str, name: str) -> None:
    config = replace(SMALL, without_bias=(kind,))
    assert not config.has_bias(kind)
    assert all(config.has_bias(other) for other in KINDS if other != kind)
    state = AstroMAE(config).state_dict()
    assert name not in state
    assert all(other in state for other in KINDS.values() if other != name)
    assert random_network(config)(*galaxies(config, 2)).shape == (2,)
