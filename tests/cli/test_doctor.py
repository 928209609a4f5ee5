"""`difftool doctor`: the report as a person reads it, and every way in which asking torch can end."""

import json
import os
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from nsys.installing import install_nsys

from difftool.cli import doctor, machine
from difftool.cli.machine import Folder, Machine, Package, Probe, Variable, in_range
from difftool.families import index

STANDIN = Path(__file__).with_name("standin_probe.py")


@pytest.fixture
def probe(monkeypatch):
    """Makes the next runs ask the stand-in, behaving as told."""

    def use(behaviour):
        monkeypatch.setattr(machine, "PROBE", (sys.executable, str(STANDIN), behaviour))

    return use


def answers(behaviour="succeed"):
    """What a machine with two GPUs answers."""
    environment = {"PATH": "/usr/bin"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "PROBE", (sys.executable, str(STANDIN), behaviour))
        return machine.ask_torch(environment, timeout_s=20)


def a_machine(torch, **changes):
    facts = {
        "difftool": "0.1.0",
        "python": "3.12.1",
        "executable": "/venv/bin/python",
        "platform": "Linux-6.1-x86_64",
        "usable_cores": 8,
        "memory_mb": 64 * 1024,
        "temporary": Folder("/tmp", 10 * 1024),
        "hub_cache": Folder("/home/me/hub", 512),
        "hub_offline": True,
        "ffmpeg": {"path": "/usr/bin/ffmpeg", "version": "7.0.2"},
        "nsys": {"path": "/usr/bin/nsys", "version": "2024.6.2.225"},
        "packages": (
            Package("torch", "2.13.0", ">=2.11"),
            Package("peft", None, gives="model.lora: [a]", available=False, install="pip install peft"),
            Package("flash-attn", "2.8.3", gives="stages.denoising.attention: fa2", install=None),
        ),
        "variables": (Variable("OMP_NUM_THREADS", "3", "replaced by launch.threads"),),
        "torch": torch,
        "faults": (),
    }
    return Machine(**{**facts, **changes})


REPORT = """\
difftool 0.1.0 runs here, on cuda

machine
  python         3.12.1, /venv/bin/python
  platform       Linux-6.1-x86_64
  cpu            8 usable cores, 64.0 GiB of memory
  temporary      /tmp, 10.0 GiB free
  hub cache      /home/me/hub, 0.5 GiB free, offline
  ffmpeg         7.0.2, /usr/bin/ffmpeg
  nsys           2024.6.2.225, /usr/bin/nsys

packages
  torch          2.13.0
  peft           not installed; for model.lora: [a], not available yet: pip install peft
  flash-attn     2.8.3, for stages.denoising.attention: fa2

torch
  build           2.13.0, CUDA 13.0, driver 580.65
  cuda:0          NVIDIA H100 80GB HBM3, capability 9.0, 79.1 of 79.6 GiB free; fp32, fp16, bf16, fp8
  cuda:1          NVIDIA H100 80GB HBM3, capability 9.0, 79.1 of 79.6 GiB free; fp32, fp16, bf16; no fp8: not today
  cpu             Some CPU, capability AVX512; fp32, fp16, bf16, fp8
  no peer access  0 to 1, 1 to 0
  gloo            works
  nccl            no: no network
  torch.compile   no: InvalidCxxCompiler: No working C++ compiler found

attention
  torch_sdpa         works
  fa2                no: needs flash-attn, which is not installed; install: pip install flash-attn
  cudnn              no: its result is wrong
  vmoba_attn         works, by kernel varlen
  video_sparse_attn  works, by kernel flex: kernel fastvideo needs fastvideo-kernel
  sage_attn          works

variables
  OMP_NUM_THREADS  3  (replaced by launch.threads)"""


def test_the_report_says_what_works_and_why_the_rest_does_not():
    assert doctor.render(a_machine(answers())) == REPORT


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"runtime": None}, "no gpu         there is an NVIDIA driver, and this torch is built without CUDA"),
        ({"no_accelerator": "The NVIDIA driver on your system is too old"}, "no gpu         The NVIDIA driver on"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_pointed_at(change, line):
    build = {**answers().found["torch"], **change}
    assert line in doctor.render(a_machine(Probe({"torch": build})))


def test_a_broken_ffmpeg_costs_the_videos_only():
    report = doctor.render(a_machine(answers(), ffmpeg={"path": "/f", "error": "Unknown encoder 'libx264'"}))
    assert "ffmpeg         no mp4 or gif: Unknown encoder 'libx264'" in report
    assert report.startswith("difftool 0.1.0 runs here")


def test_nsys_is_asked_for_its_version(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(install_nsys(tmp_path)), prepend=os.pathsep)
    path = str(tmp_path / "bin" / "nsys")
    assert machine.nsys() == {"path": path, "version": "2026.1.1.1-1"}
    monkeypatch.setattr(machine, "nvtx_fault", lambda: "nvtx is old")
    assert "nsys           no --tool nsys: nvtx is old; pip install" in doctor.render(
        a_machine(answers(), nsys=machine.nsys())
    )
    (tmp_path / "bin" / "nsys").write_text("#!/bin/sh\nexit 3\n")
    assert machine.nsys()["error"].endswith("returned non-zero exit status 3.")
    monkeypatch.setenv("PATH", "/nowhere")
    assert machine.nsys() == {"error": "none on PATH; install NVIDIA Nsight Systems"}


def test_json_is_one_object(difftool, probe):
    probe("succeed")
    answer = difftool("doctor", "--json")
    found = json.loads(answer.out)
    assert (answer.code, found["faults"], found["torch"]["fault"]) == (0, [], None)
    assert found["torch"]["found"]["devices"]["devices"][1]["name"] == "cuda:1"
    assert found["difftool"] == metadata.version("difftool")
    assert {"name": "torch", "version": metadata.version("torch")}.items() <= found["packages"][
        [package["name"] for package in found["packages"]].index("torch")
    ].items()


@pytest.mark.parametrize(
    ("behaviour", "fault"),
    [
        ("no_torch", "ModuleNotFoundError: No module named 'torch'"),
        ("no_libraries", "diffusers and transformers cannot be imported: No module named 'transformers'"),
    ],
)
def test_what_difftool_cannot_run_without_is_exit_3(difftool, probe, behaviour, fault):
    probe(behaviour)
    answer = difftool("doctor")
    assert answer.code == 3
    assert answer.out.splitlines()[1] == f"  {fault}"
    assert answer.out.splitlines()[0].endswith(" cannot run here")
    as_json = difftool("doctor", "--json")
    assert (as_json.code, json.loads(as_json.out)["faults"]) == (3, [fault])


def test_a_kernel_that_ends_the_process_is_named_and_stops_nothing_else(difftool, probe):
    probe("killed")
    answer = difftool("doctor")
    assert answer.code == 0
    assert "  ended early" in answer.out and "torch ended by SIGSEGV, asked about attention sage_attn\n" in answer.out
    assert "  torch_sdpa         works\n" in answer.out


def test_a_kernel_that_hangs_is_given_up():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "PROBE", (sys.executable, str(STANDIN), "hang"))
        late = machine.ask_torch({}, timeout_s=3)
    assert late.fault == "torch gave no answer in 3 s, asked about attention sage_attn"
    assert late.found["compile"]


def test_a_package_out_of_range_is_a_fault(monkeypatch, difftool, probe):
    probe("succeed")
    monkeypatch.setattr(
        metadata, "requires", lambda name: ["rich>=99,<100", "nowhere-at-all>=1", "scipy; extra == 'x'"]
    )
    answer = difftool("doctor")
    assert answer.code == 3
    version = metadata.version("rich")
    assert answer.out.splitlines()[1:3] == [
        f"  rich {version}: difftool needs >=99,<100",
        "  nowhere-at-all: not installed",
    ]
    words = [line.split(maxsplit=2) for line in answer.out.splitlines()]
    assert ["rich", version, "difftool needs >=99,<100: pip install 'rich>=99,<100'"] in words
    assert "scipy" not in answer.out


def test_what_a_family_imports_is_listed_with_its_users(monkeypatch):
    (family, *_) = index.all_families()
    ((_, facts), *_) = family.pipelines.items()
    needing = replace(facts, packages={"ftfy-of-nowhere": "pip install ftfy", "rich": "pip install rich"})
    one = replace(family, pipelines={"APipeline": needing, "BPipeline": needing, "CPipeline": facts})
    monkeypatch.setattr(index, "all_families", lambda: (one,))
    assert machine.packages()[-2:] == (
        Package("ftfy-of-nowhere", None, gives="APipeline, BPipeline", install="pip install ftfy"),
        Package("rich", metadata.version("rich"), gives="APipeline, BPipeline"),
    )


@pytest.mark.parametrize(
    ("version", "versions", "inside"),
    [
        ("2.13.0+cpu", ">=2.11", True),
        ("2.9.1", ">=2.11", False),
        ("0.43.0", "<0.43,>=0.42", False),
        ("0.42.9", "<0.43,>=0.42", True),
        ("3", ">=3.0", True),
        ("3.0rc1", "<3", False),
        ("1", "", True),
    ],
)
def test_versions_compare_by_their_numbers(version, versions, inside):
    assert in_range(version, versions) is inside


def test_variables_are_told_with_what_becomes_of_them_and_secrets_are_not():
    given = {
        "DIFFUSERS_ATTN_BACKEND": "flash",
        "FASTVIDEO_VSA_TRITON": "1",
        "HF_HOME": "/models",
        "HF_TOKEN": "hf_x",
        "HOME": "/home/me",
        "LOCAL_RANK": "1",
        "OMP_NUM_THREADS": "3",
        "PYTHONUNBUFFERED": "1",
        "SGLANG_CACHE_DIT_FN": "1",
        "TORCH_LOGS": "dynamo",
    }
    assert [(variable.name, variable.remark) for variable in machine.variables(given)] == [
        ("DIFFUSERS_ATTN_BACKEND", "the denoiser takes stages.denoising.attention instead"),
        ("FASTVIDEO_VSA_TRITON", "the denoiser takes stages.denoising.attention instead"),
        ("HF_HOME", "passed on"),
        ("LOCAL_RANK", "not passed on: difftool starts its ranks itself"),
        ("OMP_NUM_THREADS", "replaced by launch.threads"),
        ("SGLANG_CACHE_DIT_FN", "difftool reads no such variable"),
        ("TORCH_LOGS", "passed on"),
    ]


def test_torch_is_asked_without_the_hub_and_outside_any_world(tmp_path, monkeypatch):
    script = tmp_path / "probe.py"
    script.write_text(
        "import json, os\n"
        "print(json.dumps({'name': 'libraries', 'found': {k: os.environ.get(k) for k in ('HF_HUB_OFFLINE', 'RANK')}}))"
    )
    monkeypatch.setattr(machine, "PROBE", (sys.executable, str(script)))
    assert machine.ask_torch({"RANK": "1"}).found["libraries"] == {"HF_HUB_OFFLINE": "1", "RANK": None}


def test_a_folder_that_is_not_there_yet_has_its_disk(tmp_path):
    assert machine.folder(str(tmp_path / "a" / "b")).free_mb == pytest.approx(
        machine.folder(str(tmp_path)).free_mb, 0.1
    )


def test_the_ffmpeg_that_difftool_uses_is_tried(monkeypatch, tmp_path):
    import imageio_ffmpeg

    assert set(machine.ffmpeg()) == {"path", "version"}
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\necho \"Unknown encoder 'libx264'\" >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(broken))
    assert machine.ffmpeg() == {"path": str(broken), "error": "Unknown encoder 'libx264'"}


@pytest.mark.slow
def test_this_machine_is_examined(difftool):
    """The real probe: what these tests run with works by its account too."""
    answer = difftool("doctor", "--json")
    found = json.loads(answer.out)["torch"]
    assert (answer.code, found["fault"]) == (0, None)
    (cpu,) = [device for device in found["found"]["devices"]["devices"] if device["name"] == "cpu"]
    assert "fp32" not in cpu["refused_precisions"]
    assert found["found"]["torch"]["version"] == metadata.version("torch")
    assert found["found"]["collectives"]["gloo"] is None
    assert found["found"]["attention torch_sdpa"] == found["found"]["attention flex"] == {}
    assert found["found"]["attention vmoba_attn"]["kernel"] == "flex"
    on_cpu = found["found"]["attention fa3"]
    assert on_cpu["error"].startswith("runs on CUDA, and this is a CPU; needs flash-attn-3") and on_cpu["install"]
