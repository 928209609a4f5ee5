"""Two machines make the picture of one rank: two network namespaces joined by a cable, else two commands on loopback.

Each has a temporary folder and a current folder of its own; the second one sees nothing of the first's output.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from launch.test_nodes import free_port
from PIL import Image
from tiny import ROOT, difftool, read_json

REQUEST = (
    "generate",
    "builtin:shapes-image",
    "-p",
    "a green triangle",
    "--num-inference-steps",
    "4",
    "--device",
    "cpu",
)
SPLIT = ("--num-gpus", "2", "--ulysses-degree", "2", "--nnodes", "2")
# root of namespaces of its own: one network for each node, and nothing is left of them when their processes have ended
CABLE = """
ip link set lo up
unshare --net sleep 1000 >/dev/null 2>&1 & other=$!
trap "kill $other" EXIT
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
inside="nsenter --net --target $other"
ip link add cable type veth peer name cable netns $other
ip addr add 10.77.0.1/24 dev cable && ip link set cable up
$inside ip addr add 10.77.0.2/24 dev cable && $inside ip link set cable up && $inside ip link set lo up
(cd node-1 && TMPDIR="$PWD" exec $inside {second}) & node=$!
(cd node-0 && TMPDIR="$PWD" exec {first}); code=$?
wait $node; echo "codes: $code $?"
"""
LOOPBACK = """
(cd node-1 && TMPDIR="$PWD" exec {second}) & node=$!
(cd node-0 && TMPDIR="$PWD" exec {first}); code=$?
wait $node; echo "codes: $code $?"
"""


def may_have_namespaces():
    script = "ip link add cable type veth peer name plug && unshare --net true && command -v nsenter"
    try:
        tried = subprocess.run(["unshare", "--map-root-user", "--net", "sh", "-c", script], capture_output=True)
    except FileNotFoundError:
        return False
    return tried.returncode == 0


@pytest.fixture(params=["namespaces", "loopback"])
def cluster(request):
    """Runs a request on two nodes: (folder) -> exit codes, stdout and stderr of both."""
    apart = request.param == "namespaces"
    if apart and not may_have_namespaces():
        pytest.skip("this machine allows no network namespaces")

    def run(folder, *arguments, path=ROOT):
        where = f"10.77.0.1:{29400}" if apart else f"127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "difftool", *REQUEST, *SPLIT, "--rdzv-endpoint", where, "-o", "out/"]
        told = [shlex.join([*command, *arguments, "--node-rank", str(node)]) for node in (0, 1)]
        for node in (0, 1):
            (folder / f"node-{node}").mkdir()
        script = (CABLE if apart else LOOPBACK).format(first=told[0], second=told[1])
        space = ["unshare", "--map-root-user", "--net", "--kill-child"] if apart else []
        environment = {**os.environ, "PYTHONPATH": str(path), "NO_COLOR": "1"}
        done = subprocess.run(
            [*space, "bash", "-c", script],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        *out, codes = done.stdout.splitlines()
        return codes.removeprefix("codes: "), out, done.stderr

    return run


@pytest.fixture
def folder():
    """A folder with a short path."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def pixels(file):
    return np.asarray(Image.open(file), dtype=int)


@pytest.mark.slow
def test_two_nodes_make_the_picture_of_one_rank(cluster, folder):
    codes, out, err = cluster(folder, "--perf-dump-path", "perf.json")
    assert codes == "0 0", err
    (name,) = out
    alone = difftool(*REQUEST, "-o", "one/", cwd=folder)
    assert alone.returncode == 0, alone.stderr
    picture = pixels(folder / "node-0" / name)
    assert picture.std() > 20  # of a picture, and not of nothing
    assert np.abs(picture - pixels(folder / "one" / Path(name).name)).max() <= 1  # the last digit may round
    dump = read_json(folder / "node-0" / "perf.json")
    assert [rank["rank"] for rank in dump["ranks"]] == [0, 1] and len(dump["samples"]) == 1
    assert "node 1 of 2: node 0 ended the run with exit code 0" in err
    assert [path.name for path in folder.glob("node-1/*") if path.is_file() or path.name.startswith("difftool")] == []


SABOTAGE = """
import os, signal, sys
if "difftool.worker" in sys.orig_argv and any(word.startswith("1:2:") for word in sys.orig_argv):
    from difftool.stages.denoising import DenoisingStage
    one_step = DenoisingStage.one_step

    def fail(self, *arguments):
        if arguments[-1] == 1:
            print("the last words", flush=True)
            {cause}
        return one_step(self, *arguments)

    DenoisingStage.one_step = fail
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cluster", "cause", "code", "words"),
    [
        (
            "namespaces",
            "os.kill(os.getpid(), signal.SIGKILL)",
            6,
            "rank 1 was killed by SIGKILL, likely out of host memory",
        ),
        (
            "loopback",
            "raise ValueError('the rope broke')",
            1,
            "internal error: ValueError: the rope broke (rank 1, denoising, item 0)",
        ),
    ],
    indirect=["cluster"],
)
def test_the_first_node_tells_what_failed_on_the_other(cluster, folder, cause, code, words):
    (folder / "sitecustomize.py").write_text(SABOTAGE.format(cause=cause))
    codes, out, err = cluster(folder, "--json", path=f"{folder}{os.pathsep}{ROOT}")
    assert codes == f"{code} {code}" and f"error: {words}" in err, err
    assert json.loads(out[-1])["rank"] == 1
    (records,) = (folder / "node-0" / "out" / ".difftool").iterdir()
    assert "the last words" in (records / "worker.log").read_text()
    assert code == 6 or read_json(records / "perf.json")["error"]["message"] == "the rope broke"  # the other node's
    assert not list(folder.glob("node-*/out/*.png*")) and not list(folder.glob("node-*/difftool-ranks-*"))
