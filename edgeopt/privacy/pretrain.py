"""Train the networks that come with the package: ``python -m edgeopt.privacy.pretrain synthetic --out synthetic.safetensors``.

On rendered faces, or with ``lfw`` on the photographs of faces in scikit-image's wheel. ``hiding`` trains the network of the vault, on
rendered faces and photographs, and ``nested`` the one that hides without a key.
"""

import argparse
import json
import sys
import time

import torch

from edgeopt.errors import EdgeOptError
from edgeopt.privacy.face_sets import FACE_SETS
from edgeopt.privacy.hiding_training import pretrain_hiding
from edgeopt.privacy.nested import train_nested
from edgeopt.privacy.training import Row, train_faces


def main(arguments: list[str] | None = None) -> int:
    """Train and write the file; rows go to standard error, a line each."""
    parser = argparse.ArgumentParser(prog="python -m edgeopt.privacy.pretrain", description=__doc__)
    parser.add_argument("what", choices=(*FACE_SETS, "hiding", "nested"))
    parser.add_argument("--out", required=True, metavar="FILE.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of torch; another number may change the last digits")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    start, worked = time.perf_counter(), time.process_time()

    def tell(row: Row) -> None:
        said = {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
        spent = {"seconds": round(time.perf_counter() - start), "cpu_seconds": round(time.process_time() - worked)}
        print(json.dumps(spent | said), file=sys.stderr, flush=True)

    try:
        if options.what == "hiding":
            pretrain_hiding(seed=options.seed, on_row=tell).save(options.out)
        elif options.what == "nested":
            train_nested(seed=options.seed, on_row=tell).save(options.out)
        else:
            train_faces(options.what, seed=options.seed, on_row=tell).save(options.out)
    except EdgeOptError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
