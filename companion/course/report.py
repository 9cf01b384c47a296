"""Print the scoreboard of a profile as it stands: ``python -m companion.course.report --profile cpu``."""

import argparse
import sys

from companion.course import profiles
from companion.errors import command
from companion.ledger import Ledger, scoreboard
from companion.store import say_outdated


@command
def main() -> None:
    parser = argparse.ArgumentParser(description="Print the scoreboard of a profile.")
    parser.add_argument("--profile", default="auto")
    parser.add_argument("--dataset", default="", help="a data set in place of the profile's own")
    parser.add_argument("--seed", type=int, default=0, help="added to every seed of the profile")
    arguments = parser.parse_args()
    ledger = Ledger(profiles.load(arguments.profile, dataset=arguments.dataset, seed=arguments.seed))
    scoreboard.write(ledger)
    print(f"\n{scoreboard.text(ledger)}\n")
    say_outdated()


if __name__ == "__main__":
    sys.exit(main())
