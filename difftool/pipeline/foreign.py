"""Runs any pipeline class of diffusers as it is: its own call, watched from outside for stages and steps.

What comes before the first forward of a denoiser counts as `text_encoding`, what comes after the VAE starts to decode
as `decoding`; a pipeline without a part we know of is all `denoising`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor, nn

from difftool.components.check import check_folder, read_index
from difftool.components.loaded import Components
from difftool.components.schedulers import fresh_scheduler
from difftool.errors import PlanError, RecipeError, WeightsError
from difftool.pipeline.batch import Batch
from difftool.pipeline.stage import Context

# stage -> names of components that play it, in diffusers' pipelines
ROLES = {
    "text_encoding": ("text_encoder*", "prior_text_encoder"),
    "image_encoding": ("image_encoder*",),
    "denoising": ("transformer*", "unet*", "dit*", "prior_prior"),
    "decoding": ("vae*", "movq", "vqvae", "vocoder*", "audio_vae"),
}
NAMED = ("height", "width", "num_frames", "num_inference_steps", "max_sequence_length", "guidance_scale") + (
    ("guidance_scale_2", "true_cfg_scale", "boundary_ratio")
)


def roles_of(folder: Path) -> dict[str, tuple[str, ...]]:
    """The component names that play each stage's role in a pipeline folder."""
    names = components_of(folder)
    return {role: tuple(n for n in names if any(fnmatch(n, p) for p in known)) for role, known in ROLES.items()}


def components_of(folder: Path) -> list[str]:
    """The components that model_index.json lists."""
    index = read_index(folder)
    return [name for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2 and entry[0]]


def load_pipeline(
    folder: Path, class_name: str, *, dtypes: Mapping[str, torch.dtype], device: torch.device, trust_remote_code: bool
) -> Any:
    """The pipeline of a checked folder on the device. Raises WeightsError, and PlanError for a missing package."""
    check_folder(folder, components_of(folder), own_code=trust_remote_code)
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            folder,
            dtype={"default": torch.float32, **dtypes},
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            local_files_only=True,
        )
    except ImportError as error:
        raise PlanError(f"{class_name} needs a package that is not installed: {error}") from error
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        if "trust_remote_code" in str(error):
            hint = "model.trust_remote_code runs it, from the hub at a pinned revision"
            raise WeightsError(f"{folder} brings code of its own, which is not run", hint=hint) from error
        raise WeightsError(f"{folder} cannot be loaded as {class_name}: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


@dataclass(frozen=True)
class ForeignPipeline:
    """A loaded diffusers pipeline, with the interface of a ComposedPipeline. `call` are arguments of every call."""

    pipe: Any
    roles: Mapping[str, tuple[str, ...]]
    call: Mapping[str, Any]

    @property
    def components(self) -> Components:
        return Components(dict(self.pipe.components), self.pipe)

    def __call__(self, batch: Batch, ctx: Context) -> Batch:
        """One timed sample."""
        return replace(batch, pixels=self.made(batch, ctx, read=as_pixels))

    @torch.no_grad()
    def made(self, batch: Batch, ctx: Context, *, read: Callable[[Any], Tensor]) -> Tensor:
        """What `read` finds in the output of one timed sample."""
        arguments = self.arguments(batch)
        with ctx.timer.sample():
            watch = Watch(ctx, sees_forwards=bool(self._modules("denoising")))
            with self._watched(watch, batch):
                return read(self._call(arguments))

    def _call(self, arguments: Mapping[str, Any]) -> Any:
        try:
            return self.pipe(**arguments)
        except RuntimeError as error:
            if "same dtype" in str(error) or "should be the same" in str(error):
                name = type(self.pipe).__name__
                hint = "give stages.text_encoding, denoising and decoding the same precision"
                raise PlanError(f"{name} does not convert between its parts' precisions: {error}", hint=hint) from error
            raise

    def arguments(self, batch: Batch) -> dict[str, Any]:
        """The request under the names of the pipeline's own call. Raises RecipeError for one it does not take."""
        taken = signature(type(self.pipe).__call__).parameters
        values = {key: value for key in NAMED if (value := getattr(batch, key)) is not None}
        pictures = [picture.image for picture in batch.image]
        values |= {"image": pictures[0] if len(pictures) == 1 else pictures} if pictures else {}
        values |= {"last_image": batch.last_image.image} if batch.last_image else {}
        values |= {"negative_prompt": batch.negative_prompt[0]} if batch.negative_prompt is not None else {}
        values |= {**batch.extra, **self.call}
        if foreign := sorted(values.keys() - taken.keys()):
            raise RecipeError(f"{type(self.pipe).__name__} takes no {foreign[0]}")
        given = {"prompt": batch.prompt[0], "generator": batch.generators()[0], "output_type": "pt"}
        return {**{key: value for key, value in given.items() if key in taken}, **values}

    @contextmanager
    def _watched(self, watch: "Watch", batch: Batch) -> Iterator[None]:
        """The pipeline with its parts telling `watch` where it is, and a scheduler of this request's own."""
        pipe, denoisers = self.pipe, self._modules("denoising")
        with ExitStack() as undo:
            if getattr(pipe, "scheduler", None) is not None:
                undo.enter_context(_attribute(pipe, "scheduler", fresh_scheduler(pipe.scheduler, batch.schedule)))
                step = pipe.scheduler.step
                undo.enter_context(_attribute(pipe.scheduler, "step", watch.counting(step, batch.num_inference_steps)))
            for module in denoisers:
                undo.callback(module.register_forward_pre_hook(lambda *_: watch.enter_step()).remove)
            for module in self._modules("decoding"):
                if denoisers and hasattr(module, "decode"):
                    undo.enter_context(_attribute(module, "decode", watch.entering("decoding", module.decode)))
            if denoisers:
                watch.enter("text_encoding")
            else:
                watch.enter_step()
            try:
                yield
            finally:
                watch.leave()

    def _modules(self, role: str) -> list[nn.Module]:
        found = (getattr(self.pipe, name, None) for name in self.roles[role])
        return [module for module in found if isinstance(module, nn.Module)]


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute of this one object for as long as the context lasts."""
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


class Watch:
    """Turns what is seen of a running pipeline into stages on the clock. A stage is entered once, and never again."""

    def __init__(self, ctx: Context, *, sees_forwards: bool):
        """`sees_forwards`: whether every forward of a denoiser calls `enter_step`."""
        self.ctx = ctx
        self._sees_forwards = sees_forwards
        self.stage: str | None = None
        self.done: set[str] = set()
        self.steps = 0
        self._clock = ExitStack()
        self._step: ExitStack | None = None

    def enter(self, stage: str) -> None:
        """Ends the stage before and starts this one; nothing where it runs already, or has ended."""
        if stage == self.stage or stage in self.done:
            return
        self.leave()
        self.stage = stage
        self.ctx.notify("stage_started", stage=stage)
        self._clock.enter_context(self.ctx.timer.stage(stage))
        if stage == "denoising":
            self.ctx.timer.step()

    def enter_step(self) -> None:
        """Denoising, and the range of its next step; nothing where that runs already."""
        self.enter("denoising")
        if self.stage == "denoising" and self._step is None:
            self._step = ExitStack()
            self._step.enter_context(self.ctx.timer.range(f"step: {self.steps}"))

    def _leave_step(self) -> None:
        if self._step is not None:
            self._step.close()
            self._step = None

    def leave(self) -> None:
        """Ends the stage that runs."""
        self._leave_step()
        if self.stage is not None:
            self._clock.close()
            self.ctx.notify("stage_finished", stage=self.stage, ms=self.ctx.timer.timings.stages[self.stage])
            self.done.add(self.stage)
            self.stage = None

    def entering(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, as the start of a stage."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.enter(stage)
            return function(*args, **kwargs)

        return watched

    def counting(self, function: Callable[..., Any], steps: int | None) -> Callable[..., Any]:
        """A scheduler's step, as the end of one denoising step."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if self.stage == "denoising":
                self._leave_step()
                self.ctx.timer.step()
                self.ctx.notify("step", step=self.steps, steps=max(steps or 0, self.steps + 1))
                self.steps += 1
                if not self._sees_forwards and self.steps < (steps or 0):
                    self.enter_step()
            return result

        return watched


def as_pixels(output: Any) -> Tensor:
    """What a pipeline returned -> [1, C, H, W] or [1, C, F, H, W] in [0, 1].

    Takes tensors [B, C, H, W] and [B, F, C, H, W], arrays with channels last, and PIL pictures. Raises PlanError.
    """
    made = next((output[key] for key in ("images", "image", "frames", "videos", "video") if key in output), None)
    if isinstance(made, list) and made:
        pictures = made[0] if isinstance(made[0], list) else made[:1]
        if isinstance(made[0], Tensor):
            made = torch.stack(list(made))
        else:
            stacked = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]).astype(np.float32) / 255
            made = stacked[None] if isinstance(made[0], list) else stacked
    if isinstance(made, np.ndarray):
        made = torch.from_numpy(made).movedim(-1, -3)
    if not isinstance(made, Tensor) or made.ndim not in (4, 5):
        raise PlanError(f"the pipeline returned {type(made).__name__}, which is no picture and no video")
    made = made.float().cpu().clamp(0, 1)
    return made.transpose(1, 2) if made.ndim == 5 else made
