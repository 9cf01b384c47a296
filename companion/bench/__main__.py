import sys

from companion.bench.measure import main
from companion.errors import command

if __name__ == "__main__":
    sys.exit(command(main)())
