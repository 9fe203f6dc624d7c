"""The recipe of a training: its options, their check, and the network and options of the demo weights."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ..errors import InputError
from ..models.config import AstroMAEConfig
from ..models.weights import Weights
from ..records import convert


class TrainingOptions(msgspec.Struct, frozen=True):
    """Everything but survey and network that decides the trained weights."""

    epochs: Annotated[int, Meta(ge=1)] = 20
    batch_size: Annotated[int, Meta(ge=1)] = 128
    # At the top of the schedule: linear warm-up, then a cosine down to zero.
    learning_rate: Annotated[float, Meta(gt=0)] = 1e-3
    encoder_rate: Annotated[float, Meta(gt=0)] = 1.0  # factor on the learning rate of the encoder
    weight_decay: Annotated[float, Meta(ge=0)] = 0.05
    warmup: Annotated[float, Meta(ge=0, lt=1)] = 0.05  # fraction of all steps
    clip: Annotated[float, Meta(ge=0)] = 1.0  # largest norm of the gradient; 0 for no limit
    patience: Annotated[int, Meta(ge=0)] = 0  # epochs without a lower validation MAE after which it ends; 0: never
    augment: Literal["full", "none"] = "full"
    noise: Annotated[float, Meta(ge=0)] = 0.0  # most noise that is added, relative to a cutout's own
    validation_fraction: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    test_fraction: Annotated[float, Meta(ge=0, lt=1)] = 0.1
    freeze_encoder: bool = False  # patch embedding, tokens and transformer blocks stay as they are
    seed: Annotated[int, Meta(ge=0)] = 0
    threads: Annotated[int, Meta(ge=0)] = 0  # of torch, for the rest of the process; 0 leaves them as they are
    device: str = "cpu"


DEMO_CONFIG = AstroMAEConfig(
    width=64, depth=3, heads=4, attention_width=64, mlp_width=256, convolution_width=256, convolution_groups=(16, 16),
    projection_width=64, vit_head=(128, 128), inception_head=(128, 128), magnitude_head=(128, 128, 128),
    redshift_head=(128, 1),
)  # fmt: skip
# The demo weights come from this many synthetic galaxies of seed DEMO_OPTIONS.seed; the demo shows those of seed 0.
DEMO_TRAINING_GALAXIES = 40960
DEMO_OPTIONS = TrainingOptions(
    epochs=24, batch_size=128, learning_rate=2e-3, validation_fraction=0.05, test_fraction=0.4, seed=1, threads=2
)


def check_options(options: TrainingOptions, config: AstroMAEConfig, initial: Weights | None) -> None:
    """Raise InputError if an option is out of range or does not go with the network or the initial weights."""
    remedy = "see `cosmicai train -h`"
    convert(msgspec.to_builtins(options), TrainingOptions, where="the training options", remedy=remedy)
    if not options.validation_fraction + options.test_fraction < 1:  # or NaN
        raise InputError(
            f"--validation-fraction {options.validation_fraction:g} and --test-fraction {options.test_fraction:g} "
            "leave no galaxies to train; their sum must be below 1"
        )
    if options.noise and options.augment == "none":
        raise InputError("--noise is a part of the augmentation, which --augment none turns off; leave one out")
    if options.freeze_encoder and options.encoder_rate != 1:
        raise InputError("a frozen encoder has no learning rate; leave out --freeze-encoder or --encoder-rate")
    if initial is not None and initial.config != config:
        raise InputError("the initial weights are of another configuration than the network; train with theirs")
    if initial is None and options.freeze_encoder:
        raise InputError("a new encoder cannot be frozen, it has not learned anything yet; give initial weights")
