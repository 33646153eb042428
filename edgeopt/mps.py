"""`LinearProgramme`: rows and columns under names, and the MPS file that every solver of linear programmes reads."""

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from edgeopt import storage
from edgeopt.display import one_line


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearProgramme:
    """Maximise ``cost @ x`` subject to ``matrix @ x <= upper`` and ``0 <= x <= 1``, some x whole.

    Parameters
    ----------
    name : name of the programme.
    cost : float64 [columns].
    matrix : float64 [rows, columns], sparse.
    upper : float64 [rows].
    is_integer : bool [columns].
    columns, rows : their names, without spaces.
    """

    name: str
    cost: NDArray[np.float64]
    matrix: sparse.csr_array
    upper: NDArray[np.float64]
    is_integer: NDArray[np.bool_]
    columns: list[str]
    rows: list[str]

    __repr__ = one_line

    def to_mps(self) -> str:
        """Return the programme in free MPS format, numbers to the last bit.

        The sense is in a section OBJSENSE, which HiGHS, Gurobi, CPLEX, SCIP and CBC read; whole columns stand between the
        usual markers.
        """
        lines = [f"NAME {self.name}", "OBJSENSE", " MAX", "ROWS", " N objective", *(f" L {row}" for row in self.rows)]
        lines.append("COLUMNS")
        by_column = sparse.csc_array(self.matrix)
        whole = False
        for j, column in enumerate(self.columns):
            if bool(self.is_integer[j]) != whole:
                whole = not whole
                lines.append(f" MARKER 'MARKER' '{'INTORG' if whole else 'INTEND'}'")
            entries = slice(by_column.indptr[j], by_column.indptr[j + 1])
            lines.append(f" {column} objective {float(self.cost[j])!r}")
            for row, value in zip(by_column.indices[entries].tolist(), by_column.data[entries].tolist(), strict=True):
                lines.append(f" {column} {self.rows[row]} {value!r}")
        if whole:
            lines.append(" MARKER 'MARKER' 'INTEND'")
        lines.append("RHS")
        lines += [f" RHS {row} {float(self.upper[i])!r}" for i, row in enumerate(self.rows) if self.upper[i]]
        lines.append("BOUNDS")
        lines += [f" UP BOUND {column} 1" for column in self.columns]
        return "\n".join([*lines, "ENDATA", ""])

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the MPS file, whole or not at all."""
        storage.write_text(path, self.to_mps())
