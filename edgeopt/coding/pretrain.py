"""Train the networks that come with the package: ``python -m edgeopt.coding.pretrain ntrscc --out ntrscc.safetensors``.

On the photographs of scikit-image's wheel that are there to train on, or the pictures of a folder. ``deep-jscc`` trains the network of
a fixed number of symbols for 0 dB, with as many mini-batches.
"""

import argparse
import json
import sys
import time

import torch

from edgeopt.coding.deep_jscc import train_deep_jscc
from edgeopt.coding.ntrscc import Ntrscc
from edgeopt.coding.pictures import folder_pictures, photographs
from edgeopt.coding.training import Row, Training, train_ntrscc
from edgeopt.errors import EdgeOptError


def main(arguments: list[str] | None = None) -> int:
    """Train and write the file; rows go to standard error, a line each."""
    parser = argparse.ArgumentParser(prog="python -m edgeopt.coding.pretrain", description=__doc__)
    parser.add_argument("system", choices=("ntrscc", "deep-jscc"))
    parser.add_argument("--out", required=True, metavar="FILE.safetensors")
    parser.add_argument("--pictures", metavar="FOLDER", help="default: photographs of scikit-image")
    parser.add_argument(
        "--steps", type=int, nargs=3, metavar=("TRANSFORMS", "CODE", "JOINT"), help="of the three stages"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of torch; another number may change the last digits")
    parser.add_argument(
        "--checkpoint", metavar="FILE.safetensors", help="of ntrscc: written on the way, resumed from if it is there"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    start = time.perf_counter()

    def tell(row: Row) -> None:
        said = {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}
        print(json.dumps({"seconds": round(time.perf_counter() - start), **said}), file=sys.stderr, flush=True)

    try:
        chosen = photographs("train") if options.pictures is None else folder_pictures(options.pictures)
        pictures = list(chosen.values())
        training = Training()
        if options.steps is not None:
            training = Training(**dict(zip(("transforms", "code", "joint"), options.steps, strict=True)))
        if options.system == "deep-jscc":
            steps = training.transforms + training.joint
            train_deep_jscc(pictures, steps=steps, seed=options.seed, on_row=tell).save(options.out)
            return 0
        found = train_ntrscc(
            pictures, training, seed=options.seed, checkpoint=options.checkpoint, resume=options.checkpoint is not None,
            on_row=tell,
        )  # fmt: skip
        if found.interrupted:
            return 130
        Ntrscc(found.network.requires_grad_(False)).save(options.out)
    except EdgeOptError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
