"""Environments of many agents at once, each with a copy of its own, whose laws can change in mid-run. NumPy."""

from edgeopt.rl.environments.acrobot import Acrobot as Acrobot
from edgeopt.rl.environments.cart_pole import CartPole as CartPole
from edgeopt.rl.environments.client_selection import SelectionChange as SelectionChange
from edgeopt.rl.environments.client_selection import ServerBesideNeighbour as ServerBesideNeighbour
from edgeopt.rl.environments.control import Change as Change
from edgeopt.rl.environments.control import Control as Control
from edgeopt.rl.environments.environment import Continuous as Continuous
from edgeopt.rl.environments.environment import Discrete as Discrete
from edgeopt.rl.environments.environment import Environment as Environment
from edgeopt.rl.environments.environment import Moment as Moment
from edgeopt.rl.environments.parallel import ParallelTeam as ParallelTeam
from edgeopt.rl.environments.pendulum import Pendulum as Pendulum
from edgeopt.rl.environments.routing import Routing as Routing
from edgeopt.rl.environments.routing import grid as grid
from edgeopt.rl.environments.routing import plane as plane
from edgeopt.rl.environments.spread import Spread as Spread
from edgeopt.rl.environments.team import Seen as Seen
from edgeopt.rl.environments.team import Team as Team
