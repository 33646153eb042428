"""Learners of policies: PPO, DQN, SAC and LEED of many agents at once, replay, demonstrations, networks, distributions of picks.

Needs the extra ``train``.
"""

from edgeopt.extras import needs

with needs("edgeopt.rl", "train"):
    from edgeopt.rl import environments as environments
    from edgeopt.rl.change_detector import ChangeDetector as ChangeDetector
    from edgeopt.rl.deer import Deer as Deer
    from edgeopt.rl.deer import DeerReplay as DeerReplay
    from edgeopt.rl.demonstrations import Demonstrations as Demonstrations
    from edgeopt.rl.demonstrations import Gathered as Gathered
    from edgeopt.rl.demonstrations import Play as Play
    from edgeopt.rl.demonstrations import carried_out as carried_out
    from edgeopt.rl.demonstrations import play as play
    from edgeopt.rl.dqn import Dqn as Dqn
    from edgeopt.rl.draws import Draws as Draws
    from edgeopt.rl.dtw import warped_distances as warped_distances
    from edgeopt.rl.grammar import Grammar as Grammar
    from edgeopt.rl.grammar import Parsed as Parsed
    from edgeopt.rl.grammar import parse as parse
    from edgeopt.rl.instructions import InstructionSource as InstructionSource
    from edgeopt.rl.instructions import NoisyPlanner as NoisyPlanner
    from edgeopt.rl.instructions import Request as Request
    from edgeopt.rl.instructions import ScriptedPlanner as ScriptedPlanner
    from edgeopt.rl.language_models import HttpModel as HttpModel
    from edgeopt.rl.language_models import LocalModel as LocalModel
    from edgeopt.rl.learner import Learner as Learner
    from edgeopt.rl.leed import Leed as Leed
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
    from edgeopt.rl.together import TeamHistory as TeamHistory
    from edgeopt.rl.together import learn_together as learn_together
