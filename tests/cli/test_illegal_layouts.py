"""Layouts that cannot be: each is refused by the plan with what is wrong and what would do, and nothing is launched."""

import pytest
import yaml

WAN = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"  # 40 heads, two branches
DEV = "black-forest-labs/FLUX.1-dev"  # 24 heads, one branch unless a negative prompt is given
SD3 = "stabilityai/stable-diffusion-3.5-medium"
SHAPES = "builtin:shapes-image"
FOREIGN = "AIDC-AI/Ovis-Image-7B"  # run by diffusers
STEPS = [{"prompt": "a", "num_inference_steps": 4}, {"prompt": "b", "num_inference_steps": 5}]
NODES = {"nnodes": 2, "rdzv_endpoint": "node0:29500"}


def parallel(**degrees):
    return {"parallel": degrees}


ILLEGAL = [
    (
        WAN,
        parallel(num_gpus=6, ulysses=3),
        "parallel.ulysses=3 does not divide 40 attention heads; valid: 1, 2, 4, 5, 8, 10, 20, 40",
    ),
    (WAN, parallel(tp=3), "parallel.tp=3 does not divide 40 attention heads; valid: 1, 2, 4, 5, 8, 10, 20, 40"),
    (
        DEV,
        parallel(num_gpus=16, ulysses=8, tp=2),
        "parallel.ulysses=8 and tp=2 share 24 attention heads among 16; use ulysses=1, 2, 3, 4, 6 or 12",
    ),
    (
        WAN,
        parallel(num_gpus=8, cfg=2, ulysses=8),
        "parallel: num_gpus=8 but cfg·ulysses = 2·8 = 16; free one of them (auto), or use ulysses=4",
    ),
    (
        WAN,
        parallel(num_gpus=5, dp=2, cfg=2),
        "parallel: num_gpus=5 but dp·cfg = 2·2 = 4; free one of them (auto), or use num_gpus=4",
    ),
    (WAN, parallel(num_gpus=0), "parallel.num_gpus: 0 is not a whole number of at least 1, or auto"),
    (
        WAN,
        parallel(sp=8, ulysses=2, ring=2),
        "parallel.sp=8 but ulysses·ring = 2·2 = 4; free one of them (auto)",
    ),
    (
        DEV,
        parallel(cfg=2),
        "parallel.cfg=2, but this request runs one guidance branch; use cfg=1, or give a negative prompt with a "
        "guidance that uses it",
    ),
    (WAN, parallel(cfg=3), "parallel.cfg=3, but this request runs 2 guidance branches; use cfg=2"),
    (SD3, parallel(cfg=3), "parallel.cfg=3, but this request runs 2 guidance branches; use cfg=2"),
    (
        WAN,
        parallel(num_gpus=4, tp=2, hsdp="all"),
        "parallel.hsdp=all shards over the ranks that tensor parallel splits; use tp=1 or hsdp=none",
    ),
    (WAN, parallel(num_gpus=4, hsdp=3), "parallel.hsdp=3 does not divide num_gpus=4; valid: 2, 4"),
    (
        WAN,
        parallel(hsdp="all"),
        "parallel.hsdp=all: one rank has nobody to share weights with; use num_gpus=2 or more, or hsdp=none",
    ),
    (
        SHAPES,
        {**parallel(num_gpus=2, hsdp="all"), "sampling": {"prompts": STEPS}},
        "parallel.hsdp=all: replicas share weights, so their items must run equally many forwards, and "
        "sampling.num_inference_steps differs; give it all items alike, or use hsdp=none",
    ),
    (
        SHAPES,
        {**parallel(num_gpus=4), "stages": {"text_encoding": {"tp": 3}}},
        "stages.text_encoding.tp=3, and 4 ranks make an item together; use 1 or 4",
    ),
    (
        SHAPES,
        {**parallel(num_gpus=2), "stages": {"text_encoding": {"tp": 2, "offload": "after_use"}}},
        "stages.text_encoding.tp=2 leaves a part of each encoder on every rank, and stages.text_encoding.offload moves "
        "whole ones; use one of them",
    ),
    (
        WAN,
        {"stages": {"decoding": {"parallel": "tiled"}}},
        "stages.decoding.parallel=tiled deals tiles to the ranks that make an item, and one makes it; use none, or "
        "split items by cfg, ulysses, ring or tp",
    ),
    (FOREIGN, parallel(ulysses=2), "parallel.ulysses=2: this model is split along dp alone; use ulysses=1"),
    (
        FOREIGN,
        parallel(num_gpus=2),
        "parallel: num_gpus=2, and this model is split along dp alone; use dp=2, a replica on each rank",
    ),
    (
        SHAPES,
        {**parallel(num_gpus=2), "launch": {"device": "mps"}},
        "launch.device=mps has one device, and num_gpus=2; use num_gpus=1",
    ),
    (
        WAN,
        {**parallel(num_gpus=8), "launch": {"nnodes": 2}},
        "launch: nnodes=2 needs rdzv_endpoint: host:port, an address of node 0",
    ),
    (
        WAN,
        {**parallel(num_gpus=8), "launch": {**NODES, "node_rank": 2}},
        "launch: node_rank=2 with nnodes=2; ranks count from 0",
    ),
    (
        WAN,
        {**parallel(num_gpus=9, ring=9), "launch": NODES},
        "launch.nnodes=2 does not divide num_gpus=9, which counts those of all nodes; use num_gpus=8 or num_gpus=10, "
        "or nnodes: 1, 3, 9",
    ),
    (
        WAN,
        {**parallel(num_gpus=8), "launch": {"rdzv_endpoint": "node0:29500"}},
        "launch.rdzv_endpoint is where several nodes meet; give nnodes too, or leave it out",
    ),
]


@pytest.mark.parametrize(("model", "sections", "message"), ILLEGAL, ids=[case[2][:50] for case in ILLEGAL])
def test_an_illegal_layout_is_refused_with_the_way_out(difftool, tmp_path, model, sections, message):
    recipe = {"model": model, "sampling": {"prompt": "x"}, **sections}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    answer = difftool("plan", str(tmp_path / "r.yaml"))
    assert answer.code in (2, 3)
    assert message in answer.err or message in answer.out
    assert "parallel" in message or "launch" in message or "stages" in message


def test_items_that_fail_alone_need_replicas_of_one_rank(difftool):
    answer = difftool("generate", SHAPES, "-p", "x", "--num-gpus", "2", "--keep-going", "--dry-run")
    assert answer.code == 2
    assert "--keep-going: an item that fails in one rank leaves those waiting that make it together" in answer.err
