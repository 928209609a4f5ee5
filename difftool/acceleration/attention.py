"""The attention kernel of the denoiser."""

from difftool.components.loaded import Components
from difftool.facts import Applied, Refused

DIFFUSERS_NAMES = {"torch_sdpa": "native"}


def resolve(name: str) -> Applied | Refused:
    """`auto` is torch's scaled_dot_product_attention, which every platform has."""
    chosen = "torch_sdpa" if name == "auto" else name
    if chosen not in DIFFUSERS_NAMES:
        return Refused(f"attention {name} is not available yet")
    return Applied({"backend": chosen})


def apply(components: Components, modules: tuple[str, ...], applied: Applied) -> None:
    """Binds the kernel to these modules, whatever DIFFUSERS_ATTN_BACKEND says."""
    for name in modules:
        getattr(components, name).set_attention_backend(DIFFUSERS_NAMES[str(applied.detail["backend"])])
