"""Profiling on the command line: flags that say what is recorded, and the tables of what was."""

import os
from importlib import metadata
from pathlib import Path

import pytest
from nsys.installing import install_nsys

from difftool.cli.profiled import profile_lines
from difftool.launch.records import PLAN_FILE
from difftool.planning.plan import Plan
from difftool.report.perf import KernelTime, Profile, TraceFile

REQUEST = ("builtin:shapes-image", "-p", "a red circle", "-q")


def recorded(difftool, *arguments: str):
    """What the plan of a run says of its profile."""
    assert difftool(*arguments).code == 0
    (plan,) = Path("outputs/.difftool").glob(f"*/{PLAN_FILE}")
    return Plan.model_validate_json(plan.read_bytes()).profile


@pytest.mark.parametrize(
    ("arguments", "steps", "all_stages"),
    [
        (("profile", *REQUEST), 5, False),
        (("profile", *REQUEST, "--num-profiled-timesteps", "2"), 2, False),
        (("profile", *REQUEST, "--profile-all-stages"), 5, True),
        (("generate", *REQUEST, "--profile", "--num-profiled-timesteps", "1"), 1, False),
    ],
)
def test_the_flags_say_what_is_recorded(difftool, worker, arguments, steps, all_stages):
    worker("succeed")
    profile = recorded(difftool, *arguments)
    assert (profile.steps, profile.all_stages) == (steps, all_stages)


@pytest.mark.parametrize(
    ("flags", "delay", "duration", "snapshot"),
    [
        ((), None, None, False),
        (("--delay", "20", "--duration", "30"), 20, 30, False),
        (("--memory-snapshot",), None, None, True),
    ],
)
def test_nsys_records_every_stage_in_its_window(difftool, monkeypatch, tmp_path, flags, delay, duration, snapshot):
    monkeypatch.setenv("PATH", str(install_nsys(tmp_path)), prepend=os.pathsep)
    plans = []
    monkeypatch.setattr("difftool.cli.generate.launch_plan", lambda plan, *_, **__: plans.append(plan))
    assert difftool("profile", *REQUEST, "--tool", "nsys", *flags).code == 0
    profile = plans[0].profile
    assert (profile.tool, profile.all_stages, profile.memory_snapshot) == ("nsys", True, snapshot)
    assert (profile.delay, profile.duration) == (delay, duration)


@pytest.mark.parametrize(
    ("version", "message", "hint"),
    [
        (None, "the package nvtx, which names what runs, is not installed", "pip install 'nvtx<0.2.12'"),
        (
            "0.2.17",
            "nvtx 0.2.17 is installed, whose ranges some versions of nsys do not record",
            "pip install 'nvtx<0.2.12'",
        ),
    ],
)
def test_an_nvtx_that_names_nothing_is_refused(difftool, monkeypatch, tmp_path, version, message, hint):
    monkeypatch.setenv("PATH", str(install_nsys(tmp_path)), prepend=os.pathsep)
    real = metadata.version

    def of(name):
        if name != "nvtx":
            return real(name)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", of)
    answer = difftool("profile", *REQUEST, "--tool", "nsys")
    assert (answer.code, answer.err) == (3, f"error: --tool nsys: {message}\nhint: {hint}\n")
    assert not Path("outputs").exists()


def test_what_nsys_lacks_here_is_told_before_anything_starts(difftool, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    answer = difftool("profile", *REQUEST, "--tool", "nsys")
    assert answer.code == 3
    assert answer.err == (
        "error: --tool nsys: there is no nsys on PATH\n"
        "hint: install NVIDIA Nsight Systems, from https://developer.nvidia.com/nsight-systems, and put it on PATH\n"
    )
    assert not Path("outputs").exists()


def test_nsys_is_not_asked_for_ranks_of_other_machines(difftool, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(install_nsys(tmp_path)), prepend=os.pathsep)
    nodes = ("--nnodes", "2", "--num-gpus", "2", "--rdzv-endpoint", "127.0.0.1:29500")
    answer = difftool("profile", *REQUEST, "--tool", "nsys", *nodes)
    assert answer.code == 3
    assert answer.err == (
        "error: --tool nsys records ranks that difftool itself starts on one machine, and these are not\n"
        "hint: use --tool torch here\n"
    )


def test_a_plain_run_records_nothing(difftool, worker):
    worker("succeed")
    assert recorded(difftool, "generate", *REQUEST) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "--num-profiled-timesteps", "3"), "--num-profiled-timesteps says what --profile records"),
        (("generate", "--profile-all-stages"), "--profile-all-stages says what --profile records"),
        (
            ("profile", "--profile-all-stages", "--num-profiled-timesteps", "3"),
            "--profile-all-stages records every step",
        ),
        (("profile", "--num-profiled-timesteps", "0"), "--num-profiled-timesteps 0 records nothing"),
        (("profile", "--delay", "3"), "--delay says when nsys records"),
        (("profile", "--duration", "3"), "--duration says when nsys records"),
        (
            ("profile", "--tool", "nsys", "--profile-all-stages"),
            "--profile-all-stages is of --tool torch: nsys records every stage and step",
        ),
        (
            ("profile", "--tool", "nsys", "--num-profiled-timesteps", "3"),
            "--num-profiled-timesteps is of --tool torch: nsys records every stage and step",
        ),
        (("profile", "--tool", "nsys", "--delay", "0"), "--delay 0 is no number of seconds"),
        (("profile", "--tool", "nsys", "--duration", "-3"), "--duration -3 is no number of seconds"),
        (
            ("profile", "--num-inference-steps", "1"),
            "sampling.num_inference_steps=1 leaves no step to record after the one to warm up; record all stages "
            "(--profile-all-stages)",
        ),
    ],
)
def test_flags_that_would_record_nothing_are_refused(difftool, arguments, message):
    command, *flags = arguments
    answer = difftool(command, *REQUEST, *flags)
    assert answer.code == 2
    assert f"error: {message}\n" in answer.err
    assert not Path("outputs").exists()


def test_the_tables_are_aligned_and_shares_below_half_a_per_cent_left_out():
    profile = Profile(
        tool="torch",
        stages=["denoising"],
        steps=[1, 2, 3],
        traces=[TraceFile(rank=0, path="../../x-3_steps-global-rank0.trace.json.gz")],
        kernels=[KernelTime(name="aten::addmm", calls=432, ms=63.84, share_pct=13.24)],
        kinds_ms={"matmul": 63.84, "other": 36.0, "copies": 0.16},
    )
    assert profile_lines(profile, Path("outputs/.difftool/run")) == [
        "recorded denoising: steps 1 to 3, with the profiler's own time",
        "   self ms    share   calls  operation",
        "      63.8  13.2 %     432  aten::addmm",
        "where the time went: matmul 64 %, other 36 %",
        "trace: outputs/x-3_steps-global-rank0.trace.json.gz",
        "open traces in https://ui.perfetto.dev",
    ]
    assert profile_lines(None, Path()) == []


def test_a_report_and_snapshots_are_named_with_how_to_open_them():
    profile = Profile(
        tool="nsys",
        stages=["denoising"],
        steps=[0],
        report="../../x-all_ranks.nsys-rep",
        snapshots=[TraceFile(rank=rank, path=f"../../x-memory-global-rank{rank}.pickle") for rank in (0, 1)],
    )
    assert profile_lines(profile, Path("my outputs/.difftool/run")) == [
        "report: 'my outputs/x-all_ranks.nsys-rep'",
        "open it with: nsys-ui 'my outputs/x-all_ranks.nsys-rep'",
        "or print it: nsys stats 'my outputs/x-all_ranks.nsys-rep'",
        "memory snapshot: my outputs/x-memory-global-rank0.pickle",
        "memory snapshot: my outputs/x-memory-global-rank1.pickle",
        "open snapshots in https://pytorch.org/memory_viz",
    ]


def test_the_page_of_the_command_says_what_records(difftool):
    page = difftool("profile", "--help").out
    assert page.partition("\nOptions:\n")[2] == (
        "  -c, --config RECIPE  the same as RECIPE\n"
        "  -s, --set KEY=VALUE  any key of the recipe; repeatable\n"
        "  --help-all           show every flag\n"
        "  --tool torch|nsys    what records: torch's profiler or Nsight Systems\n"
        "  --delay SECONDS      nsys: wait so long before it records\n"
        "  --duration SECONDS   nsys: record for so long; else to the end\n"
        "  --memory-snapshot    CUDA: write down every allocation of the first item\n"
        "  -q, --quiet          print only the paths of the media\n"
        "  -v, --verbose        show the worker's log on stderr\n"
        "  --json               print every event as one JSON object a line\n"
        "  --dry-run            print the plan and launch nothing, as `difftool plan`\n"
        "  --help               show this page\n"
    )
