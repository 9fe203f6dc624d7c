"""Site profiles: what a file must contain, the choice of a partition, and what a job is charged."""

import os
import pwd
from datetime import date
from pathlib import Path

import pytest

from cosmicai.errors import InputError
from cosmicai.launchers.slurm.site import Gpu, Site, SlurmPartition, parse_time_limit
from cosmicai.launchers.slurm.site_profile import SITES, load_site

USER = {"USER": "mst3k"}
SMALLEST = 'name = "x"\naccount_required = false\nscratch = "/tmp"\n[partitions.cpu]\n'
WITH_GPUS = f"{SMALLEST}[partitions.gpu]\ngpus = true\n"


def sentence(raised: pytest.ExceptionInfo[InputError]) -> str:
    message = str(raised.value)
    assert "\n" not in message and not message.endswith(".")
    return message


@pytest.fixture(scope="module")
def rivanna() -> Site:
    return load_site("rivanna", USER)


@pytest.fixture(scope="module")
def local() -> Site:
    return load_site("local", {})


def read(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, **environment: str) -> Site:
    monkeypatch.chdir(folder)
    Path("x.toml").write_text(text)
    return load_site("x.toml", environment)


def test_every_shipped_profile_is_tested():
    assert sorted(path.name for path in SITES.glob("*.toml")) == ["local.toml", "rivanna.toml"]


def test_the_test_cluster(local):
    assert local == Site(
        name="local",
        account_required=False,
        scratch="/tmp",
        partitions=(
            SlurmPartition("standard", max_hours=1, max_nodes=2, cores_per_node=4, memory_mb_per_node=16000),
            SlurmPartition(
                "gpu", max_hours=1, max_nodes=2, cores_per_node=4, memory_mb_per_node=16000, gpus=True, max_gpus=4
            ),
            SlurmPartition("gpu-mig", max_hours=1, max_nodes=1, gpus=True, max_gpus=1),
        ),
        gpus=(
            Gpu("a100", "gpu:a100", 2, ("gpu",), computes=False),
            Gpu("v100", "gpu:v100", 4, ("gpu",), computes=False),
            Gpu("a6000", "gpu:a6000", 4, ("gpu",), computes=False),
            Gpu("mig", "gpu:1g.24gb", 1, ("gpu-mig",), cores=2, max_running_per_user=14, computes=False),
        ),
        largest_array=1000,
    )


def test_rivanna(rivanna):
    assert (rivanna.name, rivanna.account_required, rivanna.modules) == ("rivanna", True, ("apptainer",))
    assert (rivanna.scratch, rivanna.largest_array, rivanna.read) == ("/scratch/mst3k", 1000, date(2026, 11, 21))
    assert rivanna.source is not None and rivanna.source.startswith("https://github.com/uvarc/rc-website/")
    standard, parallel, gpu, interactive, slices = rivanna.partitions
    assert slices == SlurmPartition("gpu-mig", 72, 1, 1, gpus=True, max_gpus=1)
    assert standard == SlurmPartition("standard", 168, 1, 1, 96, memory_mb_per_node=1462 * 1024)
    assert parallel == SlurmPartition("parallel", 72, 2, 64, 96, 6000, 750 * 1024)
    assert gpu == SlurmPartition("gpu", 72, 1, 4, 128, memory_mb_per_node=1953 * 1024, gpus=True, max_gpus=32)
    assert interactive == SlurmPartition("interactive", 12, 1, 2, 96, 24, 216 * 1024, True, True, 2)
    assert [(gpu.kind, gpu.gres, gpu.constraint, gpu.per_node, gpu.service_units_per_hour) for gpu in rivanna.gpus] == [
        ("mig", "gpu:1g.24gb", None, 1, 0),
        ("mig_rtxpro6000", "gpu", "rtxpro6000", 1, 0),
        ("mig_a100", "gpu:1g.10gb", None, 1, 0),
        ("v100", "gpu:v100", None, 4, 2.096),
        ("rtx2080", "gpu:rtx2080", None, 10, 7.757),
        ("rtx3090", "gpu:rtx3090", None, 4, 11.323),
        ("a6000", "gpu:a6000", None, 8, 14.273),
        ("a40", "gpu:a40", None, 8, 18.669),
        ("a100", "gpu:a100", None, 8, 50.89),
        ("a100_80gb", "gpu:a100", "a100_80gb", 8, 50.89),
        ("pod", "gpu:a100", "gpupod", 8, 50.89),
    ]
    limits = {(gpu.cores, gpu.memory, gpu.max_time, gpu.max_running_per_user) for gpu in rivanna.gpus[:3]}
    assert limits == {(2, 30000, "3-00:00:00", 14)}
    assert rivanna.idle_gpu_hours == 3
    assert all(gpu.computes for gpu in rivanna.gpus)


def test_a_site_is_named_by_option_or_variable_or_path(tmp_path, monkeypatch, local):
    assert load_site(None, {"COSMICAI_SITE": "local"}) == local
    assert load_site("local", {"COSMICAI_SITE": "rivanna"}) == local
    assert load_site(str(SITES / "local.toml"), {}) == local
    assert read(tmp_path, monkeypatch, SMALLEST) == Site("x", False, "/tmp", (SlurmPartition("cpu"),))


@pytest.mark.parametrize(
    "requested, environment, message",
    [
        (None, {}, "no site is named; use --site or COSMICAI_SITE with local, rivanna or the path of a .toml file"),
        ("big", {}, "--site big: there is no such site; use local, rivanna or the path of a .toml file"),
        (
            None,
            {"COSMICAI_SITE": "../slurm/local"},
            "COSMICAI_SITE ../slurm/local: there is no such site; use local, rivanna or the path of a .toml file",
        ),
        ("not/there.toml", {}, "cannot read not/there.toml: it does not exist; check the path"),
    ],
)
def test_an_unknown_site_is_one_sentence(requested, environment, message):
    with pytest.raises(InputError) as raised:
        load_site(requested, environment)
    assert sentence(raised) == message


@pytest.mark.parametrize("environment", [{}, {"USER": ""}])
def test_without_the_variable_user_the_account_database_has_the_name(environment, monkeypatch):
    assert load_site("rivanna", environment).scratch == f"/scratch/{pwd.getpwuid(os.getuid()).pw_name}"
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)  # whom the database does not have
    with pytest.raises(InputError) as raised:
        load_site("rivanna", environment)
    assert sentence(raised) == (
        'slurm/rivanna.toml: scratch is "/scratch/$USER" and the variable USER is not set; export USER with a value'
    )


def test_variables_in_scratch(tmp_path, monkeypatch):
    def scratch(written: str) -> str:
        text = SMALLEST.replace("/tmp", written)
        return read(tmp_path, monkeypatch, text, USER="me", WORK="/big", LESS="big").scratch

    assert scratch("$WORK/of/${USER}") == "/big/of/me"
    assert scratch("/a$$b") == "/a$b"
    with pytest.raises(InputError) as raised:
        scratch("$LESS/me")
    expected = 'the absolute path of a folder, such as "/scratch/$USER"'
    assert sentence(raised) == f'x.toml: scratch is "big/me"; expected {expected}'
    with pytest.raises(InputError) as raised:
        scratch("/a$")
    assert sentence(raised) == 'x.toml: scratch is "/a$"; write a plain $ as $$'


WHOLE, RATE = "a whole number, 1 or more", "a number of service units, 0 or more"
PATH, HOURS = 'the absolute path of a folder, such as "/scratch/$USER"', "a number of hours above 0"


@pytest.mark.parametrize(
    "text, message",
    [
        (
            'name = "x"\nscratch = /tmp\n',
            "x.toml is not valid TOML: Invalid value (at line 2, column 11); correct it there",
        ),
        ('name = "x"\nscratch = [', "x.toml is not valid TOML: Invalid value (at the end, line 2); correct it there"),
        (
            "a = 1\na = 2\n",
            "x.toml is not valid TOML: Cannot overwrite a value (at line 2, column 6); correct it there",
        ),
        # missing
        ("", "x.toml: partitions is missing; give a table [partitions.NAME] for each"),
        ("[partitions.cpu]\n", "x.toml: name is missing; give a name of letters, digits, ., - and _"),
        (SMALLEST.replace('scratch = "/tmp"\n', ""), f"x.toml: scratch is missing; give {PATH}"),
        (SMALLEST.replace("account_required = false\n", ""), "x.toml: account_required is missing; give true or false"),
        (
            f"{WITH_GPUS}[gpus.a100]\nper_node = 2\n",
            'x.toml: gpus.a100.gres is missing; give a gres such as "gpu:a100"',
        ),
        (f'{WITH_GPUS}[gpus.a100]\ngres = "gpu"\n', f"x.toml: gpus.a100.per_node is missing; give {WHOLE}"),
        # unknown
        (f"largest_arry = 5\n{SMALLEST}", "x.toml: largest_arry is not known; use largest_array"),
        (f"{SMALLEST}max_hour = 5\n", "x.toml: partitions.cpu.max_hour is not known; use max_hours"),
        (
            f'{SMALLEST}name = "cpu"\n',
            "x.toml: partitions.cpu.name is not known; use max_hours, min_nodes, max_nodes, cores_per_node, max_cores, "
            "memory_mb_per_node, gpus, cpu_jobs or max_gpus",
        ),
        (f"{SMALLEST}[partition.gpu]\n", "x.toml: partition is not known; use partitions"),
        # of another type, or out of range
        (SMALLEST.replace('"x"', "5"), "x.toml: name is 5; expected a name of letters, digits, ., - and _"),
        (SMALLEST.replace('"x"', '"a b"'), 'x.toml: name is "a b"; expected a name of letters, digits, ., - and _'),
        (SMALLEST.replace("false", '"no"'), 'x.toml: account_required is "no"; expected true or false'),
        (SMALLEST.replace("/tmp", "tmp"), f'x.toml: scratch is "tmp"; expected {PATH}'),
        (f'modules = "gcc"\n{SMALLEST}', 'x.toml: modules is "gcc"; expected a list of names of modules'),
        (
            f'modules = ["gcc; date"]\n{SMALLEST}',
            'x.toml: modules is ["gcc; date"]; expected a list of names of modules',
        ),
        (f"largest_array = 0\n{SMALLEST}", f"x.toml: largest_array is 0; expected {WHOLE}"),
        (f"largest_array = true\n{SMALLEST}", f"x.toml: largest_array is true; expected {WHOLE}"),
        (
            f'read = "2026-11-21"\n{SMALLEST}',
            'x.toml: read is "2026-11-21"; expected a date without quotes, such as 2026-11-21',
        ),
        (
            f"read = 2026-11-21T10:00:00\n{SMALLEST}",
            'x.toml: read is "2026-11-21 10:00:00"; expected a date without quotes, such as 2026-11-21',
        ),
        (f"source = 5\n{SMALLEST}", "x.toml: source is 5; expected a text on one line"),
        (
            f"service_units_per_core_hour = -0.5\n{SMALLEST}",
            f"x.toml: service_units_per_core_hour is -0.5; expected {RATE}",
        ),
        (
            f"service_units_per_gb_hour = nan\n{SMALLEST}",
            f"x.toml: service_units_per_gb_hour is NaN; expected {RATE}",
        ),
        (f'{SMALLEST}max_hours = "3 days"\n', f'x.toml: partitions.cpu.max_hours is "3 days"; expected {HOURS}'),
        (f"{SMALLEST}max_hours = 0\n", f"x.toml: partitions.cpu.max_hours is 0; expected {HOURS}"),
        (f"{SMALLEST}max_hours = inf\n", f"x.toml: partitions.cpu.max_hours is Infinity; expected {HOURS}"),
        (f"{SMALLEST}max_nodes = 1.5\n", f"x.toml: partitions.cpu.max_nodes is 1.5; expected {WHOLE}"),
        (f"{SMALLEST}gpus = 2\n", "x.toml: partitions.cpu.gpus is 2; expected true or false"),
        (
            f'{WITH_GPUS}[gpus.a]\ngres = "a100"\nper_node = 1\n',
            'x.toml: gpus.a.gres is "a100"; expected a gres such as "gpu:a100"',
        ),
        (
            f'{WITH_GPUS}[gpus.a]\ngres = "gpu"\nper_node = 1\npartitions = ["cpu"]\n',
            "x.toml: gpus.a.partitions names cpu; expected partitions with gpus = true: gpu",
        ),
        (
            f'{SMALLEST}[gpus.a]\ngres = "gpu"\nper_node = 1\npartitions = ["cpu"]\n',
            "x.toml: gpus.a.partitions names cpu; expected partitions with gpus = true: there are none",
        ),
        # no tables
        ("partitions = 5\n", "x.toml: partitions is 5; expected tables [partitions.NAME]"),
        ("[partitions]\ncpu = 5\n", "x.toml: partitions.cpu is 5; expected a table [partitions.cpu]"),
        (
            '[partitions."a b"]\n',
            'x.toml: partitions has the name "a b"; expected letters, digits, ., - and _',
        ),
        (f"{SMALLEST}[[gpus]]\nper_node = 2\n", 'x.toml: gpus is [{"per_node": 2}]; expected tables [gpus.NAME]'),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence(tmp_path, monkeypatch, text, message):
    with pytest.raises(InputError) as raised:
        read(tmp_path, monkeypatch, text)
    assert sentence(raised) == message


def place(site: Site, requested: str | None, job: tuple[int, int, int, float], kind: str | None) -> SlurmPartition:
    nodes, cores, gpus, hours = job
    return site.choose_partition(
        requested, nodes=nodes, cores_per_node=cores, memory_mb_per_node=1000, gpus=gpus, hours=hours,
        gpu=site.find_gpu(kind) if kind else None,
    )  # fmt: skip


def test_a_job_with_more_memory_than_a_node_has_is_refused(rivanna):
    requested = {"nodes": 1, "cores_per_node": 8, "gpus": 0, "hours": 2}
    assert rivanna.choose_partition("standard", **requested, memory_mb_per_node=1497088).name == "standard"
    with pytest.raises(InputError) as raised:
        rivanna.choose_partition("standard", **requested, memory_mb_per_node=1497089)
    assert "has memory_mb_per_node = 1497088 and the job asks for 1497089; " in sentence(raised)


@pytest.mark.parametrize(
    "requested, job, kind, chosen",
    [
        (None, (1, 8, 0, 2), None, "standard"),
        (None, (1, 96, 0, 168), None, "standard"),
        (None, (2, 96, 0, 72), None, "parallel"),
        (None, (1, 8, 1, 2), "a100", "gpu"),
        (None, (1, 2, 1, 72), "mig", "gpu-mig"),
        (None, (4, 128, 32, 72), "a100", "gpu"),
        (None, (1, 4, 2, 12), "rtx3090", "interactive"),
        ("interactive", (1, 24, 0, 12), None, "interactive"),
        ("interactive", (2, 12, 2, 1), "rtx2080", "interactive"),
        ("parallel", (62, 96, 0, 1), None, "parallel"),
    ],
)
def test_the_partition_that_takes_a_job(rivanna, requested, job, kind, chosen):
    found = place(rivanna, requested, job, kind)
    assert found.name == chosen and found in rivanna.partitions


@pytest.mark.parametrize(
    "requested, job, kind, message",
    [
        (
            "big",
            (1, 8, 0, 2),
            None,
            "rivanna has no partition big; use standard, parallel, gpu, interactive or gpu-mig",
        ),
        (
            "standard",
            (2, 8, 0, 2),
            None,
            "partition standard of rivanna has max_nodes = 1 and the job asks for 2; use parallel or interactive",
        ),
        (
            "parallel",
            (1, 40, 0, 80.5),
            None,
            "partition parallel of rivanna has min_nodes = 2 and the job asks for 1; use standard",
        ),
        (
            "parallel",
            (64, 96, 0, 2),
            None,
            "partition parallel of rivanna has max_cores = 6000 and the job asks for 6144; no other takes it, "
            "so ask for less",
        ),
        (
            "gpu",
            (1, 8, 0, 100),
            None,
            "partition gpu of rivanna is for jobs with GPUs and the job asks for none; use standard",
        ),
        (
            "standard",
            (1, 8, 2, 20),
            "a100",
            "partition standard of rivanna has no GPUs and the job asks for 2; use gpu",
        ),
        ("gpu", (1, 8, 1, 2), "rtx2080", "partition gpu of rivanna has no GPUs of kind rtx2080; use interactive"),
        ("interactive", (1, 8, 1, 2), "a100", "partition interactive of rivanna has no GPUs of kind a100; use gpu"),
        (
            "gpu",
            (5, 8, 40, 72.5),
            "a100",
            "partition gpu of rivanna has max_nodes = 4 and the job asks for 5; no other takes it, so ask for less",
        ),
        (
            None,
            (4, 8, 8, 72.5),
            "a100",
            "no partition of rivanna takes this job: standard has no GPUs and the job asks for 8, parallel has no GPUs "
            "and the job asks for 8, gpu has max_hours = 72 and the job asks for 72.5, interactive has no GPUs of kind "
            "a100, gpu-mig has no GPUs of kind a100; ask for less",
        ),
        (
            None,
            (1, 97, 0, 1),
            None,
            "no partition of rivanna takes this job: standard has cores_per_node = 96 and the job asks for 97, "
            "parallel has min_nodes = 2 and the job asks for 1, gpu is for jobs with GPUs and the job asks for none, "
            "interactive has cores_per_node = 96 and the job asks for 97, gpu-mig is for jobs with GPUs and the job "
            "asks for none; ask for less",
        ),
        (
            None,
            (1, 8, 1, 1),
            "h100",
            "rivanna has no GPUs of kind h100; use mig, mig_rtxpro6000, mig_a100, v100, rtx2080, rtx3090, a6000, a40, "
            "a100, a100_80gb or pod",
        ),
    ],
)
def test_a_job_that_is_refused_is_one_sentence(rivanna, requested, job, kind, message):
    with pytest.raises(InputError) as raised:
        place(rivanna, requested, job, kind)
    assert sentence(raised) == message


def test_limits_that_are_not_stated_refuse_nothing():
    site = Site("x", False, "/tmp", (SlurmPartition("cpu"),))
    assert (
        site.choose_partition(None, nodes=9999, cores_per_node=9999, memory_mb_per_node=10**9, gpus=0, hours=9999).name
        == "cpu"
    )


def share(site: Site, kind: str, gpus: int, cores: int = 1, memory: int = 1000, time: str = "1:00:00") -> str:
    return site.require_share(
        site.find_gpu(kind), gpus, cores_per_node=cores, memory_mb_per_node=memory, time=time
    )  # fmt: skip


def test_gres(rivanna, local):
    assert [share(rivanna, "a100", 4), share(rivanna, "rtx2080", 10)] == ["gpu:a100:4", "gpu:rtx2080:10"]
    assert [share(rivanna, "mig", 1, 2, 30000, "3-0"), share(local, "a100", 2)] == ["gpu:1g.24gb:1", "gpu:a100:2"]
    with pytest.raises(InputError) as raised:
        local.find_gpu("h100")
    assert sentence(raised).startswith("local has no GPUs of kind h100; use a100")
    with pytest.raises(InputError) as raised:
        Site("x", False, "/tmp", (SlurmPartition("cpu"),)).find_gpu("a100")
    assert sentence(raised) == "x has no GPUs; leave --gpus out or choose another site"


WITH_SLICE = "with each GPU of kind mig of rivanna a job may have"


@pytest.mark.parametrize(
    "kind, job, message",
    [
        ("v100", (5,), "a node of rivanna has 4 GPUs of kind v100 and the job asks for 5; ask for fewer per node, on "
         "more nodes"),
        ("mig", (1, 3), f"{WITH_SLICE} 2 cores and this one asks for 3; use --cores 2 or fewer"),
        ("mig", (1, 2, 30001), f"{WITH_SLICE} 30000 MB and this one asks for 30001; use --memory-mb 30000 or less"),
        ("mig", (1, 2, 30000, "3-00:00:01"),
         f"{WITH_SLICE} 3-00:00:00 of time and this one asks for 3-00:00:01; use a shorter --time"),
    ],
)  # fmt: skip
def test_a_job_beyond_what_comes_with_a_gpu_is_refused(rivanna, kind, job, message):
    with pytest.raises(InputError) as raised:
        share(rivanna, kind, *job)
    assert sentence(raised) == message


def test_service_units_by_hand(rivanna, local):
    # 2 h on 10 cores at 0.464 and 20 GB at 0.0284
    assert rivanna.compute_service_units(10, 0, None, 2.0, memory_mb=20480) == pytest.approx(2 * (4.64 + 0.568))
    # half an hour on 4 A100s at 50.89, 16 cores at 0.403 and 100 GB at 0.043
    units = rivanna.compute_service_units(16, 4, rivanna.find_gpu("a100"), 0.5, memory_mb=102400)
    assert units == pytest.approx((203.56 + 6.448 + 4.3) / 2)
    assert rivanna.compute_service_units(2, 1, rivanna.find_gpu("mig"), 72.0, memory_mb=30000) == 0.0
    assert local.compute_service_units(4, 0, None, 1.0, memory_mb=500) is None
    assert local.compute_service_units(4, 1, local.find_gpu("a100"), 1.0, memory_mb=500) is None
    # The nodes of a kind that states no rates for cores and memory are charged as the site's others.
    plain = Gpu("a", "gpu:a", 2, service_units_per_hour=3.0)
    site = Site("x", False, "/tmp", (SlurmPartition("gpu", gpus=True),), (plain,), service_units_per_core_hour=1.0)
    assert site.compute_service_units(5, 2, site.gpus[0], 2.0, memory_mb=1024) == 22.0
    # What GPUs are charged is not known, though cores are.
    site = Site("x", False, "/tmp", site.partitions, (Gpu("a", "gpu:a", 2),), service_units_per_core_hour=1.0)
    assert site.compute_service_units(5, 2, site.gpus[0], 2.0, memory_mb=0) is None
    assert site.compute_service_units(5, 0, None, 2.0, memory_mb=0) == 10.0


def test_an_account_is_required_where_one_is_charged(rivanna, local):
    local.require_account(None)
    rivanna.require_account("mygroup")
    for none in (None, ""):
        with pytest.raises(InputError) as raised:
            rivanna.require_account(none)
        assert sentence(raised) == "rivanna charges jobs to an account; name yours with --account"


@pytest.mark.parametrize(
    "tasks, sizes",
    [
        (0, []),
        (1, [1]),
        (1000, [1000]),
        (1001, [501, 500]),
        (2500, [834, 833, 833]),
        (3001, [751, 750, 750, 750]),
    ],
)
def test_arrays_of_tasks(local, tasks, sizes):
    assert local.split_array(tasks) == sizes


def test_arrays_without_a_limit_are_one():
    site = Site("x", False, "/tmp", (SlurmPartition("cpu"),))
    assert (site.split_array(2500), site.split_array(0)) == ([2500], [])


@pytest.mark.parametrize(
    "time, seconds",
    [
        ("1", 60),
        ("90", 5400),
        ("1:30", 90),
        ("90:00", 5400),
        ("0:1", 1),
        ("1:30:00", 5400),
        ("01:02:03", 3723),
        ("100:00:01", 360001),
        ("2-0", 172800),
        ("2-12", 216000),
        ("1-1:30", 91800),
        ("1-01:02:03", 90123),
        ("0-0:0:1", 1),
        ("7-00:00:00", 604800),
    ],
)
def test_times_as_slurm_writes_them(time, seconds):
    assert parse_time_limit(time) == seconds


@pytest.mark.parametrize(
    "time",
    [
        *(
            "",
            "0",
            "0:00:00",
            "0-0",
            "1h",
            "3 days",
            "1:60",
            "1:99:00",
            "1-24",
            "1-2:60",
            "1:2:3:4",
            "1-2-3",
            "1-",
            "-1",
        ),
        *("+5", "1.5", " 5", "5\n", "UNLIMITED", "٣"),
    ],
)
def test_an_invalid_time_limit_is_one_sentence(time):
    with pytest.raises(InputError) as raised:
        parse_time_limit(time)
    assert sentence(raised) == (
        f"{time!r} is not a time limit; write minutes, minutes:seconds, hours:minutes:seconds, days-hours, "
        "days-hours:minutes or days-hours:minutes:seconds, such as 1:30:00"
    )


def test_a_pipe_in_the_place_of_a_profile_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(path := tmp_path / "site.toml")
    with pytest.raises(InputError, match=f"cannot read {path}: it is a pipe where a file was expected"):
        load_site(str(path), {})
