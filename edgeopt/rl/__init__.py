"""Learners of policies: proximal policy optimisation, networks and distributions of picks.

Needs the extra ``train``.
"""

from edgeopt.extras import needs

with needs("edgeopt.rl", "train"):
    from edgeopt.rl.plackett_luce import log_probabilities as log_probabilities
    from edgeopt.rl.plackett_luce import sample_top as sample_top
    from edgeopt.rl.ppo import Evaluation as Evaluation
    from edgeopt.rl.ppo import Experience as Experience
    from edgeopt.rl.ppo import Ppo as Ppo
    from edgeopt.rl.ppo import advantages as advantages
    from edgeopt.rl.ppo import improve as improve
    from edgeopt.rl.ppo import standardised as standardised
    from edgeopt.rl.scorer import Scorer as Scorer
