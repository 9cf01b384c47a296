"""Read embeddings from files: ``python -m companion.diagnose u.npy v.npy``."""

import argparse
import sys

from companion.diagnose import diagnose, figures, load, page, table
from companion.diagnose.reading import MAX_PAIRS
from companion.errors import MissingExtraError, command


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m companion.diagnose",
        description="Read paired embeddings: print what their similarities say, and write it as a page.",
        epilog="FILE is a .npy, or a .npz, .safetensors or .pt, with :NAME behind it where it holds several arrays.",
    )
    parser.add_argument("u", metavar="FILE", help="(n, d) embeddings of the first view or modality")
    parser.add_argument("v", metavar="FILE", help="(n, d) embeddings of the second, row i the partner of row i")
    parser.add_argument("--labels", metavar="FILE", help="(n,) class labels: splits the variance of the negatives")
    parser.add_argument("--n", type=int, help="size of the training set, for its simplex and VRNS")
    parser.add_argument("--scale", type=float, help="SigLIP's scale, with --bias: its phase")
    parser.add_argument("--bias", type=float, help="SigLIP's bias, in its own sign (its start is -10)")
    parser.add_argument(
        "--out", metavar="PAGE.html", default="diagnosis.html",
        help="the self-contained page that is written (default: %(default)s; needs matplotlib)",
    )  # fmt: skip
    parser.add_argument("--no-page", dest="out", action="store_const", const=None, help="print the table alone")
    parser.add_argument(
        "--sample", type=int, default=MAX_PAIRS, metavar="N",
        help="visit at most so many pairs for uniformity and histogram, at random beyond (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    arguments = parser.parse_args(arguments)
    if arguments.out:  # before minutes of reading
        page.check_name(arguments.out)
        try:
            figures.library()
        except MissingExtraError as error:
            if arguments.out != parser.get_default("out"):
                raise
            print(f"No page is written, the table alone: {error}", file=sys.stderr)
            arguments.out = None
    reading = diagnose(
        load(arguments.u), load(arguments.v), labels=load(arguments.labels) if arguments.labels else None,
        n=arguments.n, scale=arguments.scale, bias=arguments.bias, max_pairs=arguments.sample, seed=arguments.seed,
    )  # fmt: skip
    print(table.text(reading))
    if arguments.out:
        page.write(reading, arguments.out)
        print(f"\nWritten to {arguments.out}")


if __name__ == "__main__":
    sys.exit(main())
