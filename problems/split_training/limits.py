"""Targets of split training that are just in reach."""

from decimal import ROUND_CEILING, Context, Decimal


def reachable_target(noise: float, drift: float) -> Decimal:
    """Return a target of six digits that the least terms of the bound leave something of, the least such number."""
    digits = Context(prec=6, rounding=ROUND_CEILING)
    target = digits.create_decimal_from_float(noise + drift)
    while not float(target) - drift - noise > 0:
        target = digits.next_plus(target)
    return target
