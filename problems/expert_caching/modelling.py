"""Expert caching as a mixed-integer linear programme: in cvxpy under its own names, and as an MPS file."""

from typing import Any

import numpy as np
from scipy import sparse

from edgeopt.modelling import GenericModel, cvxpy_module, power_of_two
from edgeopt.mps import LinearProgramme
from edgeopt.problems.expert_caching.placement import Placement
from edgeopt.problems.expert_caching.terms import Columns


def generic_model(problem: Any) -> GenericModel[Placement]:
    """Return the programme in cvxpy, see `ExpertCaching.to_cvxpy`."""
    cp: Any = cvxpy_module()
    columns = Columns.of(problem)
    cost, links = columns.cost(), columns.links()
    unit = power_of_two(float(cost.max(initial=0.0)) / 100)
    cached = cp.Variable((problem.num_servers, problem.num_experts), name="cached", boolean=True)
    variables, parts = {"cached": cached}, [cp.vec(cached, order="C")]
    for name, count in (("held", columns.z_set.size), ("together", columns.joint.size)):
        if count:
            variables[name] = cp.Variable(count, name=name, bounds=[0, 1])
            parts.append(variables[name])
    every = cp.hstack(parts) if len(parts) > 1 else parts[0]
    byte = float(problem.expert_bytes.max())
    room = np.minimum(problem.storage_bytes, problem.expert_bytes.sum())
    fits = (problem.expert_bytes <= problem.storage_limit[:, None]).astype(np.float64)
    constraints = {"storage": cached @ (problem.expert_bytes / byte) <= room / byte, "fits": cached <= fits}
    num_z = columns.z_set.size
    if num_z:
        constraints["some server holds it"] = links[:num_z] @ every <= 0
    if links.shape[0] > num_z:
        constraints["all of the set are held"] = links[num_z:] @ every <= 0
    task = cp.Problem(cp.Maximize((cost / unit) @ every), list(constraints.values()))
    return GenericModel(task, variables, constraints, unit, lambda: Placement(np.asarray(cached.value) > 0.5))


def linear_programme(problem: Any) -> LinearProgramme:
    """Return the programme by rows and columns, see `ExpertCaching.write_mps`."""
    columns = Columns.of(problem)
    num_servers, num_experts = problem.num_servers, problem.num_experts
    size = problem.expert_bytes
    storage = sparse.kron(sparse.eye_array(num_servers), size[None, :], format="csr")
    rest = sparse.csr_array((num_servers, columns.num_columns - columns.first_z))
    links = columns.links()
    num_z = columns.z_set.size
    held = zip(columns.z_set.tolist(), columns.z_expert.tolist(), strict=True)
    return LinearProgramme(
        name="expert-caching",
        cost=columns.cost(),
        matrix=sparse.csr_array(sparse.vstack([sparse.hstack([storage, rest]), links])),
        upper=np.concatenate([np.minimum(problem.storage_bytes, size.sum()), np.zeros(links.shape[0])]),
        is_integer=np.arange(columns.num_columns) < columns.first_z,
        columns=[
            *(f"cached_{n}_{e}" for n in range(num_servers) for e in range(num_experts)),
            *(f"held_{group}_{e}" for group, e in held),
            *(f"together_{term}" for term in columns.joint.tolist()),
        ],
        rows=[
            *(f"storage_{n}" for n in range(num_servers)),
            *(f"holds_{i}" for i in range(num_z)),
            *(f"needs_{i}" for i in range(links.shape[0] - num_z)),
        ],
    )
