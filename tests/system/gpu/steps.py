"""The steps of the acceptance test on a GPU: commands with time limits, and what each leaves."""

from __future__ import annotations

from dataclasses import dataclass

COSMICAI = ("{python}", "-m", "cosmicai")
BENCH = (*COSMICAI, "bench")
RUN = ("{survey}", "--weights", "{weights}", "--precision", "float32", "--device", "{device}", "--out")
INFER = (*COSMICAI, "infer", *RUN)
ENGINES = (*BENCH, "engines", "--weights", "{weights}", "--survey", "{survey}", "--galaxies", "65536", "--repeats", "2",
           "--device", "cuda")  # fmt: skip
PYTEST = ("{python}", "-m", "pytest", "-m", "cuda")
# Copies a run folder, removes one part and what makes the run complete, and runs the rest of its arguments.
WITHOUT_A_PART = (
    'cp -r "$0" "$1"; parts=("$1"/parts/*); rm "${parts[0]}" "$1/summary.json" "$1/catalogue.parquet"; shift; "$@"'
)
# Plans a run with the options after the run folder, and starts two ranks, which share whatever device there is.
TWO_RANKS = (
    '"$0" -m cosmicai plan "${@:2}"; '
    '"$0" -m torch.distributed.run --standalone --nproc-per-node 2 -m cosmicai work "$1"'
)


@dataclass(frozen=True)
class Step:
    """A command with its time limit in seconds, and what it is expected to leave in the working folder.

    `result` says that the command writes JSON to {result}. `run` is the run folder that it makes; its catalogue must be
    that of the run `first`.
    """

    name: str
    seconds: int
    command: tuple[str, ...]
    needs_gpu: bool = True
    result: bool = False
    run: str | None = None


# What the others need comes first, then what matters most: those for which no time is left are skipped.
STEPS = (
    Step("survey", 60, (*COSMICAI, "synthetic", "--galaxies", "{galaxies}", "--out", "{survey}"), needs_gpu=False),
    Step("weights", 90, (*COSMICAI, "train", "{survey}", "--out", "{trained}", "--epochs", "6", "--patience", "0",
                         "--augment", "none", "--device", "cuda")),
    Step("selftest", 90, ("bash", "-c", '"$@" >"$0"', "{result}", *COSMICAI, "selftest", "--json"), needs_gpu=False,
         result=True),
    Step("tests", 120, (*PYTEST, "-k", "not compiled", "{marked}")),
    Step("precisions", 90, (*BENCH, "precisions", "--weights", "{weights}", "--survey", "{survey}", "--galaxies",
                            "{galaxies}", "--engines", "{engines}", "--out", "{result}"), needs_gpu=False, result=True),
    Step("engines", 150, (*ENGINES, "--engines", "cuda", "--out", "{result}"), result=True),
    # The engines that run on CPUs are left out on a GPU, and only the alternatives remain.
    Step("published", 120, (*ENGINES, "--engines", "reference", "--alternatives", "batch,eager,autocast,folded",
                            "--out", "{result}"), result=True),
    Step("inner batches", 90, (*BENCH, "inner-batches", "--weights", "{weights}", "--engines", "cuda:bfloat16",
                               "--out", "{result}"), result=True),
    Step("kernels", 60, (*BENCH, "kernels", "--weights", "{weights}", "--device", "{device}", "--precision",
                         "{fast}", "--batch", "{batch}", "--out", "{result}"), needs_gpu=False, result=True),
    Step("kernels float32", 60, (*BENCH, "kernels", "--weights", "{weights}", "--precision", "float32", "--out",
                                 "{result}"), result=True),
    Step("start", 60, (*BENCH, "start", "--weights", "{weights}", "--engines", "cuda:bfloat16", "--repeats", "2",
                       "--out", "{result}"), result=True),
    Step("first run", 60, (*INFER, "{work}/first"), needs_gpu=False, run="first"),
    Step("second run", 60, (*INFER, "{work}/second"), needs_gpu=False, run="second"),
    Step("resumed run", 60, ("bash", "-ec", WITHOUT_A_PART, "{work}/first", "{work}/resumed", *INFER,
                             "{work}/resumed", "--resume"), needs_gpu=False, run="resumed"),
    Step("launched run", 60, ("{python}", "-m", "launch", "--gpus", "1", *RUN, "{work}/launched"),
         run="launched"),
    Step("shared device", 90, ("bash", "-ec", TWO_RANKS, "{python}", "{work}/shared", *RUN, "{work}/shared"),
         needs_gpu=False, run="shared"),
    Step("reading", 90, (*BENCH, "end-to-end", "--weights", "{weights}", "--galaxies", "200000", "--noise", "--cached",
                         "--repeats", "1", "--engines", "cuda:bfloat16", "--out", "{result}"), result=True),
    Step("nccl", 60, (*PYTEST, "-k", "nccl", "{marked}")),
    Step("compiled tests", 120, (*PYTEST, "-k", "compiled", "{marked}")),
    Step("compiled", 150, (*ENGINES, "--engines", "cuda:bfloat16", "--alternatives", "compile,folded-compile,compiled",
                           "--out", "{result}"), result=True),
)  # fmt: skip
