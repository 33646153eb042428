"""What the numbers of a time series are, and in which units."""

from typing import Literal

Quantity = Literal["rate", "carbon", "power", "availability"]

UNITS: dict[Quantity, str] = {"rate": "bit/s", "carbon": "g/kWh", "power": "W", "availability": ""}
"""What values are in. Availability is 1 where a client can be picked, 0 where it cannot."""
