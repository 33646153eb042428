"""The commands ``edgeopt solvers``, ``describe`` and ``info``: what there is. Heavy imports happen inside them."""

from typing import Annotated, Any

import typer

from edgeopt.cli.options import InstanceArgument, JsonOption
from edgeopt.cli.printing import print_facts, print_json


def solvers(
    kind: Annotated[str | None, typer.Argument(help="Kind of problem: $kinds. Default: all.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the solvers with guarantee, complexity and what they support."""
    from edgeopt.evaluation.listing import describe_solver
    from edgeopt.solvers import KINDS, solvers_of

    listed = [
        describe_solver(name, solver) for name in (KINDS if kind is None else (kind,)) for solver in solvers_of(name)
    ]
    if as_json:
        print_json(listed)
        return
    for entry in listed:
        print(f"{entry['problem']}  {entry['name']}  [{entry['guarantee']}]")
        for line in (entry["summary"], entry["complexity"], entry["supports"]):
            if line:
                print(f"    {line}")
        if entry["parameters"]:
            print("    parameters: " + ", ".join(f"{key}={value}" for key, value in entry["parameters"].items()))


def describe(instance: InstanceArgument, as_json: JsonOption = False) -> None:
    """Show what an instance is: sizes, units, modes."""
    from edgeopt.evaluation.instances.library import library_entry, library_names, load_instance

    problem = load_instance(instance)
    facts: dict[str, Any] = {"instance": instance, "problem": problem.kind, "sense": problem.sense}
    facts |= {"fingerprint": problem.fingerprint(), "facts": problem.describe()}
    if instance in library_names():
        entry = library_entry(instance).to_json()
        facts |= {name: entry[name] for name in ("description", "recipe", "best_known")}
    if as_json:
        print_json(facts)
        return
    lines = {**facts, **facts.pop("facts")}
    lines.pop("facts")
    print_facts(lines)


def info(as_json: JsonOption = False) -> None:
    """Show versions, machine, installed extras and where compiled kernels are kept."""
    from importlib.metadata import PackageNotFoundError, version

    from edgeopt.evaluation.compare.worker import machine
    from edgeopt.extras import EXTRAS
    from edgeopt.installed import versions
    from edgeopt.jit import cache_dir

    extras: dict[str, str] = {}
    for extra, packages in EXTRAS.items():
        try:
            extras[extra] = ", ".join(f"{package} {version(package)}" for package in packages)
        except PackageNotFoundError:
            extras[extra] = f"not installed: pip install 'edgeopt[{extra}]'"
    facts = {"versions": versions(), "machine": machine(), "extras": extras, "kernel_cache": str(cache_dir())}
    if as_json:
        print_json(facts)
    else:
        print_facts(
            {**versions(), **machine(), **{f"extra {k}": v for k, v in extras.items()}, "kernels": str(cache_dir())}
        )
