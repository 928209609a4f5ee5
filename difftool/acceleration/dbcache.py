"""DBCache, TaylorSeer and step masks: cache-dit's blocks and buffers, with the decision taken here.

Source: cache-dit 1.5, `CachedBlocks_Pattern_*` and `CachedContextManager`. Its pipelines, its patching of classes and
its own counting are left out: a list of a denoiser is exchanged for the time of a forward alone, every call of a step
has buffers of its own, and a step's change is summed over the ranks of a replica, not over the default group.
Imported by `library` alone.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from cache_dit.caching import CachedContextManager, DBCacheConfig, ForwardPattern, TaylorSeerCalibratorConfig
from cache_dit.caching.cache_blocks import CachedBlocks_Pattern_0_1_2, CachedBlocks_Pattern_3_4_5
from torch import Tensor, nn

from difftool.acceleration.cache import Call, StepLog
from difftool.acceleration.exchange import Counted, Exchange
from difftool.acceleration.plans import Makes
from difftool.errors import PlanError
from difftool.parallel.mesh import Line
from difftool.planning.step_masks import FEWEST_STEPS, is_masked, step_mask

PATTERNS = {
    "image": ForwardPattern.Pattern_3,
    "image, text": ForwardPattern.Pattern_0,
    "text, image": ForwardPattern.Pattern_1,
}


class BlockCache:
    """The cache of one denoiser: see `cache.DenoiserCache`."""

    def __init__(
        self,
        transformer: nn.Module,
        blocks: Mapping[str, Makes],
        settings: Mapping[str, Any],
        *,
        line: Line,
        own_part: Callable[[Tensor], Tensor],
        name: str,
    ):
        self.settings, self.name = settings, name
        computed = settings["fn_compute_blocks"] + settings["bn_compute_blocks"]
        found = {key: transformer.get_submodule(key) for key in blocks}
        # one that leaves no block between the first and the last ones runs as it is
        self.lists = {key: len(each) for key, each in found.items() if len(each) > computed}
        if not self.lists:
            most = max(len(each) for each in found.values())
            raise PlanError(
                f"cache: {name} has {most} blocks in a row, and {computed} are always computed",
                hint=f"lower cache.fn_compute_blocks or bn_compute_blocks to less than {most} together",
            )
        self.log: list[StepLog] = []
        self.mask: str | None = None
        self._step = 0
        self._manager = Manager(line, self.log)
        self._reusing = {key: _wrap(found[key], blocks[key], key, self, own_part) for key in self.lists}
        self._exchange = Exchange(transformer, self._reusing)
        self.stand_ins = self._exchange.stand_ins

    @property
    def manager(self) -> "Manager":
        return self._manager

    def count(self, key: str) -> None:
        """A block of this list runs."""
        self.log[self._step].ran[key] += 1

    def begin(self, steps: int) -> None:
        if steps and is_masked(self.settings["scm"]) and steps < FEWEST_STEPS:
            raise PlanError(
                f"cache.scm: {self.name} runs {steps} of the steps, fewer than the {FEWEST_STEPS} a mask needs",
                hint="use more steps, or leave cache.scm out: dbcache works without it",
            )
        warmup = self.settings["max_warmup_steps"]
        self.mask = step_mask(self.settings["scm"], steps, warmup=warmup) if steps else None
        self.log[:] = [StepLog() for _ in range(steps)]
        self.renew()

    def renew(self) -> None:
        self._manager.clear_contexts()

    def forward(self, step: int, call: Call) -> None:
        self._step = step
        self.log[step].forwards += 1
        self._manager.call, self._manager.step = call, step
        for key, wrapper in self._reusing.items():
            wrapper.cache_context = f"{key}/{'+'.join(call.names)}"
            self._manager.at(wrapper.cache_context, step, self._configs)

    def remove(self) -> None:
        self._exchange.remove()
        self.renew()

    def _configs(self) -> dict[str, Any]:
        """Those of a context's buffers."""
        settings, seer = self.settings, self.settings["taylorseer"]
        config = DBCacheConfig(
            Fn_compute_blocks=settings["fn_compute_blocks"],
            Bn_compute_blocks=settings["bn_compute_blocks"],
            residual_diff_threshold=settings["residual_diff_threshold"],
            max_warmup_steps=settings["max_warmup_steps"],
            max_cached_steps=settings["max_cached_steps"],
            max_continuous_cached_steps=settings["max_continuous_cached_steps"],
            enable_separate_cfg=False,  # every call of a step has a context of its own
            steps_computation_mask=None if self.mask is None else [int(bit) for bit in self.mask],
            steps_computation_policy=settings["scm"]["policy"],
        )
        calibrator = TaylorSeerCalibratorConfig(taylorseer_order=seer["order"]) if seer["enabled"] else None
        return {"cache_config": config, "calibrator_config": calibrator}


class _OwnPart:
    """What cache-dit's blocks compare: the first block takes this rank's part of the tokens out of all of them."""

    own_part: Callable[[Tensor], Tensor]

    def _get_Fn_residual(self, original: Tensor, states: Tensor) -> Tensor:  # noqa: N802
        return states - (original if original.shape == states.shape else self.own_part(original))


class ImageBlocks(_OwnPart, CachedBlocks_Pattern_3_4_5):
    """Of blocks that make the image's states alone."""


class PairBlocks(_OwnPart, CachedBlocks_Pattern_0_1_2):
    """Of blocks that make the text's states too."""


def _wrap(
    blocks: nn.Module, makes: Makes, key: str, cache: BlockCache, own_part: Callable[[Tensor], Tensor]
) -> ImageBlocks | PairBlocks:
    kind = ImageBlocks if makes == "image" else PairBlocks
    wrapper = kind(
        nn.ModuleList([Counted(block, partial(cache.count, key)) for block in blocks]),
        forward_pattern=PATTERNS[makes],
        check_forward_pattern=False,  # it asks for names of arguments, which some blocks do not use
        cache_prefix=key,
        cache_context=key,
        context_manager=cache.manager,
    )
    wrapper.own_part = own_part
    return wrapper


class Manager(CachedContextManager):
    """cache-dit's contexts of one denoiser, one for each list and call; `call` and `step` are those that run."""

    def __init__(self, line: Line, log: list[StepLog]):
        super().__init__(name="difftool")
        self.call, self.step = Call((), ""), 0
        self._line, self._log = line, log
        self._verdicts: dict[str, bool] = {}

    def at(self, name: str, step: int, configs: Callable[[], dict[str, Any]]) -> None:
        """The context is at this step, whatever it has seen of those before."""
        if name not in self._cached_context_manager:
            self.new_context(name=name, **configs())
        context = self.get_context(name)
        context.executed_steps = context.transformer_executed_steps = step

    def can_cache(
        self, states_tensor: Tensor, parallelized: bool = False, threshold: float | None = None, prefix: str = "Fn"
    ) -> bool:
        """The step's first forward judges; every rank of a replica asks it alike. Without buffers nothing is reused."""
        if self.call.first:
            self._verdicts[prefix] = super().can_cache(states_tensor, threshold=threshold, prefix=prefix)
        return self._verdicts[prefix] and self.get_Fn_buffer(prefix) is not None

    def similarity(
        self, t1: Tensor, t2: Tensor, *, threshold: float, parallelized: bool = False, prefix: str = "Fn"
    ) -> bool:
        """Whether sum |t1 - t2| / sum |t1| is below the threshold, over the tokens of all ranks of the replica. Only
        those count that have the branch which judges.
        """
        before, now = (self.call.judged(states).float() for states in (t1, t2))
        sums = torch.stack([(before - now).abs().sum(), before.abs().sum()]) * float(self.call.judges)
        change, size = self._line.all_reduce(sums).tolist()
        if not math.isfinite(change) or not size:
            return False
        self._log[self.step].changes[prefix.removesuffix("_Fn_residual")] = change / size
        return change / size < threshold

    def get_Bn_encoder_buffer(self, prefix: str = "Bn") -> Tensor | None:  # noqa: N802
        """None where the last block makes no text, of which the calibrator has no state to go on from."""
        _, calibrator = self.get_calibrator()
        if calibrator is not None and prefix not in calibrator.states:
            return None
        return super().get_Bn_encoder_buffer(prefix)
