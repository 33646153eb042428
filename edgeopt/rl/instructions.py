"""Who writes instructions to agents: planners and, in a file of their own, language models.

Whatever writes them, they are text that is read by the same parser, `edgeopt.rl.grammar.parse`.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edgeopt.errors import EdgeOptError, quoted
from edgeopt.rl.environments.team import Team
from edgeopt.rl.grammar import parse
from edgeopt.rng import stream
from edgeopt.validate import real


@dataclass(frozen=True, slots=True)
class Request:
    """What a source of instructions is asked.

    Parameters
    ----------
    team : the environment, at the start of its episodes.
    episode : which of its episodes.
    seed : of that episode.
    feedback : what came of play so far, in words.
    """

    team: Team
    episode: int
    seed: int
    feedback: str = ""

    @property
    def prompt(self) -> str:
        """What a language model is told [ours; that it holds the graph, the agents' trips and feedback is LEED's]."""
        grammar, team = self.team.grammar, self.team
        asked = (
            f"You direct {grammar.num_agents} agents. Answer with instructions alone, one a line, in exactly this form:\n"
            f"{grammar.line(0, 0)}\n"
            f"{grammar.place} numbers go from 0 to {grammar.num_places - 1}, {grammar.agent} numbers from 0 to {grammar.num_agents - 1}. "
            "The lines of an agent are followed in their order.\n"
        )
        return "\n".join(part for part in (asked, team.describe(self.episode), self.feedback, "Instructions:") if part)


class InstructionSource(Protocol):
    """Whatever writes instructions."""

    def instructions(self, request: Request) -> str:
        """Return instructions for one episode, as text; they are read by `parse`, whatever they are."""
        ...


@dataclass(frozen=True, slots=True)
class ScriptedPlanner:
    """Writes down what the environment's own planner would do, see `Team.plan`. It is complete, and needs no network."""

    def instructions(self, request: Request) -> str:
        """Return the instructions of the plan."""
        return request.team.grammar.text(request.team.plan(request.episode))


@dataclass(frozen=True, slots=True)
class NoisyPlanner:
    """A planner that errs: every instruction names another place with some probability, drawn from what it could name.

    Parameters
    ----------
    noise : probability of an error, from 0 to 1.
    planner : who plans.
    """

    noise: float
    planner: InstructionSource = field(default_factory=ScriptedPlanner)

    def __post_init__(self) -> None:
        if not 0 <= real("noise", self.noise) <= 1:
            raise EdgeOptError(f"noise = {quoted(self.noise)}: expected a number from 0 to 1")

    def instructions(self, request: Request) -> str:
        """Return spoilt instructions; the same for the same seed of an episode."""
        team, rng = request.team, stream(request.seed, "errors")
        orders = parse(self.planner.instructions(request), team.grammar).orders
        for agent, places in enumerate(orders):
            wrong = rng.random(len(places)) < self.noise
            for k in np.flatnonzero(wrong).tolist():
                places[k] = int(rng.choice(team.choices(agent, request.episode, places[:k])))
        return team.grammar.text(orders)
