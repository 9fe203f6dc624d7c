"""What decides a training, and the demo's recipe."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..models.config import AstroMAEConfig
from ..models.weights import Weights


@dataclass(frozen=True)
class TrainingOptions:
    """Everything but survey and network that decides the trained weights."""

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3  # at the top of the schedule: linear warm-up, then a cosine down to zero
    weight_decay: float = 0.05
    warmup: float = 0.05  # fraction of all steps
    validation_fraction: float = 0.1
    freeze_encoder: bool = False  # patch embedding, tokens and transformer blocks stay as they are
    seed: int = 0
    threads: int = 0  # of torch, for the rest of the process; 0 leaves them as they are
    device: str = "cpu"


DEMO_CONFIG = AstroMAEConfig(
    width=64, depth=3, heads=4, attention_width=64, mlp_width=256, convolution_width=256, convolution_groups=(16, 16),
    projection_width=64, vit_head=(128, 128), inception_head=(128, 128), magnitude_head=(128, 128, 128),
    redshift_head=(128, 1),
)  # fmt: skip
# The demo weights come from this many synthetic galaxies of seed DEMO_OPTIONS.seed; the demo shows those of seed 0.
DEMO_TRAINING_GALAXIES = 24576
DEMO_OPTIONS = TrainingOptions(epochs=16, batch_size=128, learning_rate=2e-3, seed=1, threads=2)


def check(options: TrainingOptions, config: AstroMAEConfig, initial: Weights | None) -> None:
    """Raises InputError if an option is senseless or does not go with the network or the initial weights."""
    for name, sound in {
        "epochs": options.epochs >= 1,
        "batch_size": options.batch_size >= 1,
        "learning_rate": options.learning_rate > 0,
        "weight_decay": options.weight_decay >= 0,
        "warmup": 0 <= options.warmup < 1,
        "validation_fraction": 0 < options.validation_fraction < 1,
        "threads": options.threads >= 0,
    }.items():
        if not sound:
            raise InputError(f"{name} is {getattr(options, name)}; expected a sensible value, see `cosmicai train -h`")
    if initial is not None and initial.config != config:
        raise InputError("the initial weights are of another configuration than the network; train with theirs")
    if initial is None and options.freeze_encoder:
        raise InputError("a fresh encoder cannot be frozen, it knows nothing yet; give initial weights")
