"""Two real ranks, connected by gloo, against one: the command as users start it, and the gradients of a batch."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmicai.models.weights import load_weights
from cosmicai.surveys.synthetic import write_synthetic_survey
from support.torchvision_operators import environment

LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# Prints nothing; the first rank saves gradients, buffers and loss of one batch of 15, in float64.
GRADIENTS = """
import sys, torch
from cosmicai.training.network import initialize_network
from cosmicai.training.optimization import sum_losses
from cosmicai.training.parallel import connect_ranks, share_batches
from cosmicai.training.recipe import DEMO_CONFIG, TrainingOptions

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(1)
draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
image, magnitude, redshift = draw(15, 5, 32, 32), draw(15, 5), draw(15)
with connect_ranks(TrainingOptions(batch_size=15)) as ranks:
    network = initialize_network(DEMO_CONFIG, 0, 0.2).double().train()
    part = ranks.part(15)
    shared = share_batches(network, ranks, "cpu")
    loss = sum_losses(shared(image[part], magnitude[part]), redshift[part])
    (loss * (ranks.count / 15)).backward()
    gradients = {f"gradient of {n}": p.grad for n, p in network.named_parameters() if p.grad is not None}
    total = {"loss": torch.tensor(sum(ranks.gather(loss.item())))}
    if ranks.is_first:
        torch.save(gradients | dict(network.named_buffers()) | total, sys.argv[1])
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    variables = environment(os.environ | {"OMP_NUM_THREADS": "1"})
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=variables)


def read_history(path: Path) -> list[dict[str, float]]:
    return [
        {name: float(value) for name, value in row.items()} for row in csv.DictReader(path.read_text().splitlines())
    ]


def test_gradients_and_statistics_of_two_ranks_are_those_of_one(tmp_path: Path) -> None:
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    found = []
    for name, start in (("one", ()), ("two", LAUNCH)):
        done = run(*start, str(tmp_path / "gradients.py"), str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        found.append(torch.load(tmp_path / name))
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 200
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-9, atol=1e-12, msg=name)


def test_two_ranks_give_the_loss_curve_of_one(tmp_path: Path) -> None:
    survey = write_synthetic_survey(str(tmp_path / "survey"), 300, 3, 100).uri
    curves = []
    for name, start in (("one", ()), ("two", LAUNCH)):
        out = tmp_path / f"{name}.safetensors"
        # Steps so small that float32 has no time to let the order of sums grow into another network.
        options = ("--network", "demo", "--epochs", "2", "--batch-size", "40", "--learning-rate", "1e-4")
        done = run(*start, "-m", "cosmicai", "train", survey, *options, "--threads", "1", "--out", str(out))
        assert done.returncode == 0, done.stderr
        # Only one rank speaks and writes.
        assert done.stdout == f"{out}\n"
        assert done.stderr.count("\nepoch ") + done.stderr.startswith("epoch ") == 2
        assert "Warning" not in done.stderr
        assert load_weights(str(out)).notes["epochs"] == "2"
        curves.append(read_history(Path(f"{out}.history.csv")))
    written = [f"{name}.safetensors{end}" for name in ("one", "two") for end in ("", ".history.csv", ".history.png")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["survey", *written])
    for one, two in zip(*curves, strict=True):
        for name in ("training_loss", "validation_loss", "validation_mae"):
            assert two[name] == pytest.approx(one[name], rel=2e-3), name
    losses = np.array([[row["training_loss"] for row in curve] for curve in curves])
    assert (losses[:, 1] < losses[:, 0]).all()


def test_a_batch_of_fewer_galaxies_than_ranks_is_refused(tmp_path: Path) -> None:
    survey = write_synthetic_survey(str(tmp_path / "survey"), 100, 3, 100).uri
    command = ("-m", "cosmicai", "train", survey, "--network", "demo", "--batch-size", "1")
    done = run(*LAUNCH, *command, "--out", str(tmp_path / "w.safetensors"))
    assert done.returncode != 0
    assert "--batch-size 1 is below the number of ranks, 2" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["survey"]
