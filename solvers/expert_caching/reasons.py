"""What keeps experts out of every cache: caching nothing is a solution, so that no instance is without one."""

import numpy as np

from edgeopt.explain import Change, Explanation, Refused, Way
from edgeopt.problems import ExpertCaching


def explain(problem: ExpertCaching) -> Explanation:
    """Return the experts that no server has room for, with the storage that the largest one would need. O(E)."""
    size, largest = problem.expert_bytes, int(problem.storage_bytes.argmax())
    room = problem.storage_bytes[largest].item()
    refused = []
    for expert in np.flatnonzero(size > problem.storage_limit[largest]).tolist():
        needed = size[expert].item()
        refused.append(
            Refused(
                what="expert",
                index=expert,
                message=f"expert {expert} takes {needed:.6g} bytes, the largest storage is {room:.6g}",
                ways=(Way((Change(name=f"storage_bytes[{largest}]", value=room, needed=needed),)),),
            )
        )
    message = "never infeasible: caching nothing keeps every limit"
    if refused:
        message += f"; {len(refused)} of {problem.num_experts} experts fit on no server"
    return Explanation(problem=problem.kind, verdict="feasible", message=message, refused=tuple(refused))
