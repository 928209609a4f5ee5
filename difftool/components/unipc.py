"""UniPC whose coefficients stay on the host, where its noise levels are: a step of it never waits for the device.

diffusers' own copies each level to the device and solves its 2 x 2 system there, and both wait. The formulas and their
order are its `multistep_uni_p_bh_update` and `multistep_uni_c_bh_update`: on a CPU the result is the same bit for bit.
"""

from dataclasses import dataclass

import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

HIGHEST_ORDER = 2


@dataclass(frozen=True)
class Coefficients:
    """Of a move between two noise levels, fp32 scalars on the CPU: x -> `kept` x - `clean` (m0 + how m changes).

    `ratio` is how far back the model output before m0 lies, in moves of this one's length; None at the first order.
    `weights` [order] are the corrector's.
    """

    kept: Tensor
    clean: Tensor
    ratio: Tensor | None
    weights: Tensor


class HostUniPC(UniPCMultistepScheduler):
    """UniPC of flow matching (bh2), of first or second order."""

    @staticmethod
    def covers(scheduler: object) -> bool:
        """Whether this scheduler is one that HostUniPC stands in for."""
        if type(scheduler) is not UniPCMultistepScheduler:
            return False
        config = scheduler.config
        flow = config.use_flow_sigmas and config.predict_x0 and config.solver_type == "bh2"
        return flow and config.solver_order <= HIGHEST_ORDER and config.solver_p is None

    def multistep_uni_p_bh_update(self, model_output: Tensor, *, sample: Tensor, order: int) -> Tensor:
        """The predictor: from this step's level to the next one's."""
        now, c = self.model_outputs[-1], self._coefficients(self.step_index, order)
        moved = c.kept * sample - c.clean * now
        if c.ratio is not None:
            moved = moved - c.clean * (0.5 * ((self.model_outputs[-2] - now) / c.ratio))
        return moved.to(sample.dtype)

    def multistep_uni_c_bh_update(
        self, this_model_output: Tensor, *, last_sample: Tensor, this_sample: Tensor, order: int
    ) -> Tensor:
        """The corrector: the move that led here again, now that the model output at its end is known."""
        now, c = self.model_outputs[-1], self._coefficients(self.step_index - 1, order)
        change = c.weights[-1] * (this_model_output - now)
        if c.ratio is not None:
            change = c.weights[0] * ((self.model_outputs[-2] - now) / c.ratio) + change
        return (c.kept * last_sample - c.clean * now - c.clean * change).to(last_sample.dtype)

    def _coefficients(self, start: int, order: int) -> Coefficients:
        """Of the move from `sigmas[start]` to the next."""
        (alpha, sigma), (alpha_start, sigma_start) = (
            self._sigma_to_alpha_sigma_t(self.sigmas[i]) for i in (start + 1, start)
        )
        log_snr_start = torch.log(alpha_start) - torch.log(sigma_start)
        length = torch.log(alpha) - torch.log(sigma) - log_snr_start
        decay = torch.expm1(-length)
        ratio, weights = None, torch.full((1,), 0.5)
        if order == HIGHEST_ORDER:
            alpha_before, sigma_before = self._sigma_to_alpha_sigma_t(self.sigmas[start - 1])
            ratio = (torch.log(alpha_before) - torch.log(sigma_before) - log_snr_start) / length
            weights = self._corrector_weights(ratio, -length, decay)
        return Coefficients(sigma / sigma_start, alpha * decay, ratio, weights)

    def _corrector_weights(self, ratio: Tensor, hh: Tensor, decay: Tensor) -> Tensor:
        """[2] solutions of the order conditions."""
        nodes = torch.stack([ratio, torch.ones(())])
        first = decay / hh - 1
        second = first / hh - 1 / 2
        right = torch.stack([first / decay, second * 2 / decay])
        return torch.linalg.solve_ex(torch.stack([nodes**0, nodes]), right)[0]
