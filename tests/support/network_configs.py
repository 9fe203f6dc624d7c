"""More configurations of AstroMAE."""

from __future__ import annotations

from msgspec.structs import replace

from support.networks import CONFIGS, SMALL

MORE = CONFIGS | {
    "unequal groups": replace(SMALL, convolution_groups=(6, 12)),
    "stem of 3": replace(SMALL, stem_kernel=3),
    "one layer a head": replace(SMALL, vit_head=(20,), inception_head=(20,), magnitude_head=(16,), redshift_head=(1,)),
    "no bias at all": replace(
        SMALL,
        without_bias=("query", "key", "value", "attention", "patch", "stem", "inception", "projection", "vit_head",
                      "inception_head", "magnitude_head", "redshift_head", "mlp_in", "mlp_out", "convolution_in",
                      "convolution_out"),
    ),
}  # fmt: skip
