"""How SLURM's commands are called and what is read of their answers, with programs of their names that come first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cosmicai.errors import InputError
from cosmicai.launchers.base import RankRequest, SlurmRequest
from cosmicai.launchers.slurm import commands
from cosmicai.launchers.slurm.allocation import resolve_resources
from cosmicai.launchers.slurm.commands import SlurmFailure, call_slurm, inherited_options
from cosmicai.launchers.slurm.queue import QueuedJob, list_jobs, list_run_jobs, name_jobs
from cosmicai.launchers.slurm.submit import environment_notices, requested_options, sbatch_texts, submit_jobs
from cosmicai.launchers.submission import read_submissions
from cosmicai.runs.store import RunFolder

BANNER = (
    "-----\n  Welcome to the cluster\n  7 jobs of yours have ended\n\n--> Verifying valid submit host (login4)...OK\n"
)


class Programs:
    """Programs that come first on PATH; each call is logged with the variables of SLURM that it got."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        patch.setenv("PATH", str(folder), prepend=os.pathsep)
        for name in ("srun", "squeue", "sbatch", "scancel"):
            self.write(name, "exit 1")

    def write(self, name: str, text: str) -> None:
        log = (
            f'echo "{name} $*" >>{self.folder}/calls; env | grep -E "^(SLURM|SBATCH|SQUEUE)_" | sort >{self.folder}/env'
        )
        (self.folder / name).write_text(f"#!/bin/bash\n{log}\n{text}\n")
        (self.folder / name).chmod(0o755)

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def environment(self) -> list[str]:
        """The variables of SLURM that the last call got."""
        return (self.folder / "env").read_text().splitlines()


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    monkeypatch.setattr(commands, "PAUSE", 0.0)
    for name in [name for name in os.environ if name.startswith(commands.PREFIXES)]:
        monkeypatch.delenv(name)
    return Programs(tmp_path / "bin", monkeypatch)


def allocate(slurm: SlurmRequest | None = None, **ranks: Any) -> Any:
    return resolve_resources(RankRequest(**ranks), slurm or SlurmRequest(site="local"), {})


def submit(run: RunFolder, **request: Any) -> Any:
    slurm = SlurmRequest(site="local", **request)
    return submit_jobs(run, RankRequest(), slurm, allocate(slurm), ("work", run.uri))


def test_what_describes_a_job_or_changes_the_output_does_not_reach_the_commands(programs, monkeypatch):
    programs.write("squeue", "")
    for name in ("SLURM_CONF", "SLURM_JOB_ID", "SLURM_MEM_PER_CPU", "SQUEUE_FORMAT", "SBATCH_PARTITION", "SBATCH_QOS"):
        monkeypatch.setenv(name, "x")
    call_slurm(["squeue"])
    assert programs.environment() == ["SLURM_CONF=x"]


@pytest.mark.parametrize(("failing", "calls"), [(2, 3), (3, 3)])
def test_a_controller_that_does_not_answer_in_time_is_called_again(programs, failing, calls):
    timeout = "slurm_load_jobs error: Socket timed out on send/recv operation"
    answer = f'[ "$(wc -l <{programs.folder}/calls)" -gt {failing} ] && echo yes'
    programs.write("squeue", f'{answer} || {{ echo "{timeout}" >&2; exit 1; }}')
    if failing < calls:
        assert call_slurm(["squeue"]) == "yes\n"
    else:
        with pytest.raises(SlurmFailure, match="timed out") as raised:
            call_slurm(["squeue"])
        assert raised.value.may_have_passed
    assert len(programs.calls()) == calls


def test_a_refusal_is_not_repeated(programs):
    programs.write("scancel", 'echo "scancel: error: Kill job error on job id 7: Access/permission denied" >&2; exit 1')
    with pytest.raises(SlurmFailure, match="Kill job error on job id 7: Access/permission denied"):
        call_slurm(["scancel", "7"])
    assert programs.calls() == ["scancel 7"]


def test_only_lines_of_jobs_are_read_from_the_queue(programs):
    programs.write("squeue", f"cat <<'X'\n{BANNER}7|RUNNING|other|None\n12_[3-5%2]|PENDING|a name|(Priority | later)\n"
                   "12_1|COMPLETING|a name|None\n13|RUNNING|cosmicai-x|None\nmaintenance|on|friday|!\nX")  # fmt: skip
    found = list_jobs(["12"], ["cosmicai-x"])
    assert found == [
        QueuedJob("12_[3-5%2]", "PENDING", "a name", "(Priority | later)"),
        QueuedJob("13", "RUNNING", "cosmicai-x", "None"),
    ]
    assert [job.job for job in found] == ["12", "13"]
    assert programs.calls() == ["squeue --me --all --noheader --format=%i|%T|%j|%r"]


@pytest.mark.parametrize(
    "answer",
    ["12", "12;cluster", "Submitted batch job 12", "12 on cluster slaking", f"{BANNER}12", f"{BANNER}12\nGood luck!"],
)
def test_the_number_of_a_job_is_found_in_what_sbatch_prints(programs, tmp_path, answer):
    programs.write("sbatch", f"cat <<'X'\n{answer}\nX")
    run = RunFolder(str(tmp_path / "run"))
    submission = submit(run)
    assert submission.jobs == ("12",) and read_submissions(run) == [submission]
    [call] = programs.calls()
    assert call.startswith("sbatch --parsable ") and "--partition=standard" in call and "--time=60" in call
    assert f"--job-name={name_jobs(submission.name)}" in call


@pytest.mark.parametrize(
    "command", ['echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1', "echo See you later"]
)
def test_a_job_whose_number_did_not_arrive_is_found_by_its_name(programs, tmp_path, command):
    name = f"for word; do case $word in --job-name=*) echo ${{word#*=}} >{tmp_path}/name; esac; done"
    programs.write("sbatch", f"{name}\n{command}")
    programs.write("squeue", f'echo "15|PENDING|$(cat {tmp_path}/name)|None"; echo "16|PENDING|cosmicai-other|None"')
    assert submit(RunFolder(str(tmp_path / "run"))).jobs == ("15",)


def test_a_job_that_is_perhaps_there_keeps_its_submission_and_says_how_to_find_it(programs, tmp_path):
    programs.write("sbatch", 'echo "sbatch: error: Unable to contact slurm controller (connect failure)" >&2; exit 1')
    programs.write("squeue", "")
    run = RunFolder(str(tmp_path / "run"))
    with pytest.raises(InputError, match="it is unknown whether SLURM has the job cosmicai-") as raised:
        submit(run)
    [submission] = read_submissions(run)
    name = name_jobs(submission.name)
    assert submission.jobs == () and f"squeue --me --all --name {name}" in str(raised.value)
    assert sorted(path.name for path in Path(submission.folder).iterdir()) == ["0_submission.sh", "task.pkl"]
    programs.write("squeue", f'echo "15|RUNNING|{name}|None"')
    assert [job.number for job in list_run_jobs(run) or []] == ["15"]


@pytest.mark.parametrize(
    ("refusal", "advice"),
    [
        (
            "lua: Requesting memory by node is not supported. Use --mem-per-cpu.",
            "; use --mem-per-cpu, or memory_per_core",
        ),
        ("Please specify a QOS", "; use --qos, or qos in the site's file"),
        ("Invalid account or account/partition combination specified", ""),
    ],
)
def test_a_refusal_leaves_nothing_and_names_the_option(programs, tmp_path, refusal, advice):
    programs.write("sbatch", f'echo "sbatch: error: {refusal}" >&2; exit 1')
    with pytest.raises(InputError) as raised:
        submit(RunFolder(str(tmp_path / "run")))
    assert str(raised.value).startswith(f"sbatch refused: {refusal}{advice}")
    assert not (tmp_path / "run").exists()


def test_variables_of_sbatch_apply_only_where_the_launcher_leaves_something_open(programs, tmp_path, monkeypatch):
    programs.write("sbatch", "echo 12")
    variables = {"SBATCH_PARTITION": "gpu", "SBATCH_TIMELIMIT": "2", "SBATCH_QOS": "long", "SBATCH_ARRAY_INX": "0-9",
                 "SBATCH_MEM_PER_CPU": "1"}  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    submit(RunFolder(str(tmp_path / "run")))
    assert programs.environment() == ["SBATCH_QOS=long"]
    slurm = SlurmRequest(site="local")
    [text] = sbatch_texts(RunFolder(str(tmp_path / "run")), slurm, allocate(slurm))
    assert environment_notices(variables, text) == [
        "SBATCH_QOS=long in the environment applies to the jobs too",
        "SBATCH_ARRAY_INX=0-9 in the environment is ignored: the options of the launcher decide that",
        "SBATCH_MEM_PER_CPU=1 in the environment is ignored: the options of the launcher decide that",
        "SBATCH_PARTITION=gpu in the environment is ignored: the jobs have --partition=standard",
        "SBATCH_TIMELIMIT=2 in the environment is ignored: the jobs have --time=60",
    ]
    assert inherited_options({"SBATCH_QOS": "long"}, ["--qos=short"]) == ({}, {"SBATCH_QOS": "--qos=short"})


def test_options_of_the_request_precede_those_of_the_site(tmp_path):
    site = tmp_path / "site.toml"
    text = (Path(__file__).parents[3] / "slurm" / "local.toml").read_text()
    site.write_text(
        'memory_per_core = true\nqos = "normal"\nconstraint = "a100&big"\nreservation = "maintenance"\n'
        f'sbatch = ["exclude=n7", "--mail-type=END", "exclusive"]\n{text}'
    )
    slurm = SlurmRequest(site=str(site), qos="long", cores=3, sbatch=("exclude=n8",))
    [script] = sbatch_texts(RunFolder(str(tmp_path / "run")), slurm, allocate(slurm))
    options = requested_options(script)
    wanted = {"--qos=long", "--constraint=a100&big", "--reservation=maintenance", "--exclude=n8", "--mail-type=END",
              "--exclusive", "--mem-per-cpu=500M", "--cpus-per-task=3"}  # fmt: skip
    assert wanted <= set(options) and not [option for option in options if option.startswith("--mem=")]


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"sbatch": ("partition=gpu",)}, "--sbatch partition=gpu sets what --partition decides; use that"),
        ({"sbatch": ("no option",)}, "--sbatch 'no option' is not an option of sbatch; write KEY=VALUE"),
        ({"memory_mb": 1, "mem_per_cpu": 1}, "--memory-mb is memory per node and --mem-per-cpu memory per core"),
        ({"mem_per_cpu": 16000}, "no partition of local takes this job"),
    ],
)
def test_options_that_contradict_each_other_are_refused(request_, sentence):
    with pytest.raises(InputError, match=sentence):
        allocate(SlurmRequest(site="local", **request_))


def test_the_script_of_a_job_keeps_its_own_limits_and_libraries(tmp_path):
    slurm = SlurmRequest(site="local")
    allocation = resolve_resources(RankRequest(), slurm, {"PYTHONPATH": "/a b"})
    [text] = sbatch_texts(RunFolder(str(tmp_path / "run")), slurm, allocation)
    lines = text.splitlines()
    assert "unset SLURM_MEM_PER_CPU SLURM_MEM_PER_NODE SLURM_MEM_PER_GPU" in lines
    assert "export SLURM_EXPORT_ENV=ALL" in lines and "unset PYTHONHOME; export PYTHONPATH='/a b'" in lines
    assert "unset PYTHONHOME PYTHONPATH" in allocate().setup
