"""How sure each modality is of each step: noise of what is measured now, and fluctuation against a forecast."""

from typing import NamedTuple

import torch
from torch import nn

from edgeopt.fusion.layers import PerModality

LOG_LEAST, LOG_MOST = -6.0, 6.0
"""Within which logarithms of variances stay."""


class Doubt(NamedTuple):
    """What is believed of each modality at each step.

    Parameters
    ----------
    mean : [B, M, T, d], mu.
    log_variance : [B, M, T, d], of input noise and fluctuation together.
    residual : [B, M, T, d], mu less its forecast.
    hidden : [B, M, T, d], state of the forecast.
    """

    mean: torch.Tensor
    log_variance: torch.Tensor
    residual: torch.Tensor
    hidden: torch.Tensor


class Course(NamedTuple):
    """What the forecasts keep of earlier steps.

    Parameters
    ----------
    hidden : [B, M, d].
    forecast : [B, M, d], of the next step.
    recent : [B, M, W, d], the last means.
    """

    hidden: torch.Tensor
    forecast: torch.Tensor
    recent: torch.Tensor


class Uncertainty(nn.Module):
    """Two heads on tokens: input noise from the step alone, fluctuation from a causal forecast and its residual.

    ``log s`` is linear in the token. A gated recurrent unit forecasts the mean of the next step; ``log c`` follows from
    the residual, the standard deviation over the last W steps and the change since the last one, all of the mean. The
    variance is s + c. Where a modality is missing, its forecast takes the place of its mean. Modalities share no weights.

    Parameters
    ----------
    modalities, width : M and d.
    window : W.
    noise, fluctuation : which heads there are; at least one.
    """

    def __init__(
        self, modalities: int, width: int, *, window: int = 5, noise: bool = True, fluctuation: bool = True
    ) -> None:
        super().__init__()
        self.window, self.noise, self.fluctuation = window, noise, fluctuation
        self.now = PerModality(modalities, width, 2 * width)
        self.inward = PerModality(modalities, width, 3 * width)
        self.around = PerModality(modalities, width, 3 * width)
        self.ahead = PerModality(modalities, width, width)
        self.unrest = PerModality(modalities, 3 * width, width)
        self.log_c = PerModality(modalities, width, width)
        with torch.no_grad():  # all uncertainties are equal at first, so that no modality is preferred by chance
            for weight in (
                self.log_c.weight,
                self.log_c.bias,
                self.now.weight[..., width:],
                self.now.bias[..., width:],
            ):
                weight.zero_()

    def forward(
        self, tokens: torch.Tensor, present: torch.Tensor, course: Course | None = None
    ) -> tuple[Doubt, Course]:
        """Return beliefs of some steps, and what to keep for the next ones.

        Parameters
        ----------
        tokens : [B, M, T, d].
        present : [B, M, T], 1 or 0.
        course : of the steps before; None at the start.
        """
        mean, log_s = self.now(tokens).chunk(2, -1)  # (B, M, T, d) each
        if course is None:
            hidden = torch.zeros_like(mean[:, :, 0])  # (B, M, d)
            forecast = self.ahead(hidden[:, :, None])[:, :, 0]  # (B, M, d)
            course = Course(hidden, forecast, forecast[:, :, None].expand(-1, -1, self.window, -1))
        hidden, forecast, recent = course
        residuals, states, features = [], [], []
        for t in range(tokens.shape[2]):
            there = present[:, :, t, None]  # (B, M, 1)
            used = there * mean[:, :, t] + (1 - there) * forecast  # (B, M, d)
            residual = used - forecast  # (B, M, d), 0 where it is missing
            change = used - recent[:, :, -1]  # (B, M, d)
            recent = torch.cat([recent[:, :, 1:], used[:, :, None]], 2)  # (B, M, W, d)
            spread = (recent - recent.mean(2, keepdim=True)).square().mean(2).add(1e-6).sqrt()  # (B, M, d)
            hidden = self._recur(used, hidden)  # (B, M, d)
            forecast = self.ahead(hidden[:, :, None])[:, :, 0]  # (B, M, d)
            residuals.append(residual)
            states.append(hidden)
            features.append(torch.cat([residual.abs(), spread, change.abs()], -1))  # (B, M, 3 d)
        unrest = nn.functional.gelu(self.unrest(torch.stack(features, 2)))  # (B, M, T, d)
        log_c = self.log_c(unrest).clamp(LOG_LEAST, LOG_MOST)  # (B, M, T, d)
        log_s = log_s.clamp(LOG_LEAST, LOG_MOST)  # (B, M, T, d)
        both = self.noise and self.fluctuation
        log_v = torch.logaddexp(log_s, log_c) if both else log_s if self.noise else log_c
        doubt = Doubt(mean, log_v, torch.stack(residuals, 2), torch.stack(states, 2))
        return doubt, Course(hidden, forecast, recent)

    def _recur(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Return the next state (B, M, d) of a gated recurrent unit."""
        from_x = self.inward(x[:, :, None])[:, :, 0].chunk(3, -1)
        from_hidden = self.around(hidden[:, :, None])[:, :, 0].chunk(3, -1)
        reset = (from_x[0] + from_hidden[0]).sigmoid()  # (B, M, d)
        update = (from_x[1] + from_hidden[1]).sigmoid()  # (B, M, d)
        proposed = (from_x[2] + reset * from_hidden[2]).tanh()  # (B, M, d)
        new: torch.Tensor = update * hidden + (1 - update) * proposed  # (B, M, d)
        return new


def log_uncertainty(log_variance: torch.Tensor) -> torch.Tensor:
    """Return log U [B, M, T], the logarithm of the mean variance, of log v [B, M, T, d]."""
    return log_variance.logsumexp(-1) - torch.tensor(float(log_variance.shape[-1])).log()


def forecast_loss(doubt: Doubt, present: torch.Tensor) -> torch.Tensor:
    """Return the loss [B, M, T] of forecasts and variances, and what holds the beliefs near N(0, 1).

    See `gaussian_loss`. The mean that is forecast takes no gradient: variance must not shrink because means collapse.

    Parameters
    ----------
    doubt : beliefs.
    present : [B, M, T], 1 or 0; the loss is 0 where a modality is missing.
    """
    # residual = mu - forecast; the same number, with a gradient for the forecast alone
    residual = doubt.residual - doubt.mean * present[..., None]
    residual = residual + doubt.mean.detach() * present[..., None]
    prior = 0.5 * (doubt.mean.square() + doubt.log_variance.exp() - doubt.log_variance - 1).mean(-1)
    return (gaussian_loss(residual, doubt.log_variance) + 1e-3 * prior) * present


def gaussian_loss(residual: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Return half of the mean of e^2 and of e^2 / v + log v over the last axis.

    The first has a gradient for what predicts, the second, in which e is taken as it is, for the variance alone: with
    the likelihood itself, what is predicted badly gets a large variance and is hardly learnt any more.

    Parameters
    ----------
    residual, log_variance : [..., d], e and log v.
    """
    squared = residual.square()
    return 0.5 * (squared + squared.detach() * (-log_variance).exp() + log_variance).mean(-1)
