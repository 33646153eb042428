"""The network of a policy that scores any number of clients."""

import numpy as np
import torch

from edgeopt.rl import Scorer


def test_scores_do_not_depend_on_the_order_of_clients():
    """Renumbering the clients renumbers the scores and leaves the value; clients that are not covered change neither."""
    scorer, rng = Scorer(2, 5, 4, torch.Generator().manual_seed(1)), np.random.default_rng(2)
    features = torch.from_numpy(rng.random((2, 3, 6, 5), np.float32))
    covered = torch.ones(2, 6, dtype=torch.bool)
    score, value = scorer(features, covered)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    score_again, value_again = scorer(features[:, :, order], covered)
    torch.testing.assert_close(score_again, score[:, :, order])
    torch.testing.assert_close(value_again, value)
    wider = torch.cat([features, torch.from_numpy(rng.random((2, 3, 2, 5), np.float32))], dim=2)
    score_wide, value_wide = scorer(wider, torch.arange(8).expand(2, 8) < 6)
    torch.testing.assert_close(score_wide[:, :, :6], score)
    torch.testing.assert_close(value_wide, value)
    assert torch.isinf(score_wide[:, :, 6:]).all()
