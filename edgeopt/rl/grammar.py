"""The grammar of instructions to agents, and its parser.

An instruction is a line ``[MoveTo, Intersection_5, Agent_3]``: command, parameter, agent (the form is that of LEED, arXiv
2509.14680).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeopt.errors import quoted

MOST_LINES = 1 << 14
"""Lines of an answer that are read; the rest is rejected as one."""
MOST_CHARACTERS = 1 << 20
"""Characters of an answer that are looked at."""
_LINE = re.compile(r"\[\s*([A-Za-z]+)\s*,\s*([A-Za-z]+)_([0-9]{1,9})\s*,\s*([A-Za-z]+)_([0-9]{1,9})\s*\]", re.ASCII)
_LONGEST = 200  # characters of a line: an instruction is shorter

Orders = list[list[int]]
"""For every agent the places it is sent to, in order."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an instruction may say.

    Parameters
    ----------
    command : the word for what agents are told to do.
    place, agent : the words for a parameter and for an agent; each is followed by its number from 0.
    num_places, num_agents : how many there are.

    Examples
    --------
    >>> Grammar("MoveTo", "Intersection", "Agent", 25, 4).line(5, 3)
    '[MoveTo, Intersection_5, Agent_3]'
    """

    command: str
    place: str
    agent: str
    num_places: int
    num_agents: int

    def line(self, place: int, agent: int) -> str:
        """Return one instruction."""
        return f"[{self.command}, {self.place}_{place}, {self.agent}_{agent}]"

    def text(self, orders: Orders) -> str:
        """Return all instructions, agent by agent."""
        return "\n".join(self.line(place, agent) for agent, places in enumerate(orders) for place in places)


@dataclass(frozen=True, slots=True)
class Parsed:
    """What an answer says.

    Parameters
    ----------
    orders : for every agent the places it is sent to.
    rejected : what is no instruction, and why, one entry for each line.
    """

    orders: Orders
    rejected: tuple[str, ...] = ()


def parse(text: str, grammar: Grammar) -> Parsed:
    r"""Read instructions, one a line. A line that is none, or names what there is not, is rejected and the rest is read.

    Examples
    --------
    >>> grammar = Grammar("MoveTo", "Intersection", "Agent", 9, 2)
    >>> parse("[MoveTo, Intersection_5, Agent_1]\nSure!\n[MoveTo, Intersection_9, Agent_0]", grammar)
    Parsed(orders=[[], [5]], rejected=("line 2: 'Sure!': expected [MoveTo, Intersection_<number>, Agent_<number>]",
    'line 3: Intersection_9: there are 9 of them, from 0'))
    """
    orders: Orders = [[] for _ in range(grammar.num_agents)]
    rejected = []
    lines = text[:MOST_CHARACTERS].splitlines()
    if len(text) > MOST_CHARACTERS or len(lines) > MOST_LINES:
        rejected.append(f"an answer of {len(text)} characters: what is beyond {MOST_LINES} lines is not read")
    for number, raw in enumerate(lines[:MOST_LINES], 1):
        line = raw.strip()
        if not line:
            continue
        found = _LINE.fullmatch(line) if len(line) <= _LONGEST else None
        if found is None or (found[1], found[2], found[4]) != (grammar.command, grammar.place, grammar.agent):
            expected = f"[{grammar.command}, {grammar.place}_<number>, {grammar.agent}_<number>]"
            rejected.append(f"line {number}: {quoted(line)}: expected {expected}")
        elif (place := int(found[3])) >= grammar.num_places:
            rejected.append(f"line {number}: {grammar.place}_{place}: there are {grammar.num_places} of them, from 0")
        elif (agent := int(found[5])) >= grammar.num_agents:
            rejected.append(f"line {number}: {grammar.agent}_{agent}: there are {grammar.num_agents} of them, from 0")
        else:
            orders[agent].append(place)
    if not any(orders):
        rejected.append("no instruction at all")
    return Parsed(orders, tuple(rejected))


def padded(orders: Sequence[Orders]) -> np.ndarray[tuple[int, int, int], np.dtype[np.int64]]:
    """Return orders of E episodes as int64 [N, E, L], -1 to fill up."""
    longest = max((len(places) for own in orders for places in own), default=0)
    found = np.full((len(orders[0]), len(orders), max(1, longest)), -1, np.int64)
    for episode, own in enumerate(orders):
        for agent, places in enumerate(own):
            found[agent, episode, : len(places)] = places
    return found
