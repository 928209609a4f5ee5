"""Which attention backend is chosen where, what is refused and why, and whether the kernels compute attention."""

from importlib import metadata

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from difftool.acceleration import doctor
from difftool.acceleration.attention import choose, kernels
from difftool.acceleration.attention.kernels import DispatchedKernel, FlexKernel
from difftool.acceleration.attention.trial import probe
from difftool.attention import BACKENDS, NAMES, Needs, Site, chosen
from difftool.errors import PlanError
from difftool.facts import Applied, Refused
from difftool.parallel.seam import TorchKernel

CPU, MPS, ROCM = Site("cpu", "fp32"), Site("mps", "bf16"), Site("rocm", "bf16")
AMPERE, HOPPER, BLACKWELL = (Site("cuda", "bf16", capability) for capability in ((8, 0), (9, 0), (10, 0)))
EVERY = ("flash-attn", "flash-attn-3", "flash-attn-4", "sageattention", "sageattn3", "amd-aiter")


@pytest.fixture
def installed(monkeypatch):
    """Makes exactly these distributions be there."""

    def install(*names, version="9.9"):
        def of(name):
            if name not in names:
                raise metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(metadata, "version", of)

    return install


def one(setting, site, **needs):
    """What comes of a setting for the only attention of a model."""
    found = choose(setting, {"transformer": {"self": Needs(**needs)}}, {"transformer": site})
    return found.detail["transformer"]["self"] if isinstance(found, Applied) else found.reason


ORDER = {
    "name": "fa2",
    "self": "fa3",
    "components": {"transformer_2": {"name": "flex", "cross": "cudnn"}, "third": {"self": "sage_attn"}},
}


@pytest.mark.parametrize(
    ("component", "role", "name"),
    [
        ("transformer", "self", "fa3"),
        ("transformer", "cross", "fa2"),
        ("transformer_2", "self", "flex"),
        ("transformer_2", "cross", "cudnn"),
        ("third", "self", "sage_attn"),
        ("third", "cross", "fa2"),
    ],
)
def test_the_nearest_word_counts_a_component_s_role_first(component, role, name):
    assert chosen(ORDER, component, role).name == name


@pytest.mark.parametrize(
    ("site", "needs", "name"),
    [
        (CPU, {}, "torch_sdpa"),
        (MPS, {}, "torch_sdpa"),
        (ROCM, {}, "aiter"),
        (ROCM, {"ring": True}, "torch_sdpa"),
        (AMPERE, {"head": 128}, "fa2"),
        (HOPPER, {"head": 128}, "fa3"),
        (BLACKWELL, {"head": 128}, "fa4"),
        (BLACKWELL, {"head": 128, "ring": True}, "fa2"),
        (HOPPER, {"head": 260}, "torch_sdpa"),
        (HOPPER, {"masked": True}, "torch_sdpa"),
        (Site("cuda", "fp32", (9, 0)), {}, "torch_sdpa"),
        (Site("cuda", "fp16", (7, 5)), {}, "torch_sdpa"),
    ],
    ids=str,
)
def test_auto_is_the_best_that_is_installed_and_fits(site, needs, name, installed):
    installed(*EVERY)
    assert one("auto", site, **needs) == name
    installed()
    assert one("auto", site, **needs) == "torch_sdpa"


@pytest.mark.parametrize(
    ("setting", "site", "needs", "reason"),
    [
        (
            "fa3",
            CPU,
            {},
            "fa3 runs on CUDA, and this is a CPU; needs flash-attn-3, which is not installed; install: pip",
        ),
        (
            "sage_attn",
            CPU,
            {},
            "sage_attn runs on CUDA, and this is a CPU; needs sageattention, which is not installed",
        ),
        ("aiter", HOPPER, {}, "aiter runs on ROCm, and this is CUDA; needs amd-aiter"),
        ("flex", MPS, {}, "flex runs on a CPU, CUDA and ROCm, and this is MPS"),
        ("fa4", AMPERE, {}, "fa4 needs compute capability 9.0 to below 12.0, and this is 8.0; needs flash-attn-4"),
        ("cudnn", Site("cuda", "fp32", (9, 0)), {}, "cudnn computes in bf16 and fp16, and this is fp32"),
        ("cudnn", HOPPER, {"head": 6}, "cudnn takes heads in multiples of 8, up to 128 wide, and these are 6 wide"),
        (
            "fa2",
            HOPPER,
            {"masked": True},
            "takes no masks, and this attention needs one; install: pip install flash-attn",
        ),
        ("sage_attn_3", BLACKWELL, {"ring": True}, "does not tell the log-sum-exp by which parallel.ring puts parts"),
        ("fa", CPU, {}, "fa4 runs on CUDA, and this is a CPU"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused_with_the_reason_and_the_way_to_install_it(
    setting, site, needs, reason, installed
):
    installed()
    said = one(setting, site, **needs)
    assert said.startswith(f"stages.denoising.attention={setting}, for self-attention of transformer: ")
    assert reason in said


@pytest.mark.parametrize(
    ("setting", "broken", "found"),
    [
        ("auto", ["fa3"], "fa4"),
        ("auto", ["fa3", "fa4", "fa2"], "torch_sdpa"),
        ("fa", ["fa3", "fa4"], "fa2"),
        ("fa2", ["fa3"], "fa2"),
        ("cudnn", ["cudnn"], None),
        ("fa", ["fa2", "fa3", "fa4"], None),
    ],
)
def test_a_kernel_that_fails_here_is_passed_over_unless_it_is_asked_for(setting, broken, found, installed):
    installed(*EVERY)
    sites, needs = {"transformer": HOPPER}, {"transformer": {"self": Needs(head=64)}}
    made = choose(setting, needs, sites, lambda name, *_: "undefined symbol" if name in broken else "")
    if found is not None:
        assert made.detail == {"transformer": {"self": found}}
    else:
        assert f"{broken[0]} was tried out here and fails: undefined symbol" in made.reason


def test_an_old_release_is_refused_with_both(installed):
    installed("flash-attn", version="2.5.9.post1+cu12")
    assert "fa2 needs flash-attn 2.6.3 or newer, and 2.5.9.post1+cu12 is installed; install: " in one("fa2", HOPPER)


@pytest.mark.parametrize("key", ["cross", "components"])
def test_attention_that_a_model_lacks_cannot_be_set(key):
    setting = {"name": "auto", key: "flex" if key == "cross" else {"unet": "flex"}}
    found = choose(setting, {"transformer": {"self": Needs()}}, {"transformer": CPU})
    assert isinstance(found, Refused) and found.reason.startswith(f"stages.denoising.attention.{key}")


def tensors(batch=2, queries=24, keys=40, heads=3, width=8):
    generator = torch.Generator().manual_seed(1)
    lengths = (queries, keys, keys)
    return [torch.randn(batch, length, heads, width, generator=generator) for length in lengths]


MASKS = {
    "none": None,
    "of keys": (torch.arange(40) < torch.tensor([[30], [40]])),
    "of keys, added": torch.where(torch.arange(40) < 30, 0.0, -1e4)[None, None, None].expand(2, 1, 1, 40),
    "of pairs": (torch.arange(24)[:, None] * 2 >= torch.arange(40)[None])[None, None],
    "of heads": torch.linspace(-2, 2, 2 * 3 * 24 * 40).reshape(2, 3, 24, 40),
}


@pytest.mark.parametrize("mask", MASKS)
def test_flex_takes_every_mask_that_torch_takes(mask):
    given = tensors()
    right = TorchKernel()(*given, attn_mask=MASKS[mask])
    assert torch.allclose(FlexKernel()(*given, attn_mask=MASKS[mask]), right, atol=2e-6)


def test_flex_makes_of_no_keys_what_torch_makes():
    given = tensors(keys=0)
    assert torch.equal(FlexKernel()(*given), TorchKernel()(*given))


@pytest.mark.parametrize("kernel", [TorchKernel(), FlexKernel()], ids=["torch_sdpa", "flex"])
def test_a_kernel_for_a_ring_tells_the_log_sum_exp_of_its_scores(kernel):
    query, key, value = (tensor.transpose(1, 2) for tensor in tensors())
    out, lse = kernel.with_lse(query, key, value)
    scores = query @ key.transpose(2, 3) / 8**0.5
    assert torch.allclose(lse, scores.logsumexp(-1), atol=2e-6)
    assert torch.allclose(out, scores.softmax(-1) @ value, atol=2e-6)


def test_a_kernel_without_masks_refuses_one():
    with pytest.raises(PlanError, match="attention fa2 takes no masks, and samples of unlike length") as error:
        DispatchedKernel("fa2", "flash")(*tensors(), attn_mask=MASKS["of keys"])
    assert error.value.hint == "use stages.denoising.attention=torch_sdpa or flex"


def with_kernel(monkeypatch, compute):
    monkeypatch.setitem(kernels.KERNELS, "flex", lambda: compute)
    return probe("flex", torch.device("cpu"), torch.float32)


def test_a_probe_tells_a_right_kernel_from_a_wrong_one(monkeypatch):
    assert probe("flex", torch.device("cpu"), torch.float32) == ""
    assert with_kernel(monkeypatch, lambda q, k, v: rough(q, k, v)) == ""
    assert with_kernel(monkeypatch, lambda q, k, v: v.roll(1, dims=1)).startswith("its result is wrong: cosine ")

    def fail(query, key, value):
        raise RuntimeError("\n  no kernel image is available\nCompile with TORCH_USE_CUDA_DSA")

    assert with_kernel(monkeypatch, fail) == "no kernel image is available"


@pytest.mark.parametrize("name", [name for name, backend in BACKENDS.items() if backend.tiles])
def test_a_probe_of_what_leaves_out_parts_of_a_video_is_right_on_a_cpu(name):
    assert probe(name, torch.device("cpu"), torch.float32) == ""


def rough(query, key, value):
    out = scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in (query, key, value)))
    return out.transpose(1, 2).to(torch.float8_e4m3fn).to(value.dtype)


def test_the_doctor_tries_every_name_of_a_recipe():
    asked = [name.removeprefix("attention ") for name, _ in doctor.attention_questions()]
    assert asked == list(BACKENDS) and set(asked) < set(NAMES)
    assert doctor.attention("torch_sdpa") == {}
    refused = doctor.attention("sage_attn_3")
    assert refused["error"].startswith("runs on CUDA") and refused["install"] in BACKENDS["sage_attn_3"].package.install
