"""Learners of policies: PPO, DQN and SAC of many agents at once, replay buffers, networks, distributions of picks.

Needs the extra ``train``.
"""

from edgeopt.extras import needs

with needs("edgeopt.rl", "train"):
    from edgeopt.rl import environments as environments
    from edgeopt.rl.change_detector import ChangeDetector as ChangeDetector
    from edgeopt.rl.deer import Deer as Deer
    from edgeopt.rl.deer import DeerReplay as DeerReplay
    from edgeopt.rl.dqn import Dqn as Dqn
    from edgeopt.rl.draws import Draws as Draws
    from edgeopt.rl.learner import Learner as Learner
    from edgeopt.rl.loop import LearningHistory as LearningHistory
    from edgeopt.rl.loop import StepRecord as StepRecord
    from edgeopt.rl.loop import learn as learn
    from edgeopt.rl.networks import Mlp as Mlp
    from edgeopt.rl.plackett_luce import log_probabilities as log_probabilities
    from edgeopt.rl.plackett_luce import sample_top as sample_top
    from edgeopt.rl.ppo import Evaluation as Evaluation
    from edgeopt.rl.ppo import Experience as Experience
    from edgeopt.rl.ppo import Ppo as Ppo
    from edgeopt.rl.ppo import advantages as advantages
    from edgeopt.rl.ppo import improve as improve
    from edgeopt.rl.ppo import standardised as standardised
    from edgeopt.rl.prioritised_replay import Priorities as Priorities
    from edgeopt.rl.prioritised_replay import PrioritisedReplay as PrioritisedReplay
    from edgeopt.rl.replay import Batch as Batch
    from edgeopt.rl.replay import Replay as Replay
    from edgeopt.rl.replay import TrueChange as TrueChange
    from edgeopt.rl.sac import Sac as Sac
    from edgeopt.rl.scorer import Scorer as Scorer
