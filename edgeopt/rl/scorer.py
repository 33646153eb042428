"""`Scorer`: one small network per server that scores its clients, whatever their order and number. Torch."""

import math

import torch
from torch import Tensor, nn

from edgeopt.storage import Arrays


class Scorer(nn.Module):
    """S networks of equal shape, run as one batch; no weight is shared between servers.

    Each client's features become H numbers; their mean over the server's clients is the context. A client's score depends
    on its own numbers and the context, so that renumbering clients renumbers scores. The value of a state depends on the
    context alone. [ours, after deep sets: Zaheer et al., arXiv 1703.06114]
    """

    def __init__(self, num_servers: int, num_features: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()

        def weights(fan_in: int, fan_out: int, gain: float = 1.0) -> nn.Parameter:
            drawn = torch.randn(num_servers, fan_in, fan_out, generator=generator)
            return nn.Parameter(drawn * gain / math.sqrt(fan_in))

        self.encode = weights(num_features, hidden)
        self.encode_bias = nn.Parameter(torch.zeros(num_servers, 1, hidden))
        self.own = weights(hidden, hidden)
        self.context = weights(hidden, hidden)
        self.mix_bias = nn.Parameter(torch.zeros(num_servers, 1, hidden))
        self.score = weights(hidden, 1, 0.1)  # nearly even at the start: picks are then nearly random
        self.value = weights(hidden, 1, 0.1)
        self.value_bias = nn.Parameter(torch.zeros(num_servers, 1, 1))

    def forward(self, features: Tensor, covered: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores [S, B, N], -inf where not covered, and values [S, B].

        Parameters
        ----------
        features : float32 [S, B, N, F].
        covered : bool [S, N].
        """
        batch, clients = features.shape[1:3]
        hidden = torch.tanh(torch.baddbmm(self.encode_bias, features.flatten(1, 2), self.encode))  # (S, B * N, H)
        share = covered / covered.sum(dim=1, keepdim=True)  # (S, N)
        context = torch.einsum("sbnh,sn->sbh", hidden.view(-1, batch, clients, hidden.shape[-1]), share)
        mixed = torch.bmm(hidden, self.own).view(-1, batch, clients, hidden.shape[-1])  # (S, B, N, H)
        around = torch.baddbmm(self.mix_bias, context, self.context)  # (S, B, H)
        score = torch.tanh(mixed + around[:, :, None]) @ self.score[:, None]  # (S, B, N, 1)
        value = torch.baddbmm(self.value_bias, context, self.value)  # (S, B, 1)
        return score.squeeze(-1).masked_fill(~covered[:, None], -torch.inf), value.squeeze(-1)

    def weights(self) -> Arrays:
        """Return copies of all weights by name, first axis S."""
        return {name: weight.detach().numpy().copy() for name, weight in self.named_parameters()}

    def load(self, weights: Arrays) -> None:
        """Take over weights that `weights` gave."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(torch.from_numpy(weights[name]))
